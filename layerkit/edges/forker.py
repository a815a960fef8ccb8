"""Runs jobs in processes of their own, from an event loop; the other side is `edges.forked`.

A process that has all loaded waits, and forks for each job: 5 ms instead of 250 ms, and the agent
itself stays small. A job that dies (out of memory, a crash in native code) is an error of that job
alone; a dead parent of jobs is started again with the next one. Cancelling `run` ends its job.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Final

from layerkit.edges.forked import CONTROL_FD, MAX_LINE_SIZE, STOP_SECONDS, error_of
from layerkit.errors import ToolError

__all__ = ["Forker"]

# one thread: BLAS is never used, and threads do not survive a fork
ONE_THREAD: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_log = logging.getLogger(__name__)


class Forker:
    """The process that forks; `program` is Python that calls `serve_jobs`."""

    def __init__(self, program: str, env: Mapping[str, str]) -> None:
        # what can be imported here, and nothing else (-P: nothing of the working folder)
        program = f"import sys; sys.path[:] = {sys.path!r}; {program}"
        self._argv = [sys.executable, "-P", "-c", program]
        self._env = {**env, **ONE_THREAD, "MALLOC_ARENA_MAX": "2"}
        self._control: socket.socket | None = None
        self._pid = 0

    def start(self) -> None:
        """Start it, so that it is warm when the first job comes."""
        if self._control is not None:
            return
        ours, theirs = socket.socketpair()
        try:
            self._pid = os.posix_spawn(
                self._argv[0],
                self._argv,
                self._env,
                file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), CONTROL_FD)],
                setsid=True,
            )
        except OSError as exc:
            ours.close()
            raise ToolError(f"cannot run {self._argv[0]}", cause=str(exc)) from exc
        finally:
            theirs.close()
        self._control = ours

    async def run(self, job: Mapping[str, object]) -> dict[str, object]:
        """Run one job; raises what it raised."""
        ours, theirs = socket.socketpair()
        try:
            self._send(theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE_SIZE)
        try:
            writer.write(json.dumps(job).encode() + b"\n")
            await writer.drain()
            raw = await reader.readline()
        except (OSError, ValueError) as exc:
            raw = b""
            _log.debug("a job's answer did not come: %s", exc)
        finally:
            writer.close()
        if not raw.endswith(b"\n"):
            raise ToolError(
                f"the process of a job ({job.get('do')}) died before it was done",
                cause="killed, or out of memory",
            )
        answer = json.loads(raw)
        if "error" in answer:
            raise error_of(answer["error"])
        return dict(answer["result"])

    def _send(self, end: socket.socket) -> None:
        """Hand `end` to the process that forks; start it anew if it is gone."""
        for attempt in range(2):
            self.start()
            assert self._control is not None
            try:
                socket.send_fds(self._control, [b"j"], [end.fileno()])
                return
            except OSError as exc:
                self._forget()
                if attempt:
                    raise ToolError("the process that runs jobs died", cause=str(exc)) from exc
                _log.warning("the process that runs jobs died, starting it again")

    def _forget(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, os.WNOHANG)

    async def close(self) -> None:
        """Let it end its jobs and itself; kill its session when that takes too long."""
        if self._control is None:
            return
        self._control.close()
        self._control = None
        for _ in range(int(2 * STOP_SECONDS / 0.02) + 50):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(self._pid, os.WNOHANG)[0] == 0:
                    await asyncio.sleep(0.02)
                    continue
            return
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.killpg(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
