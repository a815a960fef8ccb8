"""Real registries and stores for tests: tools on PATH or in $LAYERKIT_TEST_TOOLS, on loopback.

docker-registry and skopeo are Debian's; `go install` makes the others:
github.com/google/go-containerregistry/cmd/crane, oras.land/oras/cmd/oras,
github.com/distribution/distribution/v3/cmd/registry, github.com/versity/versitygw/cmd/versitygw.
The two of REFERRERS are built here, from their modules, by `referrers/`. olareg and zot, which have
that API, too, are used where they are.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import ipaddress
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from go_builds import build_go, find_go, sources_of

START_SECONDS = 30.0
COLLECTS = ["docker-registry", "registry"]  # with a garbage collection of their own
REFERRERS = ["go-containerregistry", "ociregistry"]  # have the referrers API of OCI 1.1
KINDS = [*COLLECTS, "crane", *REFERRERS, "olareg", "zot"]  # crane's is the third one without

REGISTRY_CONFIG = """\
version: 0.1
storage:
  filesystem: {{rootdirectory: {folder}/data}}
  delete: {{enabled: true}}
http: {{addr: 127.0.0.1:{port}{tls}}}
{auth}
"""
NOTIFICATIONS = """\
notifications:
  endpoints:
    - name: layerkit
      url: http://127.0.0.1:{port}/events
      headers: {{Authorization: [Bearer {secret}]}}
      timeout: 2s
      threshold: 3
      backoff: 200ms
      ignore: {{actions: [pull, mount, delete]}}
"""


def find_tool(name: str) -> str:
    """The path of a tool; skips, and says so, without it."""
    folders = f"{os.environ.get('LAYERKIT_TEST_TOOLS', '')}:{os.environ.get('PATH', '')}"
    found = shutil.which(name, path=folders)
    if found is None:
        pytest.skip(f"no {name} on PATH or in $LAYERKIT_TEST_TOOLS")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(
    argv: Sequence[str], port: int, folder: Path, environment: dict[str, str] | None = None
) -> Iterator[None]:
    """A server that listens on `port`; ended, and waited for, at the end."""
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv, stdout=out, stderr=out, env={**os.environ, **(environment or {})}
        )
        try:
            end = time.monotonic() + START_SECONDS
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.02)
            yield
        finally:
            process.terminate()
            process.wait(10)


def write_config(folder: Path, port: int, tls: str = "", auth: str = "") -> Path:
    path = folder / "config.yml"
    path.write_text(REGISTRY_CONFIG.format(folder=folder, port=port, tls=tls, auth=auth))
    return path


def certify(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, its own authority, and its key: PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, secret = folder / "cert.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate, secret


def referrers_tool() -> str:
    """The program of `referrers/`; skips, and says so, where it cannot be built."""
    sources = sources_of(Path(__file__).parent / "referrers")
    tool = Path(tempfile.gettempdir()) / f"referrers-{os.getpid()}"
    if not tool.exists():
        atexit.register(tool.unlink)
        tool.write_bytes(build_go(find_go(), sources, needs_modules=True))
        tool.chmod(0o755)
    return str(tool)


class RealRegistry:
    """A registry of one of KINDS with its content in `folder`: it can be stopped and started."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.port, self.folder = kind, free_port(), folder
        self.tool = referrers_tool() if kind in REFERRERS else find_tool(kind)
        folder.mkdir()
        self.host = f"127.0.0.1:{self.port}"
        self.argv = [self.tool, *self._options()]
        self.tells_types = kind != "go-containerregistry"  # its lists have the config's type

    def _options(self) -> list[str]:
        match self.kind:
            case "crane":
                return ["registry", "serve", "--address", self.host, "--disk", str(self.folder)]
            case "go-containerregistry" | "ociregistry":
                return ["-kind", self.kind, "-address", self.host]
            case "olareg":
                where = ["--addr", "127.0.0.1", "--port", str(self.port)]
                return ["serve", *where, "--dir", str(self.folder)]
            case "zot":
                config = self.folder / "zot.json"
                address = {"address": "127.0.0.1", "port": str(self.port)}
                storage = {"rootDirectory": str(self.folder / "data")}
                config.write_text(json.dumps({"http": address, "storage": storage}))
                return ["serve", str(config)]
            case _:
                return ["serve", str(write_config(self.folder, self.port))]

    def serving(self) -> contextlib.AbstractContextManager[None]:
        return running(self.argv, self.port, self.folder)


@contextlib.contextmanager
def empty_registry(kind: str, folder: Path) -> Iterator[str]:
    """The host of a new registry of one of KINDS, with its content in `folder`."""
    made = RealRegistry(kind, folder)
    with made.serving():
        yield made.host
