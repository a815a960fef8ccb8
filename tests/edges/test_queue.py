"""The durable queue: once, again, never; what a crash at any step leaves."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.faulty_disk import CrashError, FaultyDisk

from layerkit.edges.disk import Disk
from layerkit.edges.queue import (
    MAX_VERSION_COUNT,
    QueueCounts,
    Task,
    WorkQueue,
)
from layerkit.errors import BusyError, RemoteError, StoreError, StoreLockedError

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(tmp_path: Path, clock: Clock) -> Iterator[WorkQueue]:
    opened = WorkQueue(tmp_path, Disk(), max_task_count=10, now=clock)
    yield opened
    opened.close()


def take(queue: WorkQueue, kind: str = "look") -> Task:
    task = queue.take(kind)
    assert task is not None
    return task


def test_the_same_task_is_there_once(queue: WorkQueue) -> None:
    queue.put("look", [("fn", "v1"), ("fn", "v1")])
    queue.put("look", [("fn", "v1")])
    queue.finish(take(queue))
    assert queue.take("look") is None and queue.count() == QueueCounts(0, 0, 0, 0)


def test_updates_that_are_not_worth_it_are_kept(
    queue: WorkQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerkit.edges.queue.MAX_UNWORTHY_COUNT", 3)
    queue.note_unworthy("fn", A, ["y", "x"])
    queue.note_unworthy("fn", A, ["x"])
    assert queue.list_unworthy("fn", A) == ["x", "y"]
    assert queue.list_unworthy("fn", B) == queue.list_unworthy("other", A) == []
    queue.note_unworthy("fn", B, ["z", "z2"])
    assert queue.list_unworthy("fn", B) == ["z", "z2"]
    assert len(queue.list_unworthy("fn", A)) < 2  # only so many


def test_a_queue_of_the_first_version_goes_on(tmp_path: Path) -> None:
    """It had no list of such updates."""
    WorkQueue(tmp_path, Disk()).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "queue.sqlite")) as db:
        db.execute("DROP TABLE unworthy")
        db.commit()
    with contextlib.closing(WorkQueue(tmp_path, Disk())) as queue:
        queue.note_unworthy("fn", A, ["x"])
        assert queue.list_unworthy("fn", A) == ["x"]


def test_what_is_put_while_it_runs_is_done_once_more(queue: WorkQueue) -> None:
    queue.put("look", [("fn", "v1")])
    task = take(queue)
    queue.put("look", [("fn", "v1")])
    queue.put("look", [("fn", "v1")])
    assert queue.take("look") is None
    queue.finish(task)
    queue.finish(take(queue))
    assert queue.take("look") is None


def test_the_first_due_comes_first(queue: WorkQueue, clock: Clock) -> None:
    for name in ("b", "a", "c"):
        queue.put("look", [(name, "v1")])
        clock.now += 1
    assert [take(queue).name for _ in range(3)] == ["b", "a", "c"]


def test_what_fails_waits_and_says_why(queue: WorkQueue, clock: Clock) -> None:
    queue.put("look", [("fn", "v1")])
    queue.try_again(take(queue), 30, "the registry is down")
    assert queue.take("look") is None and queue.next_due("look") == 30
    [(task, why)] = queue.list_retrying(5)
    assert (str(task), task.tries, why) == ("fn:v1", 1, "the registry is down")
    clock.now += 30
    assert take(queue).tries == 2


def test_news_end_the_wait(queue: WorkQueue) -> None:
    queue.put("look", [("fn", "v1")])
    queue.try_again(take(queue), 300, "down")
    queue.put("look", [("fn", "v1")])
    assert take(queue).tries == 1


def test_looks_again(queue: WorkQueue, clock: Clock) -> None:
    """A registry tells before the tag moves: news may come with any look."""
    queue.put("look", [("fn", "v1")])
    assert not queue.saw(take(queue), "", "make", 1.0)
    clock.now += 1
    assert queue.saw(take(queue), A, "make", 1.0)
    assert take(queue, "make").digest == A and queue.take("look") is None
    clock.now += 1
    second = take(queue)
    queue.put("look", [("fn", "v1")])  # a push while it looks: at once, and from the start
    assert second.tries == 3 and not queue.saw(second, A, "make", 1.0)
    assert take(queue).tries == 1


def test_what_a_tag_names_is_kept_with_the_task_for_it(queue: WorkQueue) -> None:
    for digest in (A, B, A):
        queue.put("look", [("fn", "v1")])
        queue.saw(take(queue), digest, "make", None)
    assert queue.list_versions("fn", "v1") == [A, B]
    assert {take(queue, "make").digest, take(queue, "make").digest} == {A, B}
    assert queue.take("look") is None


def test_a_first_version_that_was_not_told_is_no_news(queue: WorkQueue) -> None:
    assert not queue.note("fn", "v1", A, "look") and queue.take("look") is None
    assert not queue.note("fn", "v1", A, "look")
    assert queue.note("fn", "v1", B, "look")
    assert queue.list_versions("fn", "v1") == [A] and take(queue).tag == "v1"


def test_a_first_version_that_was_told_is_news_whoever_sees_it_first(
    queue: WorkQueue, clock: Clock
) -> None:
    """Told, looked at before the tag is there, seen by a scan, looked at again."""
    queue.put("look", [("fn", "v1")])
    assert not queue.saw(take(queue), "", "make", 1.0)
    assert not queue.note("fn", "v1", A, "look")
    clock.now += 1
    assert queue.saw(take(queue), A, "make", None)
    assert take(queue, "make").digest == A


def test_versions_are_bounded(queue: WorkQueue) -> None:
    for number in range(MAX_VERSION_COUNT + 5):
        queue.put("look", [("fn", "v1")])
        queue.saw(take(queue), f"sha256:{number:064}", "make", None)
        queue.finish(take(queue, "make"))
    versions = queue.list_versions("fn", "v1")
    assert len(versions) == MAX_VERSION_COUNT
    assert versions[0].endswith(str(MAX_VERSION_COUNT + 4))


def test_a_full_queue_takes_nothing_but_what_it_has(queue: WorkQueue) -> None:
    queue.put("look", [("fn", f"v{number}") for number in range(10)])
    with pytest.raises(BusyError) as failed:
        queue.put("look", [("fn", "v0"), ("fn", "v10")])
    assert failed.value.http_status == 429 and int(failed.value.cause) > 0
    queue.put("look", [("fn", "v0")])
    assert queue.count().waiting == 10


def test_failures_are_the_last_ones(queue: WorkQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerkit.edges.queue.MAX_FAILURE_COUNT", 4)
    for number in range(7):
        queue.put("look", [("fn", f"v{number}")])
        queue.give_up(take(queue), RemoteError("x" * 5000, cause="why"))
    failures = queue.list_failures()
    assert len(failures) == queue.count().failed == 4
    assert failures[0].tag == "v6" and failures[0].cause == "why"
    assert len(failures[0].message) == 1000


def test_it_survives_its_process(tmp_path: Path, clock: Clock) -> None:
    first = WorkQueue(tmp_path, Disk(), now=clock)
    first.put("look", [("fn", "v1"), ("fn", "v2")])
    take(first)
    first.close()
    again = WorkQueue(tmp_path, Disk(), now=clock)
    assert again.count() == QueueCounts(2, 0, 0, 0)
    assert {take(again).tries, take(again).tries} == {1, 2}
    again.close()


def test_one_process_has_it(queue: WorkQueue, tmp_path: Path) -> None:
    with pytest.raises(StoreLockedError, match="another process has the queue"):
        WorkQueue(tmp_path, Disk())


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    WorkQueue(tmp_path, Disk()).close()
    (tmp_path / "queue.sqlite").write_bytes(b"no database" * 500)
    queue = WorkQueue(tmp_path, Disk())
    queue.put("look", [("fn", "v1")])
    assert queue.count().waiting == 1
    queue.close()
    assert (tmp_path / "queue.sqlite.damaged").read_bytes().startswith(b"no database")


def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    queue = WorkQueue(tmp_path, Disk())
    queue._db.execute("PRAGMA user_version=99")
    queue.close()
    with pytest.raises(StoreError, match="schema 99"):
        WorkQueue(tmp_path, Disk())


@pytest.mark.parametrize("stop_at", range(1, 12))
def test_a_crash_at_any_step_loses_nothing_that_was_answered(tmp_path: Path, stop_at: int) -> None:
    """Whatever was put is there, and a look that was finished left what it saw and the task."""
    disk, told, seen = FaultyDisk(stop_at), 0, 0
    try:
        queue = WorkQueue(tmp_path, disk)
        for number in range(3):
            queue.put("look", [("fn", f"v{number}")])
            told += 1
        while (task := queue.take("look")) is not None:
            queue.saw(task, A, "make", None)
            seen += 1
    except CrashError:
        pass
    else:
        assert stop_at > disk.count
    try:
        queue._db.close()
        queue._held.close()
    except UnboundLocalError:
        pass
    again = WorkQueue(tmp_path, Disk())
    left = [task.tag for task in iter(lambda: again.take("look"), None)]
    made = [task.tag for task in iter(lambda: again.take("make"), None)]
    assert sorted(left + made) == [f"v{number}" for number in range(told)]
    assert len(made) == seen
    assert all(again.list_versions("fn", tag) == [A] for tag in made)
    again.close()
