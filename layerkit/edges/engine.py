"""Local container engines: hand an image over, see that it is there under its digest, forget it.

Docker by its SDK, containerd by `ctr` (edges.tools); both take the archive that
`edges.layout.write_docker_archive` writes. An engine that is down or refuses is a ToolError: the
image stays where it is, and handing it over can be tried again. Docker 20.10's answer to an archive
that it does not understand is an empty list, not an error: that is an error here. Docker before 23
cannot read zstd layers; it gets them as plain tars, which are what it keeps of a layer anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from layerkit.digest import Digest
from layerkit.edges.tools import Tools
from layerkit.errors import NotFoundError, ToolError, ToolMissingError, UsageError
from layerkit.formats.reference import Reference

__all__ = ["ENGINES", "Containerd", "Docker", "Engine", "Handed", "open_engine"]

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
    """The Docker engine at `address` (``unix:///var/run/docker.sock``); "" is the usual one."""

    kind = "docker"

    def __init__(self, address: str = "") -> None:
        self._address = address or "unix:///var/run/docker.sock"

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
        """The SDK's client; what it raises as ours."""
        try:
            import docker
            import requests
        except ImportError as exc:
            raise ToolMissingError(
                "the docker package is not installed", hint="run 'pip install layerkit[docker]'"
            ) from exc
        try:
            client = docker.DockerClient(base_url=self._address, timeout=LOAD_SECONDS)
            try:
                yield client
            finally:
                client.close()
        except (docker.errors.DockerException, requests.RequestException, OSError) as exc:
            raise ToolError(f"docker at {self._address} cannot {what}", cause=str(exc)) from exc


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
        return Docker(address)
    if kind == "containerd":
        return Containerd(tools, address, namespace)
    raise UsageError(f"{kind!r} is no engine", hint=f"name one of {', '.join(ENGINES)}")
