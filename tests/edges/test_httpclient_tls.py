"""edges/httpclient over TLS: whom it believes, and what it shows."""

from __future__ import annotations

import datetime
import http.server
import ipaddress
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from layerkit.digest import sha256_digest
from layerkit.edges.remote import Remote, Tls
from layerkit.errors import RemoteError

BLOB = b"a blob"
DIGEST = sha256_digest(BLOB)


def certify(folder: Path, name: str, issuer: str = "") -> None:
    """Key and certificate NAME.pem for 127.0.0.1, signed by ISSUER.pem or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    raw = (folder / f"{issuer}.pem").read_bytes() if issuer else b""
    signer = serialization.load_pem_private_key(raw, None) if issuer else key
    signed_by = x509.load_pem_x509_certificate(raw).subject if issuer else subject
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signed_by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=not issuer, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(signer, hashes.SHA256())  # type: ignore[arg-type]
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / f"{name}.pem").write_bytes(pem + built.public_bytes(serialization.Encoding.PEM))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, issuer in (("ca", ""), ("other", ""), ("server", "ca"), ("node", "ca")):
        certify(tmp_path, name, issuer)
    return tmp_path


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    """A server that wants a certificate of our authority."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(BLOB)))
            self.end_headers()
            self.wfile.write(BLOB)

        def log_message(self, *rest: object) -> None:
            pass

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.pem"))
    context.load_cert_chain(folder / "server.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"https://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def fetch(url: str, tls: Tls) -> bytes:
    with Remote(url, tls=tls, pauses=()) as remote:
        return remote.fetch_blob("a", DIGEST, len(BLOB))


def test_a_server_of_the_named_authority_gets_our_certificate(folder: Path, url: str) -> None:
    assert fetch(url, Tls(folder / "ca.pem", folder / "node.pem")) == BLOB


@pytest.mark.parametrize(
    ("ca", "cert"),
    [("other.pem", "node.pem"), (None, "node.pem"), ("ca.pem", None), ("ca.pem", "other.pem")],
)
def test_who_is_not_believed_gets_and_gives_nothing(
    folder: Path, url: str, ca: str | None, cert: str | None
) -> None:
    tls = Tls(ca and folder / ca, cert and folder / cert)  # type: ignore[arg-type]
    with pytest.raises(RemoteError):
        fetch(url, tls)
