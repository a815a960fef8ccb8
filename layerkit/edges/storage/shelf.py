"""A shelf in a folder: a file for each entry, for as many servers as reach the folder.

Who puts holds the folder's lock, so that the size is kept within its limit by all together, and a
temp file that is seen under the lock is one that a crash left. A reader takes no lock: an entry
appears whole, and is checked as it is read. What was used is told by the time of its file.
A crash leaves at most one temp file, which the next `put` removes, and an empty file for each thing
that was being made. A claim is a lock on that file: the kernel drops it however its owner ends, so
what a killed server was making is another one's at once. Who lives and does not come to an end is
overtaken when the time of the claim is out.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from layerkit.edges.disk import Disk, HeldFile
from layerkit.edges.storage.room import TOUCH_SECONDS, make_room
from layerkit.errors import FormatError, LayerkitError
from layerkit.formats.shelf import HEADER, MAX_ENTRY_SIZE, name_entry, parse_entry, serialize_entry

__all__ = ["SHELF_SIZE", "FolderShelf"]

SHELF_SIZE: Final = 1 << 30  # bytes: some thousand updates of an edit each
_LOCK: Final = ".lock"
_CLAIM: Final = ".claim-"  # hidden, so that they are no entries
_log = logging.getLogger(__name__)


class FolderShelf:
    """The `Shelf` at `path`, made by the first `put`. `limit` is in bytes, of all its files."""

    def __init__(self, path: Path, disk: Disk | None = None, limit: int = SHELF_SIZE) -> None:
        self.path = path
        self.limit = limit
        self._disk = disk or Disk()
        self._guard = threading.Lock()
        self._held: dict[str, HeldFile] = {}  # our claims

    def get(self, key: str) -> bytes | None:
        path = self.path / name_entry(key)
        try:
            with path.open("rb") as file:
                info = os.fstat(file.fileno())
                if info.st_size > MAX_ENTRY_SIZE + HEADER.size:
                    raise FormatError(f"shelf entry: {info.st_size} bytes are over the limit")
                data = parse_entry(file.read(), key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            _log.warning("%s cannot be read: %s", path, exc.strerror)
            return None
        except FormatError as exc:
            _log.warning("%s is dropped: %s", path, exc.message)
            self._try(self._disk.remove, path)
            return None
        if time.time() - info.st_mtime > TOUCH_SECONDS:
            self._try(self._disk.touch, path)
        return data

    def put(self, key: str, data: bytes) -> None:
        raw = serialize_entry(key, data)
        if len(raw) > min(self.limit, MAX_ENTRY_SIZE):
            return
        try:
            self._disk.make_folder(self.path)
            with self._disk.lock(self.path / _LOCK, wait=True):
                make_room(self._disk, self.path, self.limit - len(raw))
                self._disk.write_atomic(self.path / name_entry(key), raw)
        except LayerkitError as exc:
            _log.warning("nothing is kept in %s: %s (%s)", self.path, exc.message, exc.cause)

    def claim(self, key: str, seconds: float) -> bool:
        path = self.path / f"{_CLAIM}{name_entry(key)}"
        try:
            self._disk.make_folder(self.path)
            held = self._disk.try_hold(path)
            if held is not None:
                with self._guard:
                    self._held[key] = held
                return True
            if 0 <= time.time() - path.stat().st_mtime < seconds:
                return False
            self._disk.touch(path)  # its owner is stuck; from now on it is ours
        except FileNotFoundError:
            return False  # it was given back just now: it is made, or free
        except (LayerkitError, OSError) as exc:
            _log.debug("no claims in %s: %s", self.path, exc)
        return True

    def release(self, key: str) -> None:
        with self._guard:
            held = self._held.pop(key, None)
        if held is not None:
            held.release()

    def _try(self, call: Callable[[Path], object], path: Path) -> None:
        try:
            call(path)
        except LayerkitError as exc:
            _log.debug("%s: %s", exc.message, exc.cause)
