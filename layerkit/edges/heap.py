"""The C heap of a process that lives long and makes large things in many threads.

glibc gives each thread an arena of its own, up to eight times the cores, and raises by itself the
size from which a block gets pages of its own (mallopt(3), M_MMAP_THRESHOLD: up to 32 MiB). A server
that makes deltas in turns of many threads then keeps, in each arena, what the largest of them took:
in an hour of new versions one grew by half a gigabyte that held no value (bench/soak.py).
"""

from __future__ import annotations

import ctypes
from typing import Final

__all__ = ["bound_heap"]

# Of glibc's malloc.h: what to set, and to what.
LIMITS: Final = {
    -8: 2,  # M_ARENA_MAX: threads hold the interpreter's lock while they allocate, but for kernels
    -3: 256 << 10,  # M_MMAP_THRESHOLD, bytes: larger blocks go back to the system when freed
    -1: 1 << 20,  # M_TRIM_THRESHOLD, bytes: of free memory at the end of an arena
}


def bound_heap() -> None:
    """Few arenas, and no large block in them, from now on. Where the C library is another (musl,
    macOS) nothing is set: those keep little by themselves."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for what, value in LIMITS.items():
            mallopt(what, value)
