"""A process that runs jobs in forks of itself: everything they need is loaded once, and the memory
of a job goes back to the system with its process.

`edges.forker` starts it and hands it, for each job, one end of a socket pair. A fork reads its job
from there (one JSON line), runs it, answers with one JSON line and ends. While there is nothing to
do, one fork waits for the next job (6 ms). When the other end closes
(the job was cancelled, or the agent died), the fork gets SIGTERM and unwinds. When the agent closes
the control socket, or dies, all forks are ended and the process with them. Single thread until the
fork. No asyncio here: it would cost 10 MB in every job.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final

from layerkit.errors import LayerkitError, StoreError

__all__ = ["CONTROL_FD", "MAX_LINE_SIZE", "error_document", "error_of", "serve_jobs"]

CONTROL_FD: Final = 3
MAX_LINE_SIZE: Final = 4 << 20  # bytes of a job or an answer
STOP_SECONDS: Final = 5.0  # that forks get to unwind before they are killed
SPARE_SECONDS: Final = 0.25  # without a job, after which a fork is made for the next one
SWITCH_SECONDS: Final = 0.0005  # a thread that waits for Python's lock gets it; 0.005 is usual
OOM_SCORE: Final = "500"  # when memory runs out, a job goes before the agent does
_log = logging.getLogger(__name__)

Job = Mapping[str, object]
Run = Callable[[Job], Job]


def error_document(error: BaseException) -> dict[str, object]:
    """An error as it travels to the agent."""
    if isinstance(error, LayerkitError):
        texts = {"message": error.message, "cause": error.cause, "hint": error.hint}
        return {"code": error.code, **texts}
    return {"code": LayerkitError.code, "message": f"unexpected {type(error).__name__}: {error}"}


def error_of(document: Mapping[str, object]) -> LayerkitError:
    """The error that `document` is of: of the class with its code, else a LayerkitError."""
    wanted, kinds = document.get("code"), [LayerkitError]
    for kind in kinds:  # grows while it runs: the whole tree
        kinds += kind.__subclasses__()
    kind = next((kind for kind in kinds if kind.code == wanted), LayerkitError)
    message, cause, hint = (str(document.get(key, "")) for key in ("message", "cause", "hint"))
    return kind(message, cause=cause, hint=hint)


def serve_jobs(run: Run) -> None:
    """Fork for each job that comes over CONTROL_FD, until it closes. Returns in the parent only."""
    control = socket.socket(fileno=CONTROL_FD)
    control.set_inheritable(False)
    forks: set[int] = set()

    def reap(*_: object) -> None:
        for pid in list(forks):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    forks.discard(pid)

    signal.signal(signal.SIGCHLD, reap)
    for number in (signal.SIGINT, signal.SIGTERM):  # it ends when the agent does
        signal.signal(number, signal.SIG_IGN)
    gc.collect()
    gc.freeze()  # what is loaded stays shared with the forks
    spare: socket.socket | None = None  # to a fork that waits for a job

    def fork() -> socket.socket:
        ours, theirs = socket.socketpair()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        with theirs:
            try:
                pid = os.fork()
                if pid == 0:
                    control.close()
                    ours.close()
                    _wait_for_job(theirs, blocked, run)
                forks.add(pid)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return ours

    while True:
        while spare is None and not select.select([control], [], [], SPARE_SECONDS)[0]:
            with contextlib.suppress(OSError):  # no room for it now
                spare = fork()
        data, fds, _, _ = socket.recv_fds(control, 1, 1)
        if not data:
            break
        while not _hand_over(spare, fds[0]):  # it may have died meanwhile
            spare = fork()
        spare = None
        os.close(fds[0])
    _stop(forks, reap)


def _hand_over(fork: socket.socket | None, job: int) -> bool:
    """Give a fork its job; False if there is no such fork."""
    if fork is None:
        return False
    with fork, contextlib.suppress(OSError):
        socket.send_fds(fork, [b"j"], [job])
        return True
    return False


def _wait_for_job(parent: socket.socket, blocked: set[int | signal.Signals], run: Run) -> None:
    """Be the fork of the next job; never returns."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        _go_first_when_memory_runs_out()
        sys.setswitchinterval(SWITCH_SECONDS)
        data, fds, _, _ = socket.recv_fds(parent, 1, 1)
        parent.close()
        if data:
            _run_fork(socket.socket(fileno=fds[0]), run)
    finally:
        os._exit(0)


def _stop(forks: set[int], reap: Callable[[], None]) -> None:
    """End what still runs."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in list(forks):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        end = time.monotonic() + STOP_SECONDS
        while forks and time.monotonic() < end:
            select.select([], [], [], 0.05)
            reap()


def _run_fork(connection: socket.socket, run: Run) -> None:
    """One job, from its socket to its answer; never returns."""
    status = 1
    try:
        signal.signal(signal.SIGTERM, _unwind)
        raw = _read_line(connection)
        threading.Thread(target=_end_with_the_other_side, args=(connection,), daemon=True).start()
        try:
            answer: Job = {"result": run(json.loads(raw))}
        except LayerkitError as exc:
            answer = {"error": error_document(exc)}
        except Exception as exc:  # the last frame: a bug of ours, told to the agent
            _log.exception("a job failed")
            answer = {"error": error_document(exc)}
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        connection.sendall(json.dumps(answer).encode() + b"\n")
        status = 0
    except SystemExit:
        status = 0  # cancelled: nobody waits for an answer
    except OSError:
        _log.info("nobody waits for the answer of a job")
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(status)


def _unwind(*_: object) -> None:
    raise SystemExit(143)


def _end_with_the_other_side(connection: socket.socket) -> None:
    """SIGTERM for this fork when nobody waits for its answer any more."""
    with contextlib.suppress(OSError):
        connection.recv(1)  # nothing is ever sent after the job
    os.kill(os.getpid(), signal.SIGTERM)


def _read_line(connection: socket.socket) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n"):
        part = connection.recv(1 << 16)
        if not part or len(data) > MAX_LINE_SIZE:
            raise StoreError("a job did not come whole")
        data += part
    return bytes(data)


def _go_first_when_memory_runs_out() -> None:
    with contextlib.suppress(OSError):
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        try:
            os.write(fd, OOM_SCORE.encode())
        finally:
            os.close(fd)
