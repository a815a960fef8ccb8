"""A registry in the test's own process, with the faults and habits of those in the wild.

Small and strict where it matters: digests are checked, uploads are sessions, tags and digests name
manifests. Knobs are attributes; `log` has (method, path, headers) of each request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

INDEX = "application/vnd.oci.image.index.v1+json"
_PATH = re.compile(r"/v2/(.+)/(manifests|blobs|referrers|tags)/(.+)")


@dataclass
class FakeRegistry:
    referrers_api: bool = True
    told_type: str = ""  # of every referrer, whatever its manifest says
    knows_ranges: bool = True
    lists_repositories: bool = True
    login: str = ""  # user:password that it wants, or that its token server wants
    realm: str = ""  # of tokens; with it, `login` is for the token server
    page_size: int = 1000
    redirect: str = ""  # where blobs are read from
    upload_at: str = ""  # where uploads are sent to
    faults: list[tuple[str, int, dict[str, str]]] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)  # each blob answer breaks off after so many bytes
    upload_cuts: list[int] = field(default_factory=list)
    blobs: dict[str, dict[str, bytes]] = field(default_factory=dict)
    manifests: dict[str, dict[str, tuple[str, bytes]]] = field(default_factory=dict)
    uploads: dict[str, str] = field(default_factory=dict)
    log: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)  # scopes that were given out
    url: str = ""
    connection_count: int = 0
    down: bool = False
    checks_lists: bool = False  # refuses an index of manifests that it does not have
    tls: ssl.SSLContext | None = None
    refuse_after: int = -1  # writes that it takes before it refuses all others; -1: all

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def paths(self, method: str, part: str = "") -> list[str]:
        return [path for verb, path, _ in self.log if verb == method and part in path]

    def headers(self, part: str) -> list[dict[str, str]]:
        return [headers for _, path, headers in self.log if part in path]

    @contextmanager
    def serving(self) -> Iterator[FakeRegistry]:
        registry = self

        class Handler(_Handler):
            fake = registry

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        if self.tls is not None:
            server.socket = self.tls.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        self.url = f"http{'s' if self.tls else ''}://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeRegistry

    def setup(self) -> None:
        super().setup()
        self.fake.connection_count += 1

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _serve(self) -> None:
        fake = self.fake
        if fake.down:
            self.close_connection = True
            return
        fake.log.append((self.command, self.path, dict(self.headers)))
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        body = self._read_body()
        if self.command == "PUT" and fake.refuse_after >= 0:
            if fake.refuse_after == 0:
                self._answer(403)
                return
            fake.refuse_after -= 1
        for fault in fake.faults:
            if fault[0] in f"{self.command} {self.path}":
                fake.faults.remove(fault)
                self._answer(fault[1], b'{"errors":[{"code":"X","message":"fault"}]}', fault[2])
                return
        if parts.path == "/token":
            self._give_token(query)
            return
        if not self._is_allowed(parts.path):
            return
        if parts.path == "/v2/":
            self._answer(200, b"{}")
        elif parts.path == "/v2/_catalog" and fake.lists_repositories:
            self._page("repositories", sorted({*fake.blobs, *fake.manifests}), query)
        elif match := _PATH.fullmatch(parts.path):
            name, kind, rest = match.groups()
            getattr(self, f"_{kind}")(name, rest, query, body)
        else:
            self._answer(404)

    def _read_body(self) -> bytes:
        size = int(self.headers.get("Content-Length") or 0)
        if size and self.command == "PUT" and "/uploads/" in self.path and self.fake.upload_cuts:
            self.rfile.read(self.fake.upload_cuts.pop(0))
            self.close_connection = True
            self.connection.close()
            raise ConnectionAbortedError
        return self.rfile.read(size)

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, ValueError, OSError):
            self.close_connection = True

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None, cut: int = -1
    ) -> None:
        headers = headers or {}
        self.send_response(status)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut < 0 else body[:cut])
        if cut >= 0:
            self.close_connection = True

    # --- rights

    def _is_allowed(self, path: str) -> bool:
        fake = self.fake
        said = self.headers.get("Authorization", "")
        match = _PATH.fullmatch(path)
        name = match[1] if match else ""
        action = "pull" if self.command in ("GET", "HEAD") else "push"
        if fake.realm:
            scope = f"repository:{name}:{'pull' if action == 'pull' else 'pull,push'}"
            if said == f"Bearer {base64.b64encode(scope.encode()).decode()}":
                return True
            challenge = f'Bearer realm="{fake.realm}",service="fake",scope="{scope}"'
        elif fake.login:
            if said == f"Basic {base64.b64encode(fake.login.encode()).decode()}":
                return True
            challenge = 'Basic realm="fake registry"'
        else:
            return True
        self._answer(401, b"", {"WWW-Authenticate": challenge})
        return False

    def _give_token(self, query: dict[str, str]) -> None:
        fake = self.fake
        want = f"Basic {base64.b64encode(fake.login.encode()).decode()}"
        if fake.login and self.headers.get("Authorization") != want:
            self._answer(401)
            return
        scope = query.get("scope", "")
        fake.tokens.append(scope)
        self._answer(200, json.dumps({"token": base64.b64encode(scope.encode()).decode()}).encode())

    # --- content

    def _page(self, key: str, names: list[str], query: dict[str, str]) -> None:
        size = min(self.fake.page_size, int(query.get("n", 1000)))
        names = [name for name in names if name > query.get("last", "")]
        page, rest = names[:size], names[size:]
        path = urlsplit(self.path).path
        more = {"Link": f'<{path}?n={size}&last={page[-1]}>; rel="next"'} if rest else {}
        self._answer(200, json.dumps({key: page}).encode(), more)

    def _tags(self, name: str, rest: str, query: dict[str, str], body: bytes) -> None:
        if name not in self.fake.manifests:
            self._answer(404)
            return
        self._page("tags", sorted(t for t in self.fake.manifests[name] if ":" not in t), query)

    def _manifests(self, name: str, ref: str, query: dict[str, str], body: bytes) -> None:
        held = self.fake.manifests.get(name, {})
        if self.command == "PUT":
            held = self.fake.manifests.setdefault(name, {})
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
            listed = [one["digest"] for one in json.loads(body).get("manifests") or []]
            is_hollow = self.fake.checks_lists and not held.keys() >= set(listed)
            if (":" in ref and ref != digest) or is_hollow:
                self._answer(400)
                return
            held[digest] = held[ref] = (self.headers["Content-Type"], body)
            subject = json.loads(body).get("subject")
            more = {"OCI-Subject": subject["digest"]} if subject and self.fake.referrers_api else {}
            self._answer(201, b"", {"Docker-Content-Digest": digest, **more})
        elif ref in held:
            media_type, raw = held[ref]
            digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
            self._answer(200, raw, {"Content-Type": media_type, "Docker-Content-Digest": digest})
        else:
            self._answer(404)

    def _referrers(self, name: str, digest: str, query: dict[str, str], body: bytes) -> None:
        if not self.fake.referrers_api:
            self._answer(404)
            return
        found = []
        for key, (media_type, raw) in self.fake.manifests.get(name, {}).items():
            document = json.loads(raw)
            if ":" in key and (document.get("subject") or {}).get("digest") == digest:
                entry = {"mediaType": media_type, "digest": key, "size": len(raw)}
                told = self.fake.told_type or str(document.get("artifactType", ""))
                entry["artifactType"] = told
                found.append(entry | {"annotations": document.get("annotations") or {}})
        raw = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": found}).encode()
        self._answer(200, raw, {"Content-Type": INDEX})

    def _blobs(self, name: str, rest: str, query: dict[str, str], body: bytes) -> None:
        if rest.startswith("uploads/"):
            self._upload(name, rest.removeprefix("uploads/"), query, body)
        elif rest not in self.fake.blobs.get(name, {}):
            self._answer(404)
        elif self.fake.redirect and self.command == "GET":
            self._answer(307, b"", {"Location": f"{self.fake.redirect}{self.path}"})
        else:
            self._send_blob(self.fake.blobs[name][rest])

    def _send_blob(self, raw: bytes) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        status, more, data = 200, {}, raw
        if wanted and self.fake.knows_ranges:
            start, end = int(wanted[1]), min(int(wanted[2]) + 1, len(raw))
            data, status = raw[start:end], 206
            more = {"Content-Range": f"bytes {start}-{end - 1}/{len(raw)}"}
        cut = self.fake.cuts.pop(0) if self.fake.cuts and self.command == "GET" else -1
        self._answer(status, data, more, cut)

    def _upload(self, name: str, session: str, query: dict[str, str], body: bytes) -> None:
        fake = self.fake
        if self.command == "DELETE":
            fake.uploads.pop(session, None)
            self._answer(204)
        elif self.command == "POST":
            digest, source = query.get("mount", ""), query.get("from", "")
            if digest and digest in fake.blobs.get(source, {}):
                fake.blobs.setdefault(name, {})[digest] = fake.blobs[source][digest]
                self._answer(201)
                return
            session = str(len(fake.uploads) + 1)
            fake.uploads[session] = name
            where = f"{fake.upload_at}/v2/{name}/blobs/uploads/{session}?state=a%20b"
            self._answer(202, b"", {"Location": where})
        elif f"sha256:{hashlib.sha256(body).hexdigest()}" != query.get("digest"):
            self._answer(400, b'{"errors":[{"code":"DIGEST_INVALID","message":"wrong"}]}')
        else:
            fake.blobs.setdefault(name, {})[query["digest"]] = body
            self._answer(201)
