"""The only writer of files: temp, write, fsync, rename, fsync folder; locks; removal.

Everything that changes the disk passes through `Disk.act`, so a test's FaultyDisk can stop at the
n-th write, fsync or rename. Operating system errors become StoreError (StoreFullError for a full
disk or quota), always chained. A file is visible under its own name only when it is whole and
durable; a crash leaves at most a temp file whose name starts with `TEMP_PREFIX`.

It is not a store: what the files mean is known by those who call. Spec: docs/design.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from layerkit.errors import NotFoundError, StoreError, StoreFullError, StoreLockedError

__all__ = ["TEMP_PREFIX", "Disk", "HeldFile", "OpenFile"]

TEMP_PREFIX: Final = ".tmp-"  # whoever lists a folder skips these; gc removes them
WRITE_SIZE: Final = 1 << 20  # bytes a write call: one step of a FaultyDisk
HOLD_TRIES: Final = 10
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

T = TypeVar("T")


class OpenFile:
    """A file being written. `commit` makes it durable under its name; leaving early removes it."""

    def __init__(self, disk: Disk, fd: int, temp: Path, path: Path) -> None:
        self._disk = disk
        self._fd = fd
        self._temp = temp
        self._path = path
        self._done = False
        self.size = 0

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append `data`; returns its length."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), WRITE_SIZE):
            self._disk.write_fd(self._fd, view[start : start + WRITE_SIZE], self._path)
        self.size += len(view)
        return len(view)

    def fileno(self) -> int:
        return self._fd

    def commit(self, path: Path | None = None) -> Path:
        """Fsync, close, rename to its name (or `path`, in the same folder), fsync the folder."""
        final = path or self._path
        self._disk.fsync_fd(self._fd, self._path)
        os.close(self._fd)
        self._fd = -1
        self._disk.rename(self._temp, final)
        self._done = True
        return final

    def discard(self) -> None:
        """Close and remove what was written, unless it was committed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if not self._done:
            with contextlib.suppress(StoreError):
                self._disk.remove(self._temp)


class HeldFile:
    """A file that is locked while its owner lives, or until `release`, which removes it."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd = fd
        self._path = path

    def release(self) -> None:
        """Remove the file, then let it go: who waits for it makes a new one."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            os.close(self._fd)
            self._fd = -1


class Disk:
    """Writes files so that a crash at any moment leaves old or new, never a mix."""

    def act(self, op: str, path: Path | str, call: Callable[[], T]) -> T:
        """Do one primitive; maps OSError. Tests override this to stop at the n-th one."""
        try:
            return call()
        except OSError as exc:
            raise map_os_error(exc, op, path) from exc

    # --- whole files -----------------------------------------------------------------------

    @contextlib.contextmanager
    def open_new(self, path: Path, mode: int = 0o644, mark: str = "") -> Iterator[OpenFile]:
        """A temp file beside `path`; the caller writes and commits, else nothing is left. `mark`
        stands in the temp file's name, for who cleans up."""
        temp = path.parent / f"{TEMP_PREFIX}{mark}{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = self.act("create", path, lambda: os.open(temp, flags, mode))
        file = OpenFile(self, fd, temp, path)
        try:
            yield file
        finally:
            file.discard()

    def write_atomic(
        self, path: Path, data: bytes | bytearray | memoryview, mode: int = 0o644
    ) -> None:
        """Put `data` at `path`, whole and durable, or leave `path` as it was."""
        with self.open_new(path, mode) as file:
            file.write(data)
            file.commit()

    def append(self, path: Path, data: bytes | bytearray | memoryview, mode: int = 0o644) -> None:
        """Add `data` at the end of `path` and make it durable. Not atomic: a crash may tear it."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = self.act("create", path, lambda: os.open(path, flags, mode))
        try:
            self.write_fd(fd, memoryview(data), path)
            self.fsync_fd(fd, path)
        finally:
            os.close(fd)

    def write_fd(self, fd: int, data: memoryview, path: Path | str) -> None:
        """Write all of `data` at the position of `fd`, through short writes."""
        while len(data):
            data = data[self.act("write", path, functools.partial(os.write, fd, data)) :]

    def fsync_fd(self, fd: int, path: Path | str) -> None:
        """Make what was written through `fd` durable."""
        self.act("fsync", path, lambda: os.fsync(fd))

    def sync_filesystem(self, fd: int, path: Path | str) -> None:
        """Make all durable that was written on the filesystem of `fd`: for a tree of many files one
        pass instead of a flush each."""
        self.act("fsync", path, lambda: _syncfs(fd))

    # --- names -----------------------------------------------------------------------------

    def rename(self, old: Path, new: Path) -> None:
        """Rename and make the new name durable."""
        self.act("rename", new, lambda: os.rename(old, new))
        self.fsync_folder(new.parent)

    def exchange_folder(self, new: Path, path: Path) -> None:
        """Put folder `new` at `path`. An old folder is moved aside first and removed after."""
        aside = path.parent / f"{TEMP_PREFIX}{secrets.token_hex(8)}"
        had_old = path.exists()
        if had_old:
            self.act("rename", path, lambda: os.rename(path, aside))
        try:
            self.act("rename", path, lambda: os.rename(new, path))
        except BaseException:
            if had_old and not path.exists():
                os.rename(aside, path)
            raise
        self.fsync_folder(path.parent)
        if had_old:
            self.remove_tree(aside)

    def fsync_folder(self, path: Path) -> None:
        """Make the names in a folder durable."""
        fd = self.act("open", path, lambda: os.open(path, os.O_RDONLY | os.O_DIRECTORY))
        try:
            self.fsync_fd(fd, path)
        finally:
            os.close(fd)

    def make_folder(self, path: Path, mode: int = 0o755) -> None:
        """Make `path` and its parents; each new name is durable."""
        if path.is_dir():
            return
        if path.parent != path:
            self.make_folder(path.parent, mode)
        self.act("mkdir", path, lambda: _mkdir(path, mode))
        if not path.is_dir():
            raise StoreError(f"{path} is not a folder")
        self.fsync_folder(path.parent)

    def make_temp_folder(self, parent: Path) -> Path:
        """A new empty folder in `parent` whose name starts with TEMP_PREFIX."""
        path = parent / f"{TEMP_PREFIX}{secrets.token_hex(8)}"
        self.act("mkdir", path, lambda: os.mkdir(path, 0o700))
        return path

    def remove(self, path: Path) -> bool:
        """Remove a file; False if there was none."""
        try:
            self.act("remove", path, lambda: os.unlink(path))
        except NotFoundError:
            return False
        return True

    def touch(self, path: Path) -> None:
        """Set a file's times to now: it was used."""
        self.act("touch", path, lambda: os.utime(path))

    def remove_tree(self, path: Path) -> None:
        """Remove a folder and all in it, without following links."""
        for folder, folders, files, folder_fd in os.fwalk(path, topdown=False):
            self._empty(Path(folder), folders, files, folder_fd)
        if path.exists():
            self.act("remove", path, lambda: os.rmdir(path))

    def _unlink_at(self, path: Path, name: str, folder_fd: int) -> None:
        self.act("remove", path, lambda: os.unlink(name, dir_fd=folder_fd))

    def _rmdir_at(self, path: Path, name: str, folder_fd: int) -> None:
        self.act("remove", path, lambda: os.rmdir(name, dir_fd=folder_fd))

    # --- locks -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, path: Path, *, shared: bool = False, wait: bool = False) -> Iterator[None]:
        """Hold an advisory lock on `path` (made if absent); StoreLockedError if it is taken.

        The kernel drops it when the process ends, however it ends.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        fd = self.act("lock", path, lambda: os.open(path, flags, 0o644))
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            self.act("lock", path, lambda: fcntl.flock(fd, kind if wait else kind | fcntl.LOCK_NB))
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def hold_new(self, path: Path) -> Iterator[None]:
        """A new empty file that is locked from its first moment until it is removed at the end.
        A killed owner leaves it unlocked."""
        held = HeldFile(self._make_held(path), path)
        try:
            yield
        finally:
            held.release()

    def _make_held(self, path: Path) -> int:
        """Its descriptor. Who cleans up may take the temp file for a dead one's before it is
        locked; then it is made again."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        for _ in range(HOLD_TRIES):
            temp = path.parent / f"{TEMP_PREFIX}{secrets.token_hex(8)}"
            fd = self.act("lock", path, functools.partial(os.open, temp, flags, 0o644))
            try:
                self.act("lock", path, functools.partial(fcntl.flock, fd, fcntl.LOCK_EX))
                self.act("lock", path, functools.partial(os.rename, temp, path))
                return fd
            except BaseException as exc:
                os.close(fd)
                with contextlib.suppress(OSError):
                    os.unlink(temp)
                if not isinstance(exc, NotFoundError):
                    raise
        raise StoreError(f"cannot make {path}", cause="somebody removes what is made")

    def try_hold(self, path: Path) -> HeldFile | None:
        """Lock a file, made if absent, and set its time to now; None while another one holds it.
        The kernel lets it go however its owner ends."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        kind = fcntl.LOCK_EX | fcntl.LOCK_NB
        while True:
            fd = self.act("lock", path, lambda: os.open(path, flags, 0o644))
            try:
                self.act("lock", path, functools.partial(fcntl.flock, fd, kind))
                if _is_at(fd, path):
                    os.utime(fd)
                    return HeldFile(fd, path)
            except StoreLockedError:
                os.close(fd)
                return None
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # its owner removed it between our two calls: there is, or was, another

    def is_held(self, path: Path) -> bool:
        """Does a living process hold the file that `hold_new` made?"""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(fd)
        return False

    # --- beneath a folder descriptor (extraction) -------------------------------------------

    def open_at(self, folder_fd: int, name: str, mode: int = 0o600) -> int:
        """A new file in the folder, for writing; never through a link, never over a file."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        return self.act("create", name, lambda: os.open(name, flags, mode, dir_fd=folder_fd))

    def make_folder_at(self, folder_fd: int, name: str, mode: int = 0o700) -> None:
        self.act("mkdir", name, lambda: os.mkdir(name, mode, dir_fd=folder_fd))

    def make_node_at(self, folder_fd: int, name: str, mode: int, device: int) -> None:
        """A pipe or a device, with the type in `mode`."""
        self.act("create", name, lambda: os.mknod(name, mode, device, dir_fd=folder_fd))

    def symlink_at(self, folder_fd: int, name: str, target: str) -> None:
        self.act("link", name, lambda: os.symlink(target, name, dir_fd=folder_fd))

    def link_at(self, old_fd: int, old_name: str, folder_fd: int, name: str) -> None:
        """A second name for a file in the same tree; a link is not followed."""
        self.act(
            "link",
            name,
            lambda: os.link(
                old_name, name, src_dir_fd=old_fd, dst_dir_fd=folder_fd, follow_symlinks=False
            ),
        )

    def remove_at(self, folder_fd: int, name: str, *, where: Path) -> None:
        """Remove a file, link or whole folder named `name`; `where` is the folder's path."""
        info = self.act("stat", name, lambda: os.lstat(name, dir_fd=folder_fd))
        if stat.S_ISDIR(info.st_mode):
            for folder, folders, files, fd in os.fwalk(
                name, topdown=False, follow_symlinks=False, dir_fd=folder_fd
            ):
                self._empty(where / folder, folders, files, fd)
            self._rmdir_at(where / name, name, folder_fd)
        else:
            self._unlink_at(where / name, name, folder_fd)

    def _empty(self, folder: Path, folders: list[str], files: list[str], fd: int) -> None:
        for name in files:
            self._unlink_at(folder / name, name, fd)
        for name in folders:
            if stat.S_ISLNK(os.lstat(name, dir_fd=fd).st_mode):
                self._unlink_at(folder / name, name, fd)
            else:
                self._rmdir_at(folder / name, name, fd)


def _is_at(fd: int, path: Path) -> bool:
    """Is the open file still the one of that name?"""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _mkdir(path: Path, mode: int) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode)


def _syncfs(fd: int) -> None:
    """syncfs(2), which Python has not; where libc has none either, sync(2)."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if call is None:
        os.sync()
    elif call(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def map_os_error(exc: OSError, op: str, path: Path | str) -> StoreError | NotFoundError:
    """Our error for an operating system error; the caller chains it."""
    cause = f"{op}: {exc.strerror or exc}"
    if exc.errno in _FULL:
        return StoreFullError(
            f"no space left for {path}", cause=cause, hint="free some space, or run 'layerkit gc'"
        )
    if exc.errno in (errno.EAGAIN, errno.EACCES) and op == "lock":
        return StoreLockedError(f"{path} is locked by another process", cause=cause)
    if exc.errno == errno.ENOENT:
        return NotFoundError(f"{path} does not exist", cause=cause)
    return StoreError(f"cannot write {path}", cause=cause)
