"""Jobs in processes of their own: answers, errors, deaths, the end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from layerkit.edges.forker import Forker
from layerkit.errors import NotFoundError, ToolError

PROGRAM = """
import os, signal, time
from layerkit.edges.forked import serve_jobs
from layerkit.errors import NotFoundError
def run(job):
    what = job["do"]
    if what == "fail": raise NotFoundError("nothing", cause="here", hint="look there")
    if what == "crash": os.kill(os.getpid(), signal.SIGSEGV)
    if what == "bug": 1 / 0
    if what == "wait":
        try:
            open(job["path"], "w").close()
            time.sleep(60)
        finally:
            os.unlink(job["path"])
    return {"pid": os.getpid(), "parent": os.getppid(), "echo": job.get("echo")}
serve_jobs(run)
"""


def run(body: Callable[[Forker], Awaitable[None]]) -> None:
    async def main() -> None:
        forker = Forker(f"exec({PROGRAM!r})", dict(os.environ))
        try:
            await body(forker)
        finally:
            await forker.close()

    asyncio.run(asyncio.wait_for(main(), 30))


async def there(path: Path, exists: bool = True) -> None:
    end = time.monotonic() + 10
    while path.exists() != exists:
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def test_jobs_answer_side_by_side_and_errors_stay_what_they_are() -> None:
    async def body(forker: Forker) -> None:
        asked = [forker.run({"do": "x", "echo": "y" * 100_000 + str(at)}) for at in range(8)]
        found = await asyncio.gather(*asked)
        assert [one["echo"] for one in found] == ["y" * 100_000 + str(at) for at in range(8)]
        assert len({one["pid"] for one in found}) == 8
        with pytest.raises(NotFoundError) as caught:
            await forker.run({"do": "fail"})
        assert (caught.value.cause, caught.value.hint) == ("here", "look there")
        with pytest.raises(ToolError, match="died"):
            await forker.run({"do": "crash"})
        with pytest.raises(Exception, match="unexpected ZeroDivisionError"):
            await forker.run({"do": "bug"})
        assert (await forker.run({"do": "x"}))["echo"] is None

    run(body)


def test_a_job_that_nobody_waits_for_unwinds(tmp_path: Path) -> None:
    async def body(forker: Forker) -> None:
        task = asyncio.create_task(forker.run({"do": "wait", "path": str(tmp_path / "x")}))
        await there(tmp_path / "x")
        task.cancel()
        await there(tmp_path / "x", exists=False)

    run(body)


def test_the_parent_of_jobs_is_started_again() -> None:
    async def body(forker: Forker) -> None:
        first = await forker.run({"do": "x"})
        os.kill(int(str(first["parent"])), signal.SIGKILL)
        await asyncio.sleep(0.1)
        for _ in range(3):  # the first may meet the dying one
            try:
                second = await forker.run({"do": "x"})
                break
            except ToolError:
                continue
        assert second["parent"] != first["parent"]

    run(body)


def test_the_end_ends_jobs(tmp_path: Path) -> None:
    async def body(forker: Forker) -> None:
        task = asyncio.create_task(forker.run({"do": "wait", "path": str(tmp_path / "x")}))
        await there(tmp_path / "x")
        started = time.monotonic()
        await forker.close()
        assert time.monotonic() - started < 20  # the job would sleep for a minute
        assert not (tmp_path / "x").exists()
        with pytest.raises(ToolError):
            await task

    run(body)


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_fork_that_waits_for_a_job_takes_the_next_one_and_may_die() -> None:
    async def body(forker: Forker) -> None:
        done = await forker.run({"do": "x"})
        parent = done["parent"]
        assert isinstance(parent, int)
        for is_killed in (False, True, False):
            end = time.monotonic() + 10
            while not (waiting := [pid for pid in children(parent) if pid != done["pid"]]):
                assert time.monotonic() < end
                await asyncio.sleep(0.02)
            (pid,) = waiting
            if is_killed:
                os.kill(pid, signal.SIGKILL)
                while pid in children(parent):
                    await asyncio.sleep(0.02)
            done = await forker.run({"do": "x"})
            assert (done["pid"] == pid) is not is_killed

    run(body)
