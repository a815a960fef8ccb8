"""Several processes that do the same: started by fork, started again when one dies, ended together.

The parent only waits. A worker says over a pipe that it has started, or why it cannot; it ends
when the parent is gone, for it holds the other end of another pipe.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Final

from layerkit import errors
from layerkit.errors import LayerkitError, StoreError

__all__ = ["run_workers"]

START_SECONDS: Final = 120.0  # a large layout is read before a worker serves
RESTART_SECONDS: Final = 1.0  # between two starts of a worker
MAX_RESTART_COUNT: Final = 10  # in RESTART_WINDOW seconds; then something is wrong with all
RESTART_WINDOW: Final = 60.0
_log = logging.getLogger(__name__)

Work = Callable[[int, Callable[[], None]], None]  # index, and what to call once started


def run_workers(count: int, work: Work, ready: Callable[[], None], patience_seconds: float) -> None:
    """Run `work` in `count` processes until SIGINT or SIGTERM. An error of one that starts ends all
    and is raised here; `ready` is called when all have started."""
    _Crew(count, work, patience_seconds).run(ready)


class _Crew:
    def __init__(self, count: int, work: Work, patience_seconds: float) -> None:
        self._count = count
        self._work = work
        self._patience = patience_seconds
        self._pids: dict[int, int] = {}  # index by process id
        self._signal = 0
        self._alive_read, self._alive_write = os.pipe()
        self._restarts: list[float] = []

    def run(self, ready: Callable[[], None]) -> None:
        before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            pipes = [self._start(index) for index in range(self._count)]
            for pipe in pipes:
                self._wait_started(pipe)
            if not self._signal:
                ready()
            while not self._signal:
                self._look_after()
        finally:
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(self._alive_read)
            os.close(self._alive_write)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._signal = number

    def _start(self, index: int) -> int:
        """Fork worker `index`; returns the pipe on which it will say how it went."""
        told_read, told_write = os.pipe()
        pid = os.fork()
        if pid:
            os.close(told_write)
            self._pids[pid] = index
            return told_read
        status = 1
        try:
            os.close(told_read)
            os.close(self._alive_write)
            self._be_worker(index, told_write)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _be_worker(self, index: int, told_write: int) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        threading.Thread(target=_end_with_parent, args=(self._alive_read,), daemon=True).start()
        told = False

        def started() -> None:
            nonlocal told
            told = True
            with contextlib.suppress(BrokenPipeError):  # of a worker that is started again
                os.write(told_write, b"{}")
            os.close(told_write)

        try:
            self._work(index, started)
        except LayerkitError as exc:
            if told:
                raise
            facts = [type(exc).__name__, exc.message, exc.cause, exc.hint]
            os.write(told_write, json.dumps(facts).encode()[: select.PIPE_BUF])

    def _wait_started(self, pipe: int) -> None:
        with open(pipe, "rb") as file:
            end = time.monotonic() + START_SECONDS
            while not self._signal:
                if select.select([file], [], [], 0.2)[0]:
                    break
                if time.monotonic() > end:
                    raise StoreError(f"a worker has not started within {START_SECONDS:.0f} seconds")
            else:
                return
            raw = file.read(select.PIPE_BUF)
        if raw == b"{}":
            return
        if not raw:
            raise StoreError("a worker ended before it served")
        name, message, cause, hint = json.loads(raw)
        kind = getattr(errors, name, StoreError)
        raise _remade(kind, message, cause, hint)

    def _look_after(self) -> None:
        """Start again what has died."""
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            time.sleep(0.1)  # a signal ends it early
            return
        index = self._pids.pop(pid, None)
        if index is None or self._signal:
            return
        now = time.monotonic()
        self._restarts = [at for at in self._restarts if now - at < RESTART_WINDOW] + [now]
        if len(self._restarts) > MAX_RESTART_COUNT:
            raise StoreError("workers end again and again", cause="the lines above say more")
        code = os.waitstatus_to_exitcode(status)
        _log.error("worker %d ended with status %d, starting another", index, code)
        time.sleep(RESTART_SECONDS)
        if not self._signal:
            os.close(self._start(index))

    def _end(self) -> None:
        """Pass the signal on, wait, and kill who does not end."""
        for pid in self._pids:
            os.kill(pid, self._signal or signal.SIGTERM)
        end = time.monotonic() + self._patience
        while self._pids:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            self._pids.pop(pid, None)
            if not pid:
                time.sleep(0.05)
            if time.monotonic() > end:
                for left in self._pids:
                    os.kill(left, signal.SIGKILL)
                end = float("inf")


def _end_with_parent(alive_read: int) -> None:
    os.read(alive_read, 1)  # returns when the parent's end is closed
    os.kill(os.getpid(), signal.SIGTERM)


def _remade(kind: type[LayerkitError], message: str, cause: str, hint: str) -> LayerkitError:
    """The error of another process, in this one."""
    error = kind(message)
    error.cause, error.hint = cause, hint
    return error
