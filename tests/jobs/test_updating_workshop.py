"""jobs/updating: who may have what made, in which turn, at whose cost, in how much memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest

from layerkit.errors import NotFoundError, StoreError
from layerkit.jobs.updating import budget
from layerkit.jobs.updating import workshop as module
from layerkit.jobs.updating.budget import Budgets, Room
from layerkit.jobs.updating.workshop import Workshop

WAIT = 30  # seconds until a test is given up; nothing here takes a hundredth of it


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A workshop whose jobs run when they are told to, one at a time, and cost what they say."""

    def __init__(self, seconds: float = 10, window: float = 60, threads: int = 1) -> None:
        self.clock, self.processor = Clock(), Clock()
        self.budgets = Budgets(seconds, window, self.clock)
        self.workshop = Workshop(self.budgets, thread_count=threads, processor_time=self.processor)
        self.done: list[str] = []
        self.gate = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)

    def job(self, name: str, cost: float = 0) -> Callable[[], bytes]:
        def make() -> bytes:
            self.begun.release()
            assert self.gate.acquire(timeout=WAIT)
            self.processor.now += cost
            self.done.append(name)
            return name.encode()

        return make

    def submit(self, name: str, who: str, cost: float = 0) -> Future[bytes | None]:
        return self.workshop.submit(name, self.job(name, cost), 0, who)

    def open(self) -> None:
        for _ in range(1000):
            self.gate.release()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.open()  # no thread stays behind
    assert made.workshop.wait_idle(WAIT)


# --- budgets ---------------------------------------------------------------------------------


def test_a_budget_is_refilled_as_time_passes() -> None:
    clock = Clock()
    budgets = Budgets(10, 60, clock)
    budgets.charge("a", 10)
    assert not budgets.has_left("a") and budgets.has_left("b")
    clock.now += 1
    assert budgets.has_left("a")


def test_a_debt_is_paid_off_first() -> None:
    clock = Clock()
    budgets = Budgets(10, 60, clock)
    budgets.charge("a", 30)
    clock.now += 119
    assert not budgets.has_left("a")
    clock.now += 2
    assert budgets.has_left("a")


def test_a_budget_does_not_grow_beyond_itself() -> None:
    clock = Clock()
    budgets = Budgets(10, 60, clock)
    budgets.charge("a", 1)
    clock.now += 100_000
    budgets.charge("a", 10)
    assert not budgets.has_left("a")


@pytest.mark.parametrize(("seconds", "who"), [(10, ""), (0, "a")])
def test_without_tokens_or_a_limit_nobody_has_a_budget(seconds: float, who: str) -> None:
    budgets = Budgets(seconds, 60, Clock())
    budgets.charge(who, 1000)
    assert budgets.has_left(who)


def test_who_has_spent_nothing_is_forgotten_and_who_has_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "MANY_CALLERS", 10)
    clock = Clock()
    budgets = Budgets(10, 60, clock)
    for index in range(15):
        budgets.charge(f"early{index}", 1)
    clock.now += 60
    for index in range(15):
        budgets.charge(f"late{index}", 10)
    assert not any(who.startswith("early") for who in budgets._left)
    assert not any(budgets.has_left(f"late{index}") for index in range(15))


# --- whose cost ------------------------------------------------------------------------------


def test_who_is_over_the_budget_is_told_at_once(bench: Bench) -> None:
    bench.gate.release()
    bench.submit("first", "a", cost=11).result(WAIT)
    with pytest.raises(NotFoundError, match="budget"):
        bench.submit("second", "a")
    bench.gate.release()
    assert bench.submit("third", "b").result(WAIT) == b"third"


def test_a_budget_comes_back(bench: Bench) -> None:
    bench.open()
    bench.submit("first", "a", cost=11).result(WAIT)
    bench.clock.now += 60
    assert bench.submit("second", "a").result(WAIT) == b"second"


def test_what_runs_for_others_is_shared_with_who_has_no_budget(bench: Bench) -> None:
    bench.budgets.charge("poor", 11)
    running = bench.submit("one", "rich")
    joined = bench.workshop.join("one", "poor")
    assert joined is running and bench.submit("one", "poor") is running
    bench.gate.release()
    assert joined.result(WAIT) == b"one" and bench.done == ["one"]


def test_a_job_is_charged_to_one_caller_who_can_pay(bench: Bench) -> None:
    blocker = bench.submit("blocker", "x")
    assert bench.begun.acquire(timeout=WAIT)
    job = bench.submit("job", "a", cost=11)
    bench.submit("job", "b")
    bench.budgets.charge("a", 20)  # spent while the job waits
    bench.open()
    assert (blocker.result(WAIT), job.result(WAIT)) == (b"blocker", b"job")
    assert bench.workshop.wait_idle(WAIT)
    assert not bench.budgets.has_left("b")
    bench.clock.now += 66  # 20 less 10 are 10 in debt: it was charged nothing for the job
    assert bench.budgets.has_left("a")


def test_a_job_that_nobody_can_pay_any_more_is_not_begun(bench: Bench) -> None:
    bench.submit("blocker", "x")
    assert bench.begun.acquire(timeout=WAIT)
    job = bench.submit("job", "a")
    bench.budgets.charge("a", 20)
    bench.open()
    with pytest.raises(NotFoundError, match="budget"):
        job.result(WAIT)
    assert bench.done == ["blocker"]


# --- turns -----------------------------------------------------------------------------------


def test_a_caller_that_asks_for_much_delays_only_itself(bench: Bench) -> None:
    bench.submit("a0", "a")
    assert bench.begun.acquire(timeout=WAIT)
    for name in ("a1", "a2", "a3"):
        bench.submit(name, "a")
    for name in ("b1", "b2"):
        bench.submit(name, "b")
    bench.submit("c1", "c")
    bench.open()
    assert bench.workshop.wait_idle(WAIT)
    assert bench.done == ["a0", "a1", "b1", "c1", "a2", "b2", "a3"]


def test_who_joins_a_job_brings_its_turn_forward(bench: Bench) -> None:
    bench.submit("a0", "a")
    assert bench.begun.acquire(timeout=WAIT)
    for name in ("a1", "a2", "a3"):
        bench.submit(name, "a")
    bench.submit("a3", "b")
    bench.open()
    assert bench.workshop.wait_idle(WAIT)
    assert bench.done == ["a0", "a1", "a3", "a2"]


def test_there_is_a_thread_for_others_while_a_callers_job_runs() -> None:
    bench = Bench(threads=2)
    slow = threading.Event()
    jobs = [
        bench.workshop.submit(f"a{index}", lambda: b"" if slow.wait(WAIT) else None, 0, "a")
        for index in range(2)
    ]
    waiting = bench.submit("a2", "a")
    bench.open()
    assert [bench.submit(f"b{index}", "b").result(WAIT) for index in range(3)]
    assert not any(job.done() for job in (*jobs, waiting))
    assert bench.submit("a2", "b").result(WAIT) == b"a2"  # one that waits in another's queue
    slow.set()
    assert [job.result(WAIT) for job in jobs] == [b"", b""]
    assert bench.workshop.wait_idle(WAIT)


def test_without_tokens_all_threads_are_everyones() -> None:
    bench = Bench(threads=2)
    for name in ("one", "two"):
        bench.submit(name, "")
    assert bench.begun.acquire(timeout=WAIT) and bench.begun.acquire(timeout=WAIT)
    bench.open()
    assert bench.workshop.wait_idle(WAIT)


def test_one_caller_cannot_take_all_places(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CALLER_JOB_COUNT", 3)
    monkeypatch.setattr(module, "MAX_JOB_COUNT", 6)
    bench.submit("a0", "a")
    assert bench.begun.acquire(timeout=WAIT)
    for index in (1, 2, 3):
        bench.submit(f"a{index}", "a")
    with pytest.raises(NotFoundError, match="for this token"):
        bench.submit("a4", "a")
    for index in (1, 2):
        bench.submit(f"b{index}", "b")
    with pytest.raises(NotFoundError, match=r"made at once$"):
        bench.submit("b3", "b")


def test_what_fails_is_told_to_all_and_can_be_tried_again(bench: Bench) -> None:
    def fail() -> bytes:
        assert bench.gate.acquire(timeout=WAIT)
        raise StoreError("a blob is damaged")

    first = bench.workshop.submit("job", fail, 0, "a")
    second = bench.workshop.submit("job", fail, 0, "b")
    bench.open()
    for job in (first, second):
        with pytest.raises(StoreError):
            job.result(WAIT)
    assert bench.submit("job", "a").result(WAIT) == b"job"


def test_who_prepares_waits_for_what_a_caller_has_made(bench: Bench) -> None:
    job = bench.submit("job", "a")
    assert bench.begun.acquire(timeout=WAIT)
    bench.open()
    assert bench.workshop.make_here("job", lambda: pytest.fail("made twice"), 0) == b"job"
    assert job.done()


def test_a_caller_gets_what_is_being_prepared_and_pays_nothing(bench: Bench) -> None:
    prepared = threading.Thread(
        target=bench.workshop.make_here, args=("job", bench.job("job", cost=50), 0)
    )
    prepared.start()
    assert bench.begun.acquire(timeout=WAIT)
    job = bench.submit("job", "a")
    assert bench.workshop.wait_idle(0)  # nobody's job runs
    bench.open()
    assert job.result(WAIT) == b"job" and bench.budgets.has_left("a")
    prepared.join()


def test_it_is_idle_only_when_no_callers_job_is_left(bench: Bench) -> None:
    bench.submit("job", "a")
    assert not bench.workshop.wait_idle(0)
    bench.open()
    assert bench.workshop.wait_idle(WAIT)


# --- memory ----------------------------------------------------------------------------------


class Rooms:
    """Threads that hold room until they are let go."""

    def __init__(self, size: int) -> None:
        self.room = Room(size)
        self.held: list[str] = []
        self.changed = threading.Condition()
        self.go: dict[str, threading.Event] = {}

    def take(self, name: str, size: int) -> None:
        self.go[name] = threading.Event()

        def hold() -> None:
            with self.room.take(size):
                with self.changed:
                    self.held.append(name)
                    self.changed.notify_all()
                assert self.go[name].wait(WAIT)
                with self.changed:
                    self.held.remove(name)
                    self.changed.notify_all()

        threading.Thread(target=hold, daemon=True).start()

    def wait(self, *names: str) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: sorted(self.held) == sorted(names), WAIT)


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(WAIT * 1000):
        if condition():
            return
        threading.Event().wait(0.001)
    pytest.fail("it does not become so")


def test_large_ones_do_not_run_side_by_side() -> None:
    rooms = Rooms(100)
    rooms.take("large", 80)
    assert rooms.wait("large")
    rooms.take("other", 30)
    wait_until(lambda: len(rooms.room._waiting) == 1)
    assert rooms.held == ["large"]
    rooms.go["large"].set()
    assert rooms.wait("other")
    rooms.go["other"].set()
    assert rooms.wait()


def test_what_is_larger_than_the_room_goes_alone_and_is_not_passed_by() -> None:
    rooms = Rooms(100)
    rooms.take("small", 10)
    assert rooms.wait("small")
    rooms.take("huge", 500)
    wait_until(lambda: len(rooms.room._waiting) == 1)
    rooms.take("late", 10)
    wait_until(lambda: len(rooms.room._waiting) == 2)
    assert rooms.held == ["small"]
    rooms.go["small"].set()
    assert rooms.wait("huge")
    rooms.go["huge"].set()
    assert rooms.wait("late")
    rooms.go["late"].set()
    assert rooms.wait()
