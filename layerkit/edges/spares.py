"""What the next version of an image starts with, made in idle time: the files of its lower layers
as a tree, so that only what lies above is written; and old forms, whole, which a delta builds on.

    FOLDER/<key>-<seal>/     key: digest of the diff_ids of these layers, lowest first
    FOLDER/<digest>.form     of a form that the store has in thousands of chunks: read in a
                             quarter of the time

A spare is taken by a rename, so it serves one tree, is never shared and nobody's links lead there.
Why not hard links, which serve many: who writes into one tree would write into all of them, and
into what the next version is made from (docs/decisions). The seal is over what `lstat` says of
everything in the tree: a spare that somebody has written into is removed, never used. At most
`most` are kept, the oldest go. A form is nobody's only copy: it is checked when it is read, and one
that is damaged is as good as none. Spec: docs/design.md "File trees".
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from layerkit.digest import Digest, chunk_id, sha256_digest
from layerkit.edges.disk import TEMP_PREFIX, Disk
from layerkit.errors import LayerkitError

__all__ = ["MAX_COUNT", "VERSIONS_NAME", "Spares"]

VERSIONS_NAME: Final = f"{TEMP_PREFIX}spares"  # beside an agent's versions
MAX_COUNT: Final = 8  # each takes what the lower layers of an image take
FORM_SUFFIX: Final = ".form"
MAX_FORM_SIZE: Final = 128 << 20  # bytes of one form; a larger one is read from the store
FORMS_SIZE: Final = 256 << 20  # bytes of all of them
TAKEN_SECONDS: Final = 3600.0  # after which what was taken, and not used, is what a crash left


class Spares:
    """The spares in one folder; several processes may take and put at once."""

    def __init__(self, folder: Path, disk: Disk, most: int = MAX_COUNT) -> None:
        self.folder = folder
        self._disk = disk
        self._most = most

    def has(self, diff_ids: Sequence[Digest]) -> bool:
        return self._find(diff_ids) is not None

    def fits(self, target: Path) -> bool:
        """Can a spare be renamed to `target`, on the same filesystem?"""
        parent = target.absolute().parent
        while not parent.exists():
            parent = parent.parent
        folder = self.folder if self.folder.exists() else self.folder.parent
        return folder.exists() and folder.stat().st_dev == parent.stat().st_dev

    def take(self, diff_ids: Sequence[Digest]) -> tuple[int, Path | None]:
        """The tree of as many of the lowest of these layers as there is one of, but not all, for
        the caller alone, who moves or removes it. The count of its layers; 0 and None for none."""
        for count in range(len(diff_ids) - 1, 0, -1):
            spare = self._find(diff_ids[:count])
            if spare is None:
                continue
            place = self.folder / f"{TEMP_PREFIX}{secrets.token_hex(8)}"
            with contextlib.suppress(LayerkitError, OSError):  # another process was quicker
                self._disk.act("rename", place, partial(os.rename, spare, place))
                if spare.name.endswith(f"-{_seal(place)}"):
                    return count, place
                self._disk.remove_tree(place)  # somebody has been in it
        return 0, None

    def put(self, diff_ids: Sequence[Digest], made: Path) -> None:
        """Keep the tree `made`, durable and of exactly these layers; nothing if there is one."""
        self._disk.make_folder(self.folder, 0o700)
        if self.has(diff_ids):
            return
        spare = self.folder / f"{_key(diff_ids)}-{_seal(made)}"
        self._disk.act("rename", made, partial(os.rename, made, spare))
        self._make_room()

    def has_form(self, digest: Digest, size: int) -> bool:
        """Is the form here, or too large to be kept?"""
        return size > MAX_FORM_SIZE or self._form(digest).exists()

    def read_form(self, digest: Digest) -> bytes | None:
        """The form with this digest, verified; None where it is not here."""
        try:
            data = self._form(digest).read_bytes()
        except OSError:
            return None
        if sha256_digest(data) == digest:
            return data
        with contextlib.suppress(LayerkitError):
            self._disk.remove(self._form(digest))
        return None

    def put_form(self, digest: Digest, data: bytes) -> None:
        """Keep a form; those that were put first go."""
        self._disk.make_folder(self.folder, 0o700)
        self._disk.write_atomic(self._form(digest), data, 0o600)
        found = []
        for path in self.folder.glob(f"*{FORM_SUFFIX}"):
            with contextlib.suppress(OSError):
                info = path.stat(follow_symlinks=False)
                found.append((info.st_mtime_ns, info.st_size, path))
        left = FORMS_SIZE
        for number, (_, size, path) in enumerate(sorted(found, reverse=True)):
            left -= size
            if left < 0 or number >= self._most:
                self._disk.remove(path)

    def _form(self, digest: Digest) -> Path:
        return self.folder / f"{digest.hex}{FORM_SUFFIX}"

    def clear(self) -> None:
        """Remove all of them."""
        if self.folder.is_dir():
            self._disk.remove_tree(self.folder)

    def _find(self, diff_ids: Sequence[Digest]) -> Path | None:
        start = f"{_key(diff_ids)}-"
        with contextlib.suppress(OSError):
            for name in sorted(os.listdir(self.folder)):
                if name.startswith(start):
                    return self.folder / name
        return None

    def _make_room(self) -> None:
        """Those that were put first go: a rename sets the time of a folder."""
        kept, gone = [], []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(OSError):
                at = entry.stat(follow_symlinks=False).st_ctime
                if entry.name.endswith(FORM_SUFFIX):
                    continue
                if not entry.name.startswith(TEMP_PREFIX):
                    kept.append((at, entry.path))
                elif at < time.time() - TAKEN_SECONDS:
                    gone.append(entry.path)
        gone += [path for _, path in sorted(kept)[: -self._most]]
        for path in gone:
            away = self.folder / f"{TEMP_PREFIX}{secrets.token_hex(8)}"
            with contextlib.suppress(LayerkitError):
                self._disk.act("rename", away, partial(os.rename, path, away))
                self._disk.remove_tree(away)


def _key(diff_ids: Sequence[Digest]) -> str:
    return sha256_digest("\n".join(map(str, diff_ids)).encode()).hex


def _seal(root: Path) -> str:
    """32 hexadecimal digits over names and what `lstat` says of them: any write or change of mode
    changes a ctime, which nobody can set. The root's own is left out, for a rename sets it."""
    lines = sorted(
        f"{path}\0{info.st_mode:o} {info.st_nlink} {info.st_uid} {info.st_gid} {info.st_ino}"
        f" {info.st_size if stat.S_ISREG(info.st_mode) else 0}"
        f" {info.st_mtime_ns} {info.st_ctime_ns}"
        for path, info in _walk(root)
    )
    return chunk_id("\n".join(lines).encode("utf-8", "surrogateescape")).hex[:32]


def _walk(root: Path, below: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Paths below `root`, relative to it, and their facts."""
    with os.scandir(root / below) as entries:
        for entry in entries:
            path = f"{below}{entry.name}"
            yield path, entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(root, f"{path}/")
