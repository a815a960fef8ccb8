"""Versions of images as folders, and the link that says which one is current.

    ROOT/<name>/sha256-<hex>/      one version: a rootfs or an OCI layout
    ROOT/<name>/current            a link to one of them

A version is made in a temp folder beside and renamed: it is there whole or not at all. The link is
replaced by a rename, too: a crash leaves the old or the new one, never none. Whoever follows the
link and keeps the folder open is not disturbed when it moves on; a version is first renamed to a
temp name and then removed. What a crash left has TEMP_PREFIX and goes with `sweep`.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterator, Set
from functools import partial
from pathlib import Path
from typing import Final

from layerkit.digest import Digest
from layerkit.edges.disk import TEMP_PREFIX, Disk
from layerkit.errors import NotFoundError, StoreError, UsageError
from layerkit.formats.reference import Reference

__all__ = ["CURRENT", "VersionFolders", "check_name"]

CURRENT: Final = "current"
_VERSION: Final = re.compile(r"sha256-[0-9a-f]{64}")
_TAKEN: Final = re.compile(r"current(?:-.*)?|sha256-[0-9a-f]{64}")


def check_name(ref: Reference) -> None:
    """UsageError if a folder of that name would be mistaken for a version or a link."""
    for part in ref.repository.split("/")[1:]:
        if _TAKEN.fullmatch(part):
            raise UsageError(
                f"{ref.name} cannot have a folder of its own",
                cause=f"{part!r} is how versions and links are named",
            )


class VersionFolders:
    """All names under one root."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self.root = root
        self._disk = disk

    def folder(self, ref: Reference) -> Path:
        """Where the versions of a name lie, whichever the tag."""
        return self.root / ref.name.replace(":", "+")  # a port

    def path(self, ref: Reference, digest: Digest) -> Path:
        return self.folder(ref) / f"{digest.algorithm}-{digest.hex}"

    def has(self, ref: Reference, digest: Digest) -> bool:
        return self.path(ref, digest).is_dir()

    def find_current(self, ref: Reference, link: str) -> Digest | None:
        """The version that the link leads to; None if there is none, or it is not there."""
        try:
            target = os.readlink(self.folder(ref) / link)
        except OSError:
            return None
        if not _VERSION.fullmatch(target) or not (self.folder(ref) / target).is_dir():
            return None
        return Digest.parse(target.replace("-", ":", 1))

    @contextlib.contextmanager
    def staging(self, ref: Reference) -> Iterator[Path]:
        """A temp folder beside the versions; whatever is left in it goes."""
        self._disk.make_folder(self.folder(ref))
        temp = self._disk.make_temp_folder(self.folder(ref))
        try:
            yield temp
        finally:
            if temp.exists():
                self._disk.remove_tree(temp)

    def publish(self, ref: Reference, digest: Digest, made: Path) -> None:
        """Give the folder `made` (in staging) the name of its version, unless that is there."""
        if not self.has(ref, digest):
            self._disk.rename(made, self.path(ref, digest))

    def point(self, ref: Reference, link: str, digest: Digest) -> None:
        """Let `link` lead to a version, at once and durably."""
        if not self.has(ref, digest):
            raise NotFoundError(f"version {digest.short} of {ref.name} has no folder")
        folder = self.folder(ref)
        place = folder / link
        if place.exists() and not place.is_symlink():
            raise StoreError(f"{place} is not a link", hint="move it away")
        temp = folder / f"{TEMP_PREFIX}{secrets.token_hex(8)}"
        target = self.path(ref, digest).name
        self._disk.act("link", temp, partial(os.symlink, target, temp))
        try:
            self._disk.rename(temp, place)
        except BaseException:
            with contextlib.suppress(StoreError):
                self._disk.remove(temp)
            raise

    def remove(self, ref: Reference, digest: Digest) -> None:
        """Remove a version; what looks there sees it whole or not at all."""
        path = self.path(ref, digest)
        if not path.is_dir():
            return
        temp = path.parent / f"{TEMP_PREFIX}{secrets.token_hex(8)}"
        self._disk.rename(path, temp)
        self._disk.remove_tree(temp)

    def unlink(self, ref: Reference, link: str) -> None:
        """Remove a link, and the folders of the name that are empty then."""
        self._disk.remove(self.folder(ref) / link)
        folder = self.folder(ref)
        while folder != self.root and folder.is_dir() and not any(folder.iterdir()):
            self._disk.act("remove", folder, partial(os.rmdir, folder))
            folder = folder.parent

    def sweep(self, ref: Reference, keep: Set[Digest]) -> int:
        """Remove what a crash left: temp folders, and versions that are neither in `keep` nor led
        to by a link. Returns the count. No pull of the name may be running."""
        folder = self.folder(ref)
        if not folder.is_dir():
            return 0
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        kept = {f"{digest.algorithm}-{digest.hex}" for digest in keep}
        kept |= {os.readlink(entry.path) for entry in entries if entry.is_symlink()}
        count = 0
        for entry in entries:
            is_temp = entry.name.startswith(TEMP_PREFIX)
            if not is_temp and (not _VERSION.fullmatch(entry.name) or entry.name in kept):
                continue
            if entry.is_dir(follow_symlinks=False):
                temp = folder / f"{TEMP_PREFIX}{secrets.token_hex(8)}"
                self._disk.rename(Path(entry.path), temp)
                self._disk.remove_tree(temp)
            else:
                self._disk.remove(Path(entry.path))
            count += 1
        return count
