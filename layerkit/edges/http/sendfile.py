"""Bytes from a file to a socket without passing through this process, where the system can.

For plain TCP on Linux. The transport owns the socket: it is only written to while the transport
is open and holds nothing back, so that bytes keep their order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Final

__all__ = ["SocketWriter", "keep_in_memory_file", "read_cached"]

PART_SIZE: Final = 1 << 20  # bytes a call; others get their turn in between
MSG_MORE: Final = getattr(socket, "MSG_MORE", 0)


def keep_in_memory_file(data: bytes) -> int:
    """A descriptor of a nameless file in memory that holds `data`; -1 where there is none."""
    if not hasattr(os, "memfd_create"):
        return -1
    fd = os.memfd_create("layerkit-answer", os.MFD_CLOEXEC)
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError:
        os.close(fd)
        return -1
    return fd


class SocketWriter:
    """The socket under a transport of a plain TCP connection."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        owned = transport.get_extra_info("socket")
        self._fd = owned.fileno()
        # for flags; never closed here
        self._sock = socket.socket(owned.family, socket.SOCK_STREAM, 0, fileno=self._fd)
        self.is_blocked = False  # waits for the other side to read

    def detach(self) -> None:
        """The transport is about to close the socket."""
        self._sock.detach()

    def write_now(self, head: bytes, fd: int, body: bytes) -> bool:
        """Write `head` and `body`, which file `fd` holds, too: what the kernel takes at once from
        the file, the rest by the transport. False: nothing was done, for others' bytes wait."""
        transport = self._transport
        if transport.get_write_buffer_size():
            return False
        try:
            sent = self._sock.send(head, MSG_MORE)
        except BlockingIOError:
            return False
        except OSError:
            transport.abort()
            return True
        if sent < len(head):
            transport.write(head[sent:] + body)
            return True
        try:
            sent = os.sendfile(self._fd, fd, 0, len(body))
        except OSError:
            sent = 0  # the transport finds out what it is
        if sent < len(body):
            transport.write(memoryview(body)[sent:])
        return True

    async def send_file(self, fd: int, offset: int, size: int, sent: Callable[[int], None]) -> None:
        """Send bytes of file `fd` as fast as they are taken; `sent` is told how many as they go.
        EOFError if the file is shorter, ConnectionError if the other side is gone."""
        end = offset + size
        while offset < end:
            count = min(PART_SIZE, end - offset)
            if not _is_cached(fd, offset, count):  # a thread waits for the disk, not the loop
                await self._loop.run_in_executor(None, os.pread, fd, count, offset)
            if self._transport.is_closing():
                raise ConnectionError("the connection is closed")
            try:
                done = os.sendfile(self._fd, fd, offset, count)
            except BlockingIOError:
                await self._until_writable()
                continue
            if not done:
                raise EOFError(f"the file ends {end - offset} bytes early")
            sent(done)
            offset += done
            await asyncio.sleep(0)

    async def _until_writable(self) -> None:
        """Watch a second descriptor: the loop lets nobody watch one that a transport has."""
        watched = os.dup(self._fd)
        writable = asyncio.Event()
        self.is_blocked = True
        try:
            self._loop.add_writer(watched, writable.set)
            while not writable.is_set() and not self._transport.is_closing():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(writable.wait(), 5)
        finally:
            self.is_blocked = False
            self._loop.remove_writer(watched)
            os.close(watched)


def _is_cached(fd: int, offset: int, size: int) -> bool:
    """Are the first and the last byte in the system's memory? A good guess for those between."""
    return all(read_cached(fd, at, 1) is not None for at in (offset, offset + size - 1))


def read_cached(fd: int, offset: int, size: int) -> bytes | None:
    """Bytes of a file that are in memory; None if the disk is to be waited for."""
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    part = bytearray(size)
    try:
        count = os.preadv(fd, [part], offset, os.RWF_NOWAIT)
    except OSError:
        return None
    return bytes(part[:count]) if count else None
