"""Bytes that are made in place, so that a large value is in memory once while it is made.

`b"".join` holds all parts and the whole. `join_bytes` lets each part go before the next is made,
`fill_bytes` has the bytes written into a view. What both lean on: `io.BytesIO` gives its own buffer
out of `getvalue`, without a copy, when nobody else looks at it (CPython 3.5 to 3.14,
Modules/_io/bytesio.c); elsewhere it costs a copy and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from io import BytesIO

__all__ = ["fill_bytes", "join_bytes"]


def join_bytes(parts: Iterable[bytes | memoryview]) -> bytes:
    """All parts, end to end. Memory: the result, an eighth of address space more, and one part."""
    file = BytesIO()
    for part in parts:
        file.write(part)
    return file.getvalue()


def fill_bytes(size: int, fill: Callable[[memoryview], None]) -> bytes:
    """`size` bytes as `fill` leaves them, which gets them as zeros and keeps no view of them."""
    file = BytesIO()
    if size:
        file.seek(size - 1)
        file.write(b"\0")
    fill(file.getbuffer())
    return file.getvalue()
