"""The HTTP edge of the chunk server: requests to calls of a `Source`, errors to documents.

Two surfaces (docs/design.md "Server surface"): the pull part of the OCI distribution spec, so that
an ordinary engine can pull plainly, and chunks by id. What lies where is the source's business;
nothing is served but through a repository that holds it. Limits: bodies (MAX_REQUEST_SIZE), body
time (BODY_SECONDS), connections (MAX_CONNECTIONS), header size; the rest is refused with 4xx.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from layerkit.digest import Digest
from layerkit.errors import FormatError, LayerkitError, NotFoundError, RemoteLimitError, UsageError
from layerkit.formats.chunksync import (
    CHANGE_TYPE,
    MAX_HAVE_SIZE,
    MAX_PLACES_SIZE,
    Have,
    parse_have,
)
from layerkit.formats.formpack import PACKED_TYPE
from layerkit.formats.oci import (
    INDEX,
    Descriptor,
    Index,
    Platform,
    parse_platform,
    serialize_index,
    serialize_json,
)
from layerkit.formats.protocol import (
    BATCH_TYPE,
    MAX_REQUEST_SIZE,
    Problem,
    parse_chunk_request,
    serialize_chunk_batch,
    serialize_errors,
)
from layerkit.formats.reference import is_repository, is_tag
from layerkit.formats.update import MAX_HAVE_COUNT, UPDATE_TYPE

__all__ = ["RunningServer", "Source", "make_app", "run_server", "start_server"]

BODY_SECONDS: Final = 30.0  # a node sends at most 2 MiB of ids; slower ones are let go
KEEP_ALIVE_SECONDS: Final = 15
SHUTDOWN_SECONDS: Final = 10  # how long running answers may take after a stop
MAX_CONNECTIONS: Final = 2048
MAX_HEAD_SIZE: Final = 16 << 10  # bytes of a request's head
MAX_TAGS: Final = 10_000
IMMUTABLE: Final = "public, max-age=31536000, immutable"
_RANGE: Final = re.compile(r"bytes=(\d*-\d*)(,\s*\d*-\d*){0,15}")
_log = logging.getLogger(__name__)


class Source(Protocol):
    """What the server serves. All calls may block, and raise NotFoundError for what is absent."""

    def list_tags(self, name: str) -> list[str]: ...

    def read_manifest(self, name: str, ref: str) -> tuple[Descriptor, bytes]:
        """A manifest or index of repository `name`, by tag or digest."""

    def find_blob(self, name: str, digest: Digest) -> Path:
        """The file of a blob that repository `name` holds."""

    def list_referrers(self, name: str, digest: Digest) -> Sequence[Descriptor]: ...

    def read_chunk(self, name: str, chunk: Digest) -> bytes | memoryview | None:
        """A chunk of an image of repository `name`; None if it holds no such chunk."""

    def has_repository(self, name: str) -> bool: ...

    def read_change(self, name: str, digest: Digest, have: Have) -> bytes:
        """A chunk manifest of repository `name`, as a change of what the node holds."""

    def read_packed(self, name: str, digest: Digest) -> bytes:
        """The form of a form blob of repository `name`, packed; NotFoundError while it is not."""

    def read_listed(
        self, name: str, digest: Digest, raw_places: bytes, near: Digest | None
    ) -> Iterator[bytes]:
        """A chunk batch of the chunks at these places of a chunk manifest of `name`."""

    def read_update(
        self, name: str, ref: str, have: Sequence[Digest], platform: Platform
    ) -> tuple[Digest, bytes | None]:
        """What `ref` names now, and an update to it from one of `have`, if there is one."""


def make_app(source: Source) -> Starlette:
    """The ASGI application over `source`."""
    routes = [
        Route("/healthz", _healthz),
        Route("/v2/", _ping),
        Route("/v2", _ping),
        Route("/v2/{name:path}/manifests/{ref}", _Manifests(source).get),
        Route("/v2/{name:path}/blobs/{digest}", _Blobs(source).get),
        Route("/v2/{name:path}/referrers/{digest}", _Referrers(source).get),
        Route("/v2/{name:path}/tags/list", _Tags(source).get),
        Route("/v1/{name:path}/updates/{ref}", _Updates(source).get),
        Route("/v1/{name:path}/chunk-manifests/{digest}", _Listed(source).change, methods=["POST"]),
        Route(
            "/v1/{name:path}/chunk-manifests/{digest}/chunks",
            _Listed(source).get_chunks,
            methods=["POST"],
        ),
        Route("/v1/{name:path}/packed-forms/{digest}", _Listed(source).get_packed),
        Route("/v1/{name:path}/chunks/{id}", _Chunks(source).get_one),
        Route("/v1/{name:path}/chunks", _Chunks(source).get_many, methods=["POST"]),
    ]
    handlers = {
        LayerkitError: _on_layerkit_error,
        HTTPException: _on_http_error,
        Exception: _on_bug,
    }
    return Starlette(routes=routes, exception_handlers=handlers)  # type: ignore[arg-type]


async def _healthz(_: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _ping(_: Request) -> Response:
    headers = {"docker-distribution-api-version": "registry/2.0"}
    return Response(b"{}", media_type="application/json", headers=headers)


@dataclass(frozen=True, slots=True)
class _Manifests:
    source: Source

    def get(self, request: Request) -> Response:
        name, ref = _name(request), request.path_params["ref"]
        if ":" in ref:
            _digest(ref, "sha256")
        elif not is_tag(ref):
            raise UsageError(f"{ref[:140]!r} is not a tag")
        descriptor, data = self.source.read_manifest(name, ref)
        headers = {
            "docker-content-digest": str(descriptor.digest),
            "etag": f'"{descriptor.digest}"',
            "cache-control": IMMUTABLE if ":" in ref else "no-cache",
        }
        if _is_known(request, descriptor.digest):
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=descriptor.media_type, headers=headers)


@dataclass(frozen=True, slots=True)
class _Blobs:
    source: Source

    def get(self, request: Request) -> Response:
        digest = _digest(request.path_params["digest"], "sha256")
        path = self.source.find_blob(_name(request), digest)
        headers = {
            "docker-content-digest": str(digest),
            "etag": f'"{digest}"',
            "cache-control": IMMUTABLE,
            "accept-ranges": "bytes",
        }
        if _is_known(request, digest):
            return Response(status_code=304, headers=headers)
        wanted = request.headers.get("range", "")
        if wanted and not _RANGE.fullmatch(wanted):
            raise UsageError(f"{wanted[:80]!r} is not a range of bytes")
        return FileResponse(path, media_type="application/octet-stream", headers=headers)


@dataclass(frozen=True, slots=True)
class _Referrers:
    source: Source

    def get(self, request: Request) -> Response:
        digest = _digest(request.path_params["digest"], "sha256")
        found = self.source.list_referrers(_name(request), digest)
        wanted = request.query_params.get("artifactType", "")
        headers = {"cache-control": "no-cache"}
        if wanted:
            found = [entry for entry in found if entry.artifact_type == wanted]
            headers["oci-filters-applied"] = "artifactType"
        return Response(serialize_index(Index(tuple(found))), media_type=INDEX, headers=headers)


@dataclass(frozen=True, slots=True)
class _Tags:
    source: Source

    def get(self, request: Request) -> Response:
        name = _name(request)
        tags = sorted(self.source.list_tags(name))
        last = request.query_params.get("last", "")
        tags = [tag for tag in tags if tag > last] if last else tags
        raw_count = request.query_params.get("n", str(MAX_TAGS))
        if not (raw_count.isascii() and raw_count.isdigit() and len(raw_count) < 10):
            raise UsageError(f"n={raw_count[:20]!r} is not a number")
        body = serialize_json({"name": name, "tags": tags[: min(int(raw_count), MAX_TAGS)]})
        return Response(body, media_type="application/json")


@dataclass(frozen=True, slots=True)
class _Updates:
    source: Source

    def get(self, request: Request) -> Response:
        """`?from=` digests of images that the node holds, `&platform=`: one stream, or 304 when the
        reference still names the first of them."""
        name, ref = _name(request), request.path_params["ref"]
        if ":" in ref:
            _digest(ref, "sha256")
        elif not is_tag(ref):
            raise UsageError(f"{ref[:140]!r} is not a tag")
        texts = request.query_params.get("from", "").split(",")
        if len(texts) > MAX_HAVE_COUNT:
            raise UsageError(f"{len(texts)} images in from=, want <= {MAX_HAVE_COUNT}")
        have = [_digest(text, "sha256") for text in texts]
        platform = parse_platform(request.query_params.get("platform", "linux/amd64"))
        digest, raw = self.source.read_update(name, ref, have, platform)
        headers = {"etag": f'"{digest}"', "cache-control": "no-cache", "vary": "accept"}
        if digest == have[0]:
            return Response(status_code=304, headers=headers)
        if raw is None:
            raise NotFoundError(f"no update of {name}:{ref[:140]} from these images")
        return Response(raw, media_type=UPDATE_TYPE, headers=headers)


@dataclass(frozen=True, slots=True)
class _Chunks:
    source: Source

    def get_one(self, request: Request) -> Response:
        chunk = _digest(request.path_params["id"], "b3")
        data = self.source.read_chunk(_name(request), chunk)
        if data is None:
            raise NotFoundError(f"chunk {chunk.short} is not held here")
        headers = {"etag": f'"{chunk}"', "cache-control": IMMUTABLE}
        if _is_known(request, chunk):
            return Response(status_code=304, headers=headers)
        return Response(bytes(data), media_type="application/octet-stream", headers=headers)

    async def get_many(self, request: Request) -> Response:
        name = _name(request)
        body = await _read_body(request, MAX_REQUEST_SIZE)
        ids = parse_chunk_request(body)
        if not await run_in_threadpool(self.source.has_repository, name):
            raise NotFoundError(f"repository {name} is not held here")

        def chunks() -> Iterator[bytes | memoryview | None]:
            for chunk in ids:
                yield self.source.read_chunk(name, chunk)

        answer = serialize_chunk_batch(chunks(), len(ids))
        first = await run_in_threadpool(next, answer, b"")  # errors before the status line

        def parts() -> Iterator[bytes]:
            yield first
            yield from answer

        return StreamingResponse(parts(), media_type=BATCH_TYPE)


@dataclass(frozen=True, slots=True)
class _Listed:
    """Forms for who holds nothing; chunk manifests and chunks by place for who holds others."""

    source: Source

    async def change(self, request: Request) -> Response:
        name, digest = _name(request), _digest(request.path_params["digest"], "sha256")
        have = parse_have(await _read_body(request, MAX_HAVE_SIZE))
        raw = await run_in_threadpool(self.source.read_change, name, digest, have)
        return Response(raw, media_type=CHANGE_TYPE)

    def get_packed(self, request: Request) -> Response:
        name, digest = _name(request), _digest(request.path_params["digest"], "sha256")
        headers = {"cache-control": IMMUTABLE}
        raw = self.source.read_packed(name, digest)
        return Response(raw, media_type=PACKED_TYPE, headers=headers)

    async def get_chunks(self, request: Request) -> Response:
        """Body: places in the chunk manifest; `?near=` a chunk manifest that the node holds."""
        name, digest = _name(request), _digest(request.path_params["digest"], "sha256")
        text = request.query_params.get("near", "")
        near = _digest(text, "sha256") if text else None
        body = await _read_body(request, MAX_PLACES_SIZE)
        answer = await run_in_threadpool(self.source.read_listed, name, digest, body, near)
        first = await run_in_threadpool(next, answer, b"")  # errors before the status line

        def parts() -> Iterator[bytes]:
            yield first
            yield from answer

        return StreamingResponse(parts(), media_type=BATCH_TYPE)


def _name(request: Request) -> str:
    name = str(request.path_params["name"])
    if not is_repository(name):
        raise UsageError(f"{name[:120]!r} is not a repository name")
    return name


def _digest(text: str, algorithm: str) -> Digest:
    try:
        digest = Digest.parse(text)
    except FormatError as exc:
        raise UsageError(f"{text[:80]!r} is not a digest") from exc
    if digest.algorithm != algorithm:
        raise UsageError(f"{digest.short} is not a {algorithm} digest")
    return digest


def _is_known(request: Request, digest: Digest) -> bool:
    """Does the client already have `digest`?"""
    known = request.headers.get("if-none-match", "")
    return any(part.strip().removeprefix("W/") == f'"{digest}"' for part in known.split(","))


async def _read_body(request: Request, limit: int) -> bytes:
    """The body, refused as soon as it is too long or too slow."""
    declared = request.headers.get("content-length", "0")
    if not (declared.isascii() and declared.isdigit()) or int(declared[:20]) > limit:
        raise RemoteLimitError(f"request body of {declared[:20]} bytes is over {limit}")
    body = bytearray()

    async def read() -> None:
        async for part in request.stream():
            body.extend(part)
            if len(body) > limit:
                raise RemoteLimitError(f"request body is over {limit} bytes")

    try:
        await asyncio.wait_for(read(), BODY_SECONDS)
    except TimeoutError as exc:
        raise RemoteLimitError(f"request body takes over {BODY_SECONDS:.0f} seconds") from exc
    return bytes(body)


def _problem(status: int, code: str, message: str, detail: str = "") -> Response:
    body = serialize_errors(Problem(code, message, detail))
    return Response(body, status_code=status, media_type="application/json")


async def _on_layerkit_error(_: Request, exc: LayerkitError) -> Response:
    if exc.http_status >= 500:
        _log.warning("%s (%s)", exc.message, exc.cause)
    return _problem(exc.http_status, exc.code, exc.message)


async def _on_http_error(_: Request, exc: HTTPException) -> Response:
    code = {404: "NOT_FOUND", 405: "UNSUPPORTED", 416: "RANGE_INVALID"}.get(exc.status_code, "")
    return _problem(exc.status_code, code or "USAGE_INVALID", str(exc.detail).lower())


async def _on_bug(request: Request, exc: Exception) -> Response:
    _log.error("cannot answer %s", request.url.path, exc_info=exc)
    return _problem(500, "UNKNOWN", "the server has a bug; its log says more")


# --- running ---------------------------------------------------------------------------------


def _make_server(app: Starlette) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        h11_max_incomplete_event_size=MAX_HEAD_SIZE,
        http="h11",
        ws="none",
    )
    return uvicorn.Server(config)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as exc:
        raise UsageError(
            f"cannot listen on {host}:{port}", cause=str(exc), hint="choose another --listen"
        ) from exc
    sock.setblocking(False)
    return sock


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run_server(app: Starlette, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; running answers are finished. `ready` gets the URL."""
    with _bind(host, port) as sock:
        ready(_url(sock))
        _make_server(app).run(sockets=[sock])


class RunningServer:
    """A server in a thread of this process."""

    def __init__(self, app: Starlette, host: str, port: int) -> None:
        self._sock = _bind(host, port)
        self.url = _url(self._sock)
        self._server = _make_server(app)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._sock]}, daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Finish running answers, then end."""
        self._server.should_exit = True
        self._thread.join(SHUTDOWN_SECONDS + 5)
        self._sock.close()

    def __enter__(self) -> RunningServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_server(app: Starlette, host: str = "127.0.0.1", port: int = 0) -> RunningServer:
    """Serve in the background; the URL is known at once, port 0 takes a free one."""
    return RunningServer(app, host, port)
