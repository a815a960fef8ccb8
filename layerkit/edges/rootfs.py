"""Extraction of layers into a folder: beneath a folder descriptor, without following links.

Every parent is opened one part at a time with O_NOFOLLOW, so neither a link in a layer nor one that
somebody plants meanwhile leads outside. Whiteouts act on lower layers only; duplicates in one layer
are an error. Only on request (`Rights`): devices and pipes (else refused), setuid and setgid bits
(else dropped), owners (else whoever extracts). Extended attributes are dropped, always: what they
give besides (security.capability) is the privilege of a setuid file, and a function needs none.

The tree is built in a temp folder, made durable and renamed: it is there whole, or not at all.
Limits: `Limits`, checked before anything is allocated or written for an entry. Memory: besides the
tars, the paths. Links in the tree may lead anywhere inside it and are meant to be followed from its
root: enter it with chroot, or open it beneath a folder descriptor.
Spec: OCI image-spec 1.1 "Image Layer Filesystem Changeset".
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from layerkit.edges.disk import Disk
from layerkit.errors import FormatError, NotFoundError, StoreError
from layerkit.formats.tar import (
    BLOCK_DEVICE,
    CHAR_DEVICE,
    FILE,
    FOLDER,
    HARDLINK,
    PIPE,
    SYMLINK,
    TarEntry,
    read_tar,
)

__all__ = ["Limits", "Rights", "StagedTree", "extract_layers", "stage_layers"]

WHITEOUT: Final = ".wh."
OPAQUE: Final = ".wh..wh..opq"
SYNC_COUNT: Final = 16  # files that are flushed one by one; more in one pass over the filesystem
_OPEN_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NODES: Final = {CHAR_DEVICE: stat.S_IFCHR, BLOCK_DEVICE: stat.S_IFBLK, PIPE: stat.S_IFIFO}


@dataclass(frozen=True, slots=True)
class Limits:
    """What an image may ask of the disk."""

    entry_count: int = 1 << 18
    total_size: int = 8 << 30  # bytes of all files
    depth: int = 64  # parts of a path

    def check_size(self, size: int) -> None:
        """Raise FormatError when an image has more than `total_size` bytes."""
        if size > self.total_size:
            raise FormatError(f"image is over {self.total_size} bytes")


@dataclass(frozen=True, slots=True)
class Rights:
    """What an image may have besides files, folders and links of whoever extracts it."""

    devices: bool = False  # devices and pipes
    setuid: bool = False  # setuid and setgid bits of files, setgid bits of folders
    owners: bool = False  # uid and gid as the layers say; for root


@dataclass(slots=True)
class _Layer:
    """What the layer being extracted has made so far."""

    paths: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)  # with all parents of `paths`


class _Tree:
    """The tree being made, under one folder descriptor."""

    def __init__(
        self, root: Path, root_fd: int, disk: Disk, limits: Limits, rights: Rights
    ) -> None:
        self._root = root
        self._fd = root_fd
        self._disk = disk
        self._limits = limits
        self._rights = rights
        self._entry_count = 0
        self._total_size = 0
        self._file_count = 0
        self._unsynced: list[int] = []  # descriptors of files, while they are few
        self._folders: dict[str, tuple[int, TarEntry]] = {}  # modes and owners, set at the end
        self._removed: dict[str, int] = {}  # paths; both with the count of entries at that moment
        self._parent: tuple[str, int] | None = None  # the folder that was entered last
        self._layer = _Layer()

    def add_layer(self, plain: bytes | memoryview) -> None:
        self._layer = _Layer()
        for entry in read_tar(plain):
            self._add(entry)

    def finish(self) -> None:
        """Give folders their modes, deepest first, and make all durable."""
        for path, (since, entry) in sorted(self._folders.items(), reverse=True):
            if self._was_removed(path, since):
                continue
            with self._folder(path) as fd:
                if self._rights.owners:
                    self._disk.act("chown", path, partial(os.fchown, fd, entry.uid, entry.gid))
                mode = entry.mode & (0o3777 if self._rights.setuid else 0o1777)
                self._disk.act("chmod", path, partial(os.fchmod, fd, mode))
                if self._file_count <= SYNC_COUNT:
                    self._disk.fsync_fd(fd, path)
        if self._file_count > SYNC_COUNT:
            self._disk.sync_filesystem(self._fd, self._root)
            return
        for fd in self._unsynced:
            self._disk.fsync_fd(fd, self._root)
        self._disk.fsync_fd(self._fd, self._root)

    def close(self) -> None:
        """Give back the descriptors."""
        self._leave()
        while self._unsynced:
            os.close(self._unsynced.pop())

    def _was_removed(self, path: str, since: int) -> bool:
        """Did the folder go, or one above it? Asked at the end and of each once: removing must not
        look through all folders, or an image of many folders and whiteouts takes hours."""
        while path:
            if self._removed.get(path, 0) > since:
                return True
            path = path.rpartition("/")[0]
        return False

    def _add(self, entry: TarEntry) -> None:
        path = entry.path
        self._check(entry)
        if not path:  # the root itself
            return
        parent, _, name = path.rpartition("/")
        is_whiteout = name.startswith(WHITEOUT)
        if path in self._layer.paths and (is_whiteout or entry.kind != FOLDER):
            raise FormatError(f"layer has {path[:200]!r} twice")
        if is_whiteout:
            self._layer.paths.add(path)
            self._whiteout(parent, name)
            return
        self._make_room(self._enter(parent), entry, path, name)
        self._make(self._enter(parent), entry, path, name)
        self._layer.paths.add(path)
        while parent and parent not in self._layer.folders:
            self._layer.folders.add(parent)
            parent = parent.rpartition("/")[0]

    def _check(self, entry: TarEntry) -> None:
        self._count_entry()
        self._total_size += len(entry.data)
        self._limits.check_size(self._total_size)
        if entry.path.count("/") >= self._limits.depth:
            raise FormatError(f"path {entry.path[:200]!r} is over {self._limits.depth} parts deep")
        if entry.kind in _NODES and not self._rights.devices:
            raise FormatError(f"layer entry {entry.path[:200]!r} is a {entry.kind}")
        if entry.kind == SYMLINK and _climbs_out(entry.path, entry.link):
            raise FormatError(f"link {entry.path[:200]!r} leads out of the root")

    def _count_entry(self) -> None:
        self._entry_count += 1
        if self._entry_count > self._limits.entry_count:
            raise FormatError(f"image has over {self._limits.entry_count} entries")

    def _make_room(self, fd: int, entry: TarEntry, path: str, name: str) -> None:
        """Remove what lies there, unless a folder meets a folder."""
        found = _lstat(fd, name)
        if found is None or (stat.S_ISDIR(found.st_mode) and entry.kind == FOLDER):
            return
        if path in self._layer.paths or path in self._layer.folders:
            raise FormatError(f"layer has {path[:200]!r} twice")
        self._remove(fd, path, name)

    def _remove(self, fd: int, path: str, name: str) -> None:
        self._disk.remove_at(fd, name, where=self._root / Path(path).parent)
        self._removed[path] = self._entry_count
        self._leave()  # the folder entered last may be gone

    def _make(self, fd: int, entry: TarEntry, path: str, name: str) -> None:
        if entry.kind == FOLDER:
            if _lstat(fd, name) is None:
                self._disk.make_folder_at(fd, name)
            self._folders[path] = (self._entry_count, entry)
        elif entry.kind == SYMLINK:
            self._disk.symlink_at(fd, name, entry.link)
            self._own(fd, entry, name)
        elif entry.kind == HARDLINK:
            self._link(fd, entry, name)
        elif entry.kind == FILE:
            self._write(fd, entry, name)
        else:
            mode = _NODES[entry.kind] | (entry.mode & 0o777)
            self._disk.make_node_at(fd, name, mode, os.makedev(*entry.device))
            self._own(fd, entry, name)
            self._disk.act("chmod", name, lambda: os.chmod(name, entry.mode & 0o777, dir_fd=fd))

    def _link(self, fd: int, entry: TarEntry, name: str) -> None:
        """A second name for a file that is in the tree."""
        old_parent, _, old_name = entry.link.rpartition("/")
        with self._folder(old_parent) as old_fd:
            found = _lstat(old_fd, old_name) if old_name else None
            if found is None or not stat.S_ISREG(found.st_mode):
                raise FormatError(f"hard link {entry.path[:200]!r} points at no file")
            self._disk.link_at(old_fd, old_name, fd, name)

    def _write(self, fd: int, entry: TarEntry, name: str) -> None:
        disk = self._disk
        file = disk.open_at(fd, name)
        try:
            disk.write_fd(file, memoryview(entry.data), self._root / entry.path)
            if self._rights.owners:  # before the mode: a change of owner clears setuid
                disk.act("chown", name, lambda: os.fchown(file, entry.uid, entry.gid))
            mode = entry.mode & (0o6777 if self._rights.setuid else 0o777)
            disk.act("chmod", name, lambda: os.fchmod(file, mode))
            disk.act("utime", name, lambda: os.utime(file, (entry.mtime, entry.mtime)))
            self._file_count += 1
            if self._file_count <= SYNC_COUNT:
                self._unsynced.append(os.dup(file))
        finally:
            os.close(file)

    def _own(self, fd: int, entry: TarEntry, name: str) -> None:
        if self._rights.owners:
            owner = (entry.uid, entry.gid)
            self._disk.act(
                "chown", name, lambda: os.chown(name, *owner, dir_fd=fd, follow_symlinks=False)
            )

    def _whiteout(self, parent: str, name: str) -> None:
        """Remove what lower layers put here; what this layer made stays."""
        with contextlib.suppress(NotFoundError), self._folder(parent) as fd:
            names = sorted(os.listdir(fd)) if name == OPAQUE else [name[len(WHITEOUT) :]]
            for victim in names:
                path = f"{parent}/{victim}" if parent else victim
                mine = path in self._layer.paths or path in self._layer.folders
                if victim in ("", ".", "..") or mine or _lstat(fd, victim) is None:
                    continue
                self._remove(fd, path, victim)

    def _enter(self, path: str) -> int:
        """A descriptor of a parent folder, made if it is absent; good until the next removal.
        Files of one folder follow each other, so the last one is kept open."""
        if self._parent is None or self._parent[0] != path:
            self._leave()
            with self._folder(path, make=True) as fd:
                self._parent = (path, os.dup(fd))
        return self._parent[1]

    def _leave(self) -> None:
        if self._parent is not None:
            os.close(self._parent[1])
            self._parent = None

    @contextlib.contextmanager
    def _folder(self, path: str, *, make: bool = False) -> Iterator[int]:
        """A descriptor of a folder of the tree; a link on the way is an error."""
        fd = os.dup(self._fd)
        try:
            for part in path.split("/") if path else ():
                if make and _lstat(fd, part) is None:
                    self._count_entry()  # folders that no layer names are many, too
                    self._disk.make_folder_at(fd, part, 0o755)
                try:
                    deeper = os.open(part, _OPEN_FOLDER, dir_fd=fd)
                except FileNotFoundError as exc:
                    raise NotFoundError(f"{path[:200]!r} is not in the tree") from exc
                except NotADirectoryError as exc:
                    raise FormatError(f"{path[:200]!r} leads through a link or a file") from exc
                except OSError as exc:
                    raise FormatError(f"{path[:200]!r} cannot be entered", cause=str(exc)) from exc
                os.close(fd)
                fd = deeper
            yield fd
        finally:
            os.close(fd)


@dataclass(frozen=True, slots=True)
class StagedTree:
    """A whole, durable tree beside its target, under a temp name: nobody looks there."""

    temp: Path
    target: Path
    disk: Disk

    def publish(self) -> None:
        """Let it be the target. What was there goes."""
        try:
            if self.target.is_symlink() or (self.target.exists() and not self.target.is_dir()):
                raise StoreError(f"{self.target} is not a folder")
            self.disk.exchange_folder(self.temp, self.target)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove it."""
        if self.temp.exists():
            self.disk.remove_tree(self.temp)


def stage_layers(
    layers: Iterable[bytes | memoryview],
    target: Path,
    disk: Disk,
    limits: Limits | None = None,
    rights: Rights | None = None,
    start: Path | None = None,
) -> StagedTree:
    """Extract plain layer tars, lowest first, beside `target`; `publish` puts them there. `start`
    is a tree on the same filesystem that this function made, with the same rights, of what lies
    below these layers: it is moved, and becomes part of the tree or goes. `limits` then hold for
    what is added.

    Raises FormatError for what must not be extracted. Memory: one layer.
    """
    disk.make_folder(target.parent)
    temp = disk.make_temp_folder(target.parent)
    staged = StagedTree(temp, target, disk)
    try:
        if start is not None:
            disk.act("rename", temp, lambda: os.rename(start, temp))  # over an empty folder
        fd = os.open(temp, _OPEN_FOLDER)
        try:
            tree = _Tree(temp, fd, disk, limits or Limits(), rights or Rights())
            with contextlib.closing(tree):
                for plain in layers:
                    tree.add_layer(plain)
                tree.finish()
            disk.act("chmod", temp, lambda: os.fchmod(fd, 0o755))
        finally:
            os.close(fd)
    except BaseException:
        staged.discard()
        raise
    return staged


def extract_layers(
    layers: Iterable[bytes | memoryview],
    target: Path,
    disk: Disk,
    limits: Limits | None = None,
    rights: Rights | None = None,
) -> None:
    """Extract plain layer tars, lowest first, so that `target` is the whole tree or as before."""
    stage_layers(layers, target, disk, limits, rights).publish()


def _lstat(fd: int, name: str) -> os.stat_result | None:
    try:
        return os.lstat(name, dir_fd=fd)
    except FileNotFoundError:
        return None
    except OSError as exc:  # a name that is too long, or holds what the disk refuses
        raise FormatError(f"name {name[:200]!r} is not possible here", cause=str(exc)) from exc


def _climbs_out(path: str, link: str) -> bool:
    """Does a relative link target leave the root? (An absolute one is meant from the root.)"""
    depth = path.count("/")
    parts = link.split("/")
    if link.startswith("/"):
        depth = 0
    for part in parts:
        if part == "..":
            depth -= 1
        elif part not in ("", "."):
            depth += 1
        if depth < 0:
            return True
    return False
