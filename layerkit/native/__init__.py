"""The compiled kernel: C for the hot loops of the address-free form, and its loader.

Not the rules themselves: each C function is the twin of a Python one in `formats/`, which is the
reference, runs wherever the shared object is missing, and is what the tests compare it with. The
shared object is compiled at install (tools/build_kernel.py). With `LAYERKIT_KERNEL=off` in the
environment it is left aside. Why: docs/decisions/0008-native-kernel.md.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

__all__ = ["SHARED_OBJECT", "VERSION", "load"]

# Of the functions and their arguments; a shared object of another version is left aside
VERSION: Final = 4
SHARED_OBJECT: Final = Path(__file__).parent / "_kernel.so"


def load() -> ctypes.CDLL | None:
    """The shared object; None where there is none that fits, or it is switched off."""
    if os.environ.get("LAYERKIT_KERNEL") == "off" or not SHARED_OBJECT.exists():
        return None
    try:
        library = ctypes.CDLL(str(SHARED_OBJECT))
        version = library.lk_version
    except (OSError, AttributeError):  # of another machine or C library, or of another time
        return None
    return library if version() == VERSION else None
