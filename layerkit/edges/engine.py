"""Local container engines: hand an image over, see that it is there under its digest, forget it.

Docker by its SDK, containerd by `ctr` (edges.tools); both take the archive that
`edges.layout.write_docker_archive` writes. An engine that is down or refuses is a ToolError: the
image stays where it is, and handing it over can be tried again. Docker 20.10's answer to an archive
that it does not understand is an empty list, not an error: that is an error here. Docker before 23
cannot read zstd layers; it gets them as plain tars, which are what it keeps of a layer anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from layerkit.digest import Digest
from layerkit.edges.tools import Tools
from layerkit.errors import NotFoundError, ToolError, ToolMissingError, UsageError
from layerkit.formats.reference import Reference

__all__ = ["ENGINES", "Containerd", "Docker", "Engine", "Handed", "open_engine"]

DOCKER_SOCKET: Final = "unix:///var/run/docker.sock"
LOAD_SECONDS: Final = 600.0
ASK_SECONDS: Final = 30.0
ZSTD_API: Final = (1, 42)  # docker 23.0
SAVE_PART: Final = 1 << 20  # bytes of an archive in memory while it is read
ENGINES: Final = ("docker", "containerd")


@dataclass(frozen=True, slots=True)
class Handed:
    """An image to hand over: `ref` with its tag, its config's and manifest's digests."""

    ref: Reference
    config: Digest
    manifest: Digest

    @property
    def name(self) -> str:
        return f"{self.ref.name}:{self.ref.tag}"

    @property
    def full_name(self) -> str:
        return f"{self.ref.full_name}:{self.ref.tag}"


class Engine(Protocol):
    """One engine."""

    @property
    def kind(self) -> str: ...

    def reads_zstd(self) -> bool:
        """Can it load layers that are compressed with zstd?"""

    def load(self, archive: Path, image: Handed) -> bool:
        """Load an archive; ToolError unless the engine then has the image by its digest. Does the
        engine know it by its manifest, and not by its config only?"""

    def forget(self, image: Handed) -> bool:
        """Remove an image that no name and no container uses; False if it stays."""


class Docker:
    """The Docker engine at `address` (``unix:///var/run/docker.sock``, ``tcp://host:2376``); if "",
    it is found as the docker command finds it: by DOCKER_HOST, the context in DOCKER_CONTEXT or in
    docker's configuration, else the usual socket. `env` has these, and what says of TLS:
    DOCKER_TLS_VERIFY, DOCKER_CERT_PATH (or ~/.docker). A context brings its own keys."""

    kind = "docker"

    def __init__(self, address: str = "", env: Mapping[str, str] | None = None) -> None:
        self._env = env or {}
        self._address = address or self._env.get("DOCKER_HOST", "")
        self._tls: Any = None

    def _find(self) -> None:
        """Settle on an address and keys; raises what the SDK does."""
        if not self._address and self._env.get("HOME"):
            from docker.context import ContextAPI

            context = ContextAPI.get_context(self._env.get("DOCKER_CONTEXT") or None)
            if context is None:
                wanted = self._env.get("DOCKER_CONTEXT") or "the current one"
                raise UsageError(f"docker has no context {wanted}", hint="see 'docker context ls'")
            if context.name != "default":
                self._address, keys = context.Host, context.TLSConfig
                if keys is not None:
                    self._tls = _make_keys(keys.cert, keys.ca_cert, verify=bool(keys.verify))
        self._address = self._address or DOCKER_SOCKET
        if self._tls is None and self._address.startswith("tcp:"):
            self._tls = self._find_keys()

    def _find_keys(self) -> Any:
        if not self._env.get("DOCKER_TLS_VERIFY"):
            return None
        home = Path(self._env.get("HOME", "/"))
        where = Path(self._env.get("DOCKER_CERT_PATH") or home / ".docker")
        keys = (str(where / "cert.pem"), str(where / "key.pem"))
        return _make_keys(keys, str(where / "ca.pem"), verify=True)

    def reads_zstd(self) -> bool:
        with self._client("answer") as client:
            told = str(client.version().get("ApiVersion", ""))
        major, _, minor = told.partition(".")
        if not (major.isdigit() and minor.isdigit()):
            return False
        return (int(major), int(minor)) >= ZSTD_API

    def load(self, archive: Path, image: Handed) -> bool:
        with self._client("load") as client, archive.open("rb") as file:
            loaded = client.images.load(file)
            if not loaded:
                raise ToolError(
                    f"docker at {self._address} loaded nothing of {image.name}",
                    cause="its answer is empty",
                )
            found = client.images.get(image.name).id
        # docker's own image store names images by their config, containerd's by their manifest
        if found not in (str(image.config), str(image.manifest)):
            raise ToolError(
                f"docker at {self._address} has another image as {image.name}",
                cause=f"got {found}, want {image.config}",
            )
        return bool(found == str(image.manifest))

    def is_there(self) -> bool:
        """Is there a socket at all, where the address is one?"""
        with self._sdk("answer"):
            self._find()
        kind, _, path = self._address.partition("://")
        return kind != "unix" or Path(path).exists()

    def save(self, name: str) -> Iterator[bytes]:
        """The archive of an image that the engine has; NotFoundError if it has none of that name.
        Before docker 25 it has no manifest, only the layers' plain tars."""
        with self._client("save") as client:
            import docker

            try:
                yield from client.api.get_image(name, SAVE_PART)
            except docker.errors.NotFound as exc:
                raise NotFoundError(
                    f"docker at {self._address} has no image {name}",
                    hint=f"run 'docker pull {name}', or name a registry's as docker://{name}",
                ) from exc

    def forget(self, image: Handed) -> bool:
        with self._client("remove") as client:
            import docker

            try:
                found = client.images.get(str(image.config))
                if found.tags:
                    return False
                client.images.remove(found.id)
            except docker.errors.ImageNotFound:
                return True
            except docker.errors.APIError as exc:
                if exc.status_code == 409:  # a container uses it
                    return False
                raise
        return True

    @contextmanager
    def _client(self, what: str) -> Iterator[Any]:
        """The SDK's client."""
        with self._sdk(what) as docker:
            self._find()
            address, tls = self._address, self._tls
            client = docker.DockerClient(base_url=address, timeout=LOAD_SECONDS, tls=tls)
            try:
                yield client
            finally:
                client.close()

    @contextmanager
    def _sdk(self, what: str) -> Iterator[Any]:
        """The SDK; what it raises as ours."""
        try:
            import docker
            import requests
        except ImportError as exc:
            raise ToolMissingError(
                "the docker package is not installed", hint="run 'pip install layerkit[docker]'"
            ) from exc
        try:
            yield docker
        except (docker.errors.DockerException, requests.RequestException, OSError) as exc:
            where = self._address or "its usual place"
            raise ToolError(f"docker at {where} cannot {what}", cause=str(exc)) from exc


def _make_keys(cert: tuple[str, str], ca: str, *, verify: bool) -> Any:
    """Keys for the SDK, and the authority to trust: it, whatever REQUESTS_CA_BUNDLE says, which
    `requests` would prefer to a session's own."""
    from docker.tls import TLSConfig

    class Keys(TLSConfig):  # type: ignore[misc]
        def configure_client(self, client: Any) -> None:
            super().configure_client(client)
            client.trust_env = False

    return Keys(client_cert=cert, ca_cert=ca, verify=verify)


class Containerd:
    """containerd at `address` (a socket's path), in `namespace` (Kubernetes': k8s.io)."""

    kind = "containerd"

    def __init__(self, tools: Tools, address: str = "", namespace: str = "") -> None:
        self._tools = tools
        self._address = address or "/run/containerd/containerd.sock"
        self._namespace = namespace or "default"

    def reads_zstd(self) -> bool:
        return True  # from 1.5 on

    def load(self, archive: Path, image: Handed) -> bool:
        self._ctr(LOAD_SECONDS, "images", "import", str(archive))
        listed = self._ctr(ASK_SECONDS, "images", "list", f"name=={image.full_name}")
        if str(image.manifest) not in listed:
            raise ToolError(
                f"containerd at {self._address} has another image as {image.full_name}",
                cause=f"got {' '.join(listed.split()[-8:])[:300]}, want {image.manifest}",
            )
        return True

    def forget(self, image: Handed) -> bool:
        return True  # its name moved on; containerd itself drops what no name leads to

    def _ctr(self, seconds: float, *argv: str) -> str:
        if not Path(self._address).exists():  # ctr would wait for it for ten seconds
            raise ToolError(
                f"containerd at {self._address} cannot {argv[1]}", cause="there is no such socket"
            )
        where = ("-a", self._address, "-n", self._namespace)
        env = {"PATH": self._tools.env.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")}
        done = self._tools.run(("ctr", *where, *argv), env=env, timeout=seconds)
        if done.status != 0:
            raise ToolError(
                f"ctr {' '.join(argv[:2])} failed at {self._address}",
                argv=done.argv,
                status=done.status,
                stderr_tail=done.stderr_text[-1000:],
            )
        return done.stdout.decode("utf-8", "replace")


def open_engine(kind: str, tools: Tools, *, address: str = "", namespace: str = "") -> Engine:
    """An engine by its kind."""
    if kind == "docker":
        return Docker(address, tools.env)
    if kind == "containerd":
        return Containerd(tools, address, namespace)
    raise UsageError(f"{kind!r} is no engine", hint=f"name one of {', '.join(ENGINES)}")
