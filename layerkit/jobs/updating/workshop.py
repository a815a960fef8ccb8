"""Where a server makes what callers wait for: a few at once, in turns among callers.

A job is made once for all who ask for it. Jobs wait in a queue for each caller; the queues take
turns, and a caller's jobs do not run side by side, so who asks for much delays only itself: some
deltas take minutes, and there is always a thread for the others. (The caller "", a server without
tokens, is everyone, and may have all threads.) The time of a processor that a job takes
is charged to the first caller of it that has any left; a job whose callers have nothing left is not
begun. Memory of jobs that run at once is bounded by their sizes. Safe for threads.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

from layerkit.errors import NotFoundError
from layerkit.jobs.updating.budget import Budgets, Room

__all__ = ["Make", "Workshop"]

THREAD_COUNT: Final = 2  # jobs at once: each takes a core
MAX_JOB_COUNT: Final = 64  # that run or wait
MAX_CALLER_JOB_COUNT: Final = 32  # of one caller: the rest is for the others
MAKING_SIZE: Final = 1 << 30  # bytes of memory for all that runs; a larger one runs alone
JOB_SIZE: Final = 320 << 20  # bytes that a delta takes for its window, and
SIZE_FACTOR: Final = 4  # so many times the forms: 760 MB in all were measured for 60 MB a side
Make = Callable[[], bytes | None]


@dataclass(slots=True, eq=False)
class _Job:
    key: str
    make: Make
    size: int
    callers: list[str]
    future: Future[bytes | None] = field(default_factory=Future)
    is_begun: bool = False


class Workshop:
    """Runs jobs in threads of its own, which end when nothing is left to do."""

    def __init__(
        self,
        budgets: Budgets | None = None,
        *,
        thread_count: int = THREAD_COUNT,
        making_size: int = MAKING_SIZE,
        processor_time: Callable[[], float] = time.thread_time,
    ) -> None:
        self._budgets = budgets or Budgets()
        self._thread_count = thread_count
        self._room = Room(making_size)
        self._processor_time = processor_time
        self._changed = threading.Condition()
        self._jobs: dict[str, _Job] = {}
        self._queues: OrderedDict[str, deque[_Job]] = OrderedDict()  # by caller, next one first
        self._running = 0  # threads
        self._busy: set[str] = set()  # callers of whom a job runs

    def join(self, key: str, who: str) -> Future[bytes | None] | None:
        """What is being made under `key`, if anything is. It is shared, whatever `who` has left."""
        with self._changed:
            return self._join(key, who)

    def submit(self, key: str, make: Make, size: int, who: str) -> Future[bytes | None]:
        """Make it for caller `who`, from forms of `size` bytes; or join who makes it. Raises
        NotFoundError when the caller's budget is spent, or too much waits already."""
        with self._changed:
            found = self._join(key, who)
            if found is not None:
                return found
            if not self._budgets.has_left(who):
                raise NotFoundError("the budget of this token is spent for now")
            if len(self._jobs) >= MAX_JOB_COUNT:
                raise NotFoundError("too much is being made at once")
            if len(self._queues.get(who, ())) >= MAX_CALLER_JOB_COUNT:
                raise NotFoundError("too much is being made at once for this token")
            job = self._jobs[key] = _Job(key, make, size, [who])
            self._enqueue(job, who)
            return job.future

    def make_here(self, key: str, make: Make, size: int) -> bytes | None:
        """Make it in this thread, for nobody in particular; or wait for who makes it."""
        with self._changed:
            job = self._jobs.get(key)
            is_ours = job is None
            if job is None:
                job = self._jobs[key] = _Job(key, make, size, [], is_begun=True)
        if is_ours:
            self._run(job)
        return job.future.result()

    def wait_idle(self, seconds: float) -> bool:
        """Wait until no caller's job runs or waits; False if that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, seconds)

    # --- inside ----------------------------------------------------------------------------------

    def _join(self, key: str, who: str) -> Future[bytes | None] | None:
        job = self._jobs.get(key)
        if job is None:
            return None
        if who not in job.callers and not job.is_begun:
            job.callers.append(who)
            self._enqueue(job, who)  # a second time: whose turn comes first
        return job.future

    def _enqueue(self, job: _Job, who: str) -> None:
        self._queues.setdefault(who, deque()).append(job)
        if self._running < self._thread_count and who not in self._busy:
            self._running += 1
            threading.Thread(target=self._work, name="layerkit-make", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._changed:
                who, job = self._next()
                if job is None:
                    self._running -= 1
                    self._changed.notify_all()
                    return
                if who:
                    self._busy.add(who)
            self._run(job)
            with self._changed:
                self._busy.discard(who)

    def _next(self) -> tuple[str, _Job | None]:
        """The next job, of the next caller of whom none runs. Those that nobody can pay for are
        refused."""
        while (
            who := next((who for who in self._queues if who not in self._busy), None)
        ) is not None:
            queue = self._queues.pop(who)
            job = queue.popleft()
            if queue:
                self._queues[who] = queue  # behind the others
            if job.is_begun:
                continue
            job.is_begun = True
            if any(map(self._budgets.has_left, job.callers)):
                return who, job
            del self._jobs[job.key]
            job.future.set_exception(NotFoundError("the budget of this token is spent for now"))
        return "", None

    def _run(self, job: _Job) -> None:
        try:
            with self._room.take(JOB_SIZE + SIZE_FACTOR * job.size):
                started = self._processor_time()
                try:
                    made = job.make()
                finally:
                    self._charge(job, self._processor_time() - started)
        except BaseException as exc:  # for those who wait
            self._finish(job)
            job.future.set_exception(exc)
        else:
            self._finish(job)
            job.future.set_result(made)

    def _charge(self, job: _Job, seconds: float) -> None:
        with self._changed:
            payers = [who for who in job.callers if self._budgets.has_left(who)]
        for who in (payers or job.callers)[:1]:
            self._budgets.charge(who, seconds)

    def _finish(self, job: _Job) -> None:
        with self._changed:
            del self._jobs[job.key]
