"""Real registries and stores for tests: tools on PATH or in $LAYERKIT_TEST_TOOLS, on loopback.

docker-registry and skopeo are Debian's; `go install` makes the others:
github.com/google/go-containerregistry/cmd/crane, oras.land/oras/cmd/oras,
github.com/distribution/distribution/v3/cmd/registry, github.com/versity/versitygw/cmd/versitygw.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

START_SECONDS = 30.0
KINDS = ["docker-registry", "registry", "crane"]  # crane's is go-containerregistry's

REGISTRY_CONFIG = """\
version: 0.1
storage:
  filesystem: {{rootdirectory: {folder}/data}}
  delete: {{enabled: true}}
http: {{addr: 127.0.0.1:{port}{tls}}}
{auth}
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


@contextlib.contextmanager
def empty_registry(kind: str, folder: Path) -> Iterator[str]:
    """The host of a new registry of one of KINDS, with its content in `folder`."""
    tool, port = find_tool(kind), free_port()
    folder.mkdir()
    argv = [tool, "serve", str(write_config(folder, port))]
    if kind == "crane":
        argv = [tool, "registry", "serve", "--address", f"127.0.0.1:{port}", "--disk", str(folder)]
    with running(argv, port, folder):
        yield f"127.0.0.1:{port}"
