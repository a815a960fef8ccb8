"""A folder of files that may go: within a size, what was used longest ago goes first."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from layerkit.edges.disk import TEMP_PREFIX, Disk

__all__ = ["TOUCH_SECONDS", "make_room"]

TOUCH_SECONDS: Final = 60.0  # a file that was used this recently is not touched again
MAX_FILE_COUNT: Final = 65_536  # listing them takes 0.1 s


def make_room(
    disk: Disk, folder: Path, limit: int, *, temp_seconds: float = 0.0, keep_seconds: float = 0.0
) -> None:
    """Remove files until those that stay have `limit` bytes at most. Goes, too: a temp file of at
    least `temp_seconds`. Stays: what was used within `keep_seconds`. Hidden files are not seen."""
    now = time.time()
    found: list[tuple[float, str, int]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            info = entry.stat(follow_symlinks=False)
            if entry.name.startswith(TEMP_PREFIX):
                if now - info.st_mtime >= temp_seconds:
                    disk.remove(folder / entry.name)
            elif not entry.name.startswith("."):
                found.append((info.st_mtime, entry.name, info.st_size))
    found.sort(reverse=True)
    total = sum(size for _, _, size in found)
    while found and (total > limit or len(found) > MAX_FILE_COUNT):
        used, name, size = found.pop()
        if now - used < keep_seconds:
            return
        disk.remove(folder / name)
        total -= size
