"""An answer as a value, and what becomes of it on the wire: caching headers, 304, parts, sizes.

Every answer passes through `finish`, so conditional requests, ranges and caching are in one place.
Spec: RFC 9110 sections 13 (conditional requests) and 14 (ranges), RFC 9111, RFC 8246 (immutable).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from layerkit.edges.http.ranges import find_spans, multipart_heads, multipart_size
from layerkit.edges.http.source import Blob, Joined
from layerkit.formats.protocol import Problem, serialize_errors
from layerkit.formats.update import Share

__all__ = [
    "IMMUTABLE",
    "NEVER",
    "REVALIDATE",
    "Answer",
    "Piece",
    "Reply",
    "body_etag",
    "cut",
    "finish",
    "problem",
]

YEAR: Final = 31_536_000  # seconds
IMMUTABLE: Final = f"max-age={YEAR}, immutable"  # named by its digest
REVALIDATE: Final = "no-cache"  # may be kept, is to be asked for again
NEVER: Final = "no-store"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler gives back. `etag` (strong, without quotes) makes it conditional; of a body
    that is no iterator parts can be asked for."""

    body: bytes | Blob | Joined | Iterator[bytes] = b""
    media_type: str = "application/octet-stream"
    status: int = 200
    etag: str = ""
    cache: str = REVALIDATE
    headers: tuple[tuple[str, str], ...] = ()
    shares: tuple[Share, ...] = ()
    is_final: bool = False  # the same request gets the same bytes while the source stands still
    is_scoped: bool = True  # depends on who asks, where the server asks for tokens


Piece = bytes | memoryview | tuple[Blob, int, int]  # bytes, or offset and size in a blob


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to one request: status, headers, and what is sent; `size` is None while unknown."""

    status: int
    headers: list[tuple[bytes, bytes]]
    pieces: tuple[Piece, ...] | Iterator[bytes]
    size: int | None
    shares: tuple[Share, ...]


def problem(
    status: int, code: str, message: str, headers: tuple[tuple[str, str], ...] = ()
) -> Answer:
    """An error document."""
    body = serialize_errors(Problem(code, message, ""))
    return Answer(body, "application/json", status, cache=NEVER, headers=headers)


def finish(answer: Answer, method: str, asked: Mapping[str, str], is_private: bool) -> Reply:
    """`asked` are the request's headers; `is_private`: this server asks for tokens."""
    headers = [*answer.headers, ("cache-control", _cache_control(answer, is_private))]
    if is_private and answer.is_scoped:
        headers.append(("vary", "authorization"))
    if answer.etag:
        headers.append(("etag", f'"{answer.etag}"'))
    if answer.etag and answer.status == 200 and _is_known(asked, answer.etag):
        return Reply(304, _encode(headers), (), None, ())
    if answer.status == 304:
        return Reply(304, _encode(headers), (), None, ())
    body = answer.body
    if not isinstance(body, bytes | Blob | Joined):
        headers.append(("content-type", answer.media_type))
        return Reply(answer.status, _encode(headers), body, None, answer.shares)
    size = len(body) if isinstance(body, bytes) else body.size
    if answer.etag and answer.status == 200:
        headers.append(("accept-ranges", "bytes"))
        if method == "GET" and "range" in asked and _same_still(asked, answer.etag):
            parts = _finish_parts(answer, body, size, asked["range"], headers)
            if parts is not None:
                return parts
    headers += [("content-type", answer.media_type), ("content-length", str(size))]
    return Reply(answer.status, _encode(headers), cut(body, 0, size), size, answer.shares)


def _finish_parts(
    answer: Answer,
    body: bytes | Blob | Joined,
    size: int,
    wanted: str,
    headers: list[tuple[str, str]],
) -> Reply | None:
    """206 or 416; None: the header is to be ignored."""
    spans = find_spans(wanted, size)
    if spans is None:
        return None
    if not spans:
        refusal = problem(416, "RANGE_INVALID", f"no such bytes: there are {size}")
        refusal = replace(refusal, headers=(("content-range", f"bytes */{size}"),))
        return finish(refusal, "GET", {}, False)
    pieces: list[Piece]
    if len(spans) == 1:
        start, count = spans[0]
        headers += [
            ("content-type", answer.media_type),
            ("content-range", f"bytes {start}-{start + count - 1}/{size}"),
        ]
        pieces, total = [*cut(body, start, count)], count
    else:
        media_type, heads, tail = multipart_heads(spans, size, answer.media_type, answer.etag)
        headers.append(("content-type", media_type))
        pieces = []
        for head, (start, count) in zip(heads, spans, strict=True):
            pieces += [head, *cut(body, start, count)]
        pieces.append(tail)
        total = multipart_size(spans, heads, tail)
    headers.append(("content-length", str(total)))
    shares = tuple(_scaled(share, total, size) for share in answer.shares)
    return Reply(206, _encode(headers), tuple(pieces), total, shares)


def _scaled(share: Share, part: int, whole: int) -> Share:
    """The share of a part of an answer: what it saves is counted with its bytes."""
    sent = share.sent_size * part // max(whole, 1)
    return Share(share.role, sent, share.whole_size * part // max(whole, 1))


def cut(body: bytes | Blob | Joined, start: int, count: int) -> tuple[Piece, ...]:
    """`count` bytes of a body from `start` on; those in memory are not copied."""
    if isinstance(body, Blob):
        return ((body, start, count),)
    if isinstance(body, bytes):
        return (body if count == len(body) else memoryview(body)[start : start + count],)
    found: list[Piece] = []
    for part in body.parts:
        size = len(part) if isinstance(part, bytes) else part.size
        if start < size and count > 0:
            some = min(count, size - start)
            found += cut(part, start, some)
            count -= some
        start = max(0, start - size)
    return tuple(found)


def _cache_control(answer: Answer, is_private: bool) -> str:
    if answer.cache == NEVER or not answer.is_scoped:
        return answer.cache
    return f"{'private' if is_private else 'public'}, {answer.cache}"


def _is_known(asked: Mapping[str, str], etag: str) -> bool:
    """Does who asks have it? Weak comparison: RFC 9110 section 13.1.2."""
    known = asked.get("if-none-match", "")
    if not known:
        return False
    parts = [part.strip(" \t").removeprefix("W/") for part in known.split(",")]
    return "*" in parts or f'"{etag}"' in parts


def _same_still(asked: Mapping[str, str], etag: str) -> bool:
    """Strong comparison: RFC 9110 section 13.1.5. A date never matches: we send none."""
    return asked.get("if-range", f'"{etag}"').strip(" \t") == f'"{etag}"'


def _encode(headers: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]


def body_etag(raw: bytes) -> str:
    """An etag for bytes that no digest names."""
    return hashlib.sha256(raw).hexdigest()[:32]
