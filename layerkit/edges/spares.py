"""Spare trees: the files of the lower layers of images, made in idle time, so that a new version of
the same lower layers writes only what lies above them.

    ROOT/.tmp-spares/<key>/     key: digest of the diff_ids of these layers, lowest first

A spare is taken by a rename, so it serves one version, is never shared and nobody's links lead
there. It is only as good as who made it, in the life of one agent: the next one removes the folder
first. At most MAX_COUNT are kept, the oldest go.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

from layerkit.digest import Digest, sha256_digest
from layerkit.edges.disk import TEMP_PREFIX, Disk
from layerkit.errors import LayerkitError

__all__ = ["Spares"]

FOLDER_NAME: Final = f"{TEMP_PREFIX}spares"
MAX_COUNT: Final = 8  # each takes what the lower layers of an image take


class Spares:
    """The spares under one root; several processes may take and put at once."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self.folder = root / FOLDER_NAME
        self._disk = disk

    def has(self, diff_ids: Sequence[Digest]) -> bool:
        return self._path(diff_ids).is_dir()

    def take(self, diff_ids: Sequence[Digest], place: Path) -> int:
        """Move the tree of as many of the lowest of these layers as there is one of to `place`,
        which is not there yet. Returns the count of the layers, 0 for none."""
        for count in range(len(diff_ids) - 1, 0, -1):
            spare = self._path(diff_ids[:count])
            if spare.is_dir():
                with contextlib.suppress(LayerkitError):  # another process was quicker
                    self._disk.act("rename", place, partial(os.rename, spare, place))
                    return count
        return 0

    def put(self, diff_ids: Sequence[Digest], made: Path) -> None:
        """Keep the tree `made`, of exactly these layers; nothing if there is one."""
        self._disk.make_folder(self.folder, 0o700)
        if self.has(diff_ids):
            return
        self._disk.act("rename", made, partial(os.rename, made, self._path(diff_ids)))
        self._make_room()

    def clear(self) -> None:
        """Remove all of them."""
        if self.folder.is_dir():
            self._disk.remove_tree(self.folder)

    def _make_room(self) -> None:
        """Those that were put first go: a rename sets the time of a folder."""
        found = [(entry.stat().st_ctime_ns, entry.path) for entry in os.scandir(self.folder)]
        for _, path in sorted(found)[:-MAX_COUNT]:
            gone = self.folder / f"{TEMP_PREFIX}{secrets.token_hex(8)}"
            with contextlib.suppress(LayerkitError):
                self._disk.act("rename", gone, partial(os.rename, path, gone))
                self._disk.remove_tree(gone)

    def _path(self, diff_ids: Sequence[Digest]) -> Path:
        return self.folder / sha256_digest("\n".join(map(str, diff_ids)).encode()).hex
