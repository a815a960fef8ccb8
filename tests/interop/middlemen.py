"""What may stand between us and a real registry: a proxy with habits, a token server."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

HOP = {"connection", "transfer-encoding", "keep-alive", "date", "server", "content-length"}


class Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # who has enough hangs up
            super().handle()

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def listening(handler: type[Quiet]) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class Proxy:
    """Passes requests on to a registry, with one habit."""

    target: str
    habit: str  # "none", "whole", "busy" or "cut"
    host: str = ""
    blob_size: int = 0  # bytes of bodies of blobs that it sent
    ranges: int = 0  # requests that asked for a part
    faults: int = 0
    seen: set[str] = field(default_factory=set)
    waited: list[float] = field(default_factory=list)  # seconds from a 429 to the next try
    refused: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def serving(self) -> Iterator[Proxy]:
        proxy = self

        class Handler(_Passing):
            habits = proxy

        with listening(Handler) as port:
            self.host = f"127.0.0.1:{port}"
            yield self


class _Passing(Quiet):
    habits: Proxy
    _pool = urllib3.PoolManager(maxsize=8)

    def do_GET(self) -> None:
        proxy, what = self.habits, f"{self.command} {self.path}"
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if proxy.habit == "busy" and self._is_refused(what):
            return
        sent = {k: v for k, v in self.headers.items() if k.lower() not in HOP}
        proxy.ranges += "range" in {name.lower() for name in sent}
        if proxy.habit == "whole":
            sent = {k: v for k, v in sent.items() if k.lower() != "range"}
        url = f"http://{proxy.target}{self.path}"
        found = self._pool.request(
            self.command, url, body=body or None, headers=sent, redirect=False, retries=False
        )
        self.send_response(found.status)
        for name, value in found.headers.items():
            if name.lower() not in HOP:
                self.send_header(name, value)
        size = found.headers.get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", size or str(len(found.data)))
        self.end_headers()
        self._send_body(found.data)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _is_refused(self, what: str) -> bool:
        """The first time of each request: 429, and it wants a second of peace."""
        proxy, now = self.habits, time.monotonic()
        if what in proxy.refused:
            proxy.waited.append(now - proxy.refused.pop(what))
        if what in proxy.seen or len(proxy.seen) >= 3:
            return False
        proxy.seen.add(what)
        proxy.refused[what] = now
        proxy.faults += 1
        self.answer(429, b'{"errors":[{"code":"TOOMANYREQUESTS"}]}', Retry_After="1")
        return True

    def _send_body(self, data: bytes) -> None:
        proxy = self.habits
        is_blob = self.command == "GET" and "/blobs/" in self.path
        if proxy.habit == "cut" and is_blob and len(data) > 4096 and self.path not in proxy.seen:
            proxy.seen.add(self.path)
            proxy.faults += 1
            data = data[: len(data) // 2]
            self.close_connection = True
        proxy.blob_size += len(data) if is_blob else 0
        self.wfile.write(data)


@dataclass
class TokenServer:
    """Gives tokens of docker's kind (distribution's docs/spec/auth) to who knows the password."""

    certificate: Path
    key: Path
    login: str  # user:password
    audience: str = "registry"
    issuer: str = "here"
    port: int = 0
    asked: list[tuple[str, bool]] = field(default_factory=list)  # scope; with the right login?
    shown: list[str] = field(default_factory=list)  # Authorization headers that came

    @contextmanager
    def serving(self) -> Iterator[TokenServer]:
        tokens = self

        class Handler(Quiet):
            def do_GET(self) -> None:
                header = self.headers.get("Authorization", "")
                wanted = "Basic " + base64.b64encode(tokens.login.encode()).decode()
                scopes = parse_qs(urlsplit(self.path).query).get("scope", [])
                tokens.asked.append((" ".join(scopes), header == wanted))
                if header:
                    tokens.shown.append(header)
                if header != wanted:
                    self.answer(401, b"{}")
                    return
                said = {"token": tokens.make(scopes), "expires_in": 300}
                self.answer(200, json.dumps(said).encode(), Content_Type="application/json")

        with listening(Handler) as self.port:
            yield self

    def auth_config(self, realm_host: str = "127.0.0.1") -> str:
        """What a registry's configuration says of it."""
        realm = f"http://{realm_host}:{self.port}/token"
        return (
            f"auth: {{token: {{realm: '{realm}', service: {self.audience}, issuer: {self.issuer}, "
            f"rootcertbundle: {self.certificate}}}}}"
        )

    def make(self, scopes: list[str]) -> str:
        """A JWT (RFC 7519) signed ES256, its certificate in the header."""
        access = []
        for scope in " ".join(scopes).split():
            kind, name, actions = scope.split(":")
            access.append({"type": kind, "name": name, "actions": actions.split(",")})
        now = int(time.time())
        claims = {
            "iss": self.issuer, "sub": "me", "aud": self.audience, "jti": str(time.time_ns()),
            "exp": now + 300, "nbf": now - 10, "iat": now, "access": access,
        }  # fmt: skip
        der = x509.load_pem_x509_certificate(self.certificate.read_bytes()).public_bytes(
            serialization.Encoding.DER
        )
        head = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
        signed = ".".join(_plain(json.dumps(part).encode()) for part in (head, claims))
        key = serialization.load_pem_private_key(self.key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_plain(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _plain(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
