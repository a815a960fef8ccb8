"""Parts of an answer: Range headers to spans, spans to a multipart body. Spec: RFC 9110 section 14.

What is not understood is ignored, and the whole is sent, as the RFC asks; so are requests for more
bytes than the whole, which would only cost the server. Limit: MAX_SPAN_COUNT.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final

__all__ = ["Span", "find_spans", "multipart_heads", "multipart_size"]

MAX_SPAN_COUNT: Final = 16
_SPEC: Final = re.compile(r"(\d{0,18})-(\d{0,18})", re.ASCII)

Span = tuple[int, int]  # offset and size


def find_spans(header: str, size: int) -> list[Span] | None:
    """The spans that `header` asks for; None: send the whole; []: none of them exists (416)."""
    unit, equals, text = header.partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return None
    specs = [part.strip(" \t") for part in text.split(",")]
    specs = [part for part in specs if part]  # empty elements are allowed: RFC 9110 section 5.6.1
    if not 0 < len(specs) <= MAX_SPAN_COUNT:
        return None
    spans: list[Span] = []
    for spec in specs:
        match = _SPEC.fullmatch(spec)
        if match is None or spec == "-":
            return None
        first, last = match.groups()
        if not first:
            start, end = max(0, size - int(last)), size
        else:
            start, end = int(first), min(int(last) + 1, size) if last else size
            if last and int(last) < start:
                return None
        if start < end:
            spans.append((start, end - start))
    if len(spans) > 1 and sum(count for _, count in spans) > size:
        return None
    return spans


def _boundary(etag: str) -> str:
    """Follows from what is sent, and so is not in it."""
    return hashlib.sha256(b"boundary of " + etag.encode()).hexdigest()[:32]


def multipart_heads(
    spans: Sequence[Span], size: int, media_type: str, etag: str
) -> tuple[str, list[bytes], bytes]:
    """The content type, what goes before each span, and what goes last."""
    boundary = _boundary(etag)
    heads = [
        f"\r\n--{boundary}\r\ncontent-type: {media_type}\r\n"
        f"content-range: bytes {start}-{start + count - 1}/{size}\r\n\r\n".encode()
        for start, count in spans
    ]
    return f"multipart/byteranges; boundary={boundary}", heads, f"\r\n--{boundary}--\r\n".encode()


def multipart_size(spans: Sequence[Span], heads: Sequence[bytes], tail: bytes) -> int:
    """Bytes of the body."""
    return sum(count for _, count in spans) + sum(map(len, heads)) + len(tail)
