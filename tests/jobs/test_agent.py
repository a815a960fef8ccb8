"""The agent's rules, with jobs that are played: no processes, no store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from layerkit.digest import Digest, sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.forked import error_document, error_of
from layerkit.edges.polling import Answer, Question
from layerkit.errors import (
    FormatError,
    IntegrityError,
    NotFoundError,
    RemoteError,
    StoreFullError,
    ToolError,
    UnauthorizedError,
    UsageError,
)
from layerkit.jobs.agent.api import make_handlers
from layerkit.jobs.agent.keeper import Keeper
from layerkit.jobs.agent.names import Names, Record, parse_record, read_record, serialize_record
from layerkit.jobs.agent.node import Node
from layerkit.jobs.agent.pauses import Health, Pause
from layerkit.jobs.agent.settings import Server, Settings, load_settings, parse_size
from layerkit.jobs.agent.watching import Watching

HELLO = "hello:latest"
FAR = "registry.example/hello:latest"
ONE, TWO, THREE, FOUR = (sha256_digest(b"%d" % number) for number in range(4))


class PlayedJobs:
    """Answers jobs as a worker would; `served` is what the servers have."""

    def __init__(self) -> None:
        self.served: dict[str, Digest] = {HELLO: ONE}
        self.failures: dict[str, Exception] = {}
        self.done: list[Mapping[str, Any]] = []
        self.gate: asyncio.Event | None = None  # pulls wait here
        self.running_count = self.most_running = 0
        self.engines: dict[str, Any] = {}
        self.pinned: set[str] = set()
        self.evictable: list[str] = []
        self.header = "Bearer one"

    async def run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        self.done.append(job)
        answer: dict[str, Any] = await getattr(self, f"_{job['do']}")(job)
        return answer

    def list_done(self, do: str) -> list[Mapping[str, Any]]:
        return [job for job in self.done if job["do"] == do]

    async def _pull(self, job: Mapping[str, Any]) -> dict[str, Any]:
        self.running_count += 1
        self.most_running = max(self.most_running, self.running_count)
        try:
            if self.gate is not None:
                await self.gate.wait()
        finally:
            self.running_count -= 1
        if job["ref"] in self.failures:
            raise self.failures[job["ref"]]
        if job["ref"] not in self.served:
            raise NotFoundError(f"{job['ref']} is nowhere")
        digest = str(self.served[job["ref"]])
        facts: dict[str, Any] = {"config": digest, "manifest": digest, "engines": self.engines}
        return {
            "digest": digest,
            "server": "http://one",
            "up_to_date": False,
            "moved_size": 10,
            "whole_size": 100,
            "seconds": 0.1,
            "plain_count": 0,
            "wants_spare": False,
            **(facts if job["place"]["engines"] else {}),
        }

    async def _sweep(self, job: Mapping[str, Any]) -> dict[str, Any]:
        names = {name["ref"]: (name["versions"] or [""])[0] for name in job["names"]}
        return {"names": names, "removed": 0, "platform": "linux/amd64"}

    async def _remove(self, job: Mapping[str, Any]) -> dict[str, Any]:
        digests = [version["digest"] for version in job["versions"]]
        return {"kept": [digest for digest in digests if digest in self.pinned]}

    async def _evict(self, job: Mapping[str, Any]) -> dict[str, Any]:
        removed, self.evictable = self.evictable, []
        self.failures.clear()
        return {"removed": removed}

    async def _authorize(self, job: Mapping[str, Any]) -> dict[str, Any]:
        assert job["servers"][0]["is_registry"]
        return {"header": self.header}

    async def _gc(self, job: Mapping[str, Any]) -> dict[str, Any]:
        return {"chunk_count": 1, "freed_size": 2, "store_size": 3}

    async def _tidy(self, job: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    async def _pin(self, job: Mapping[str, Any]) -> dict[str, Any]:
        return {}


def settings(folder: Path, **facts: Any) -> Settings:
    given = {"servers": (Server("http://one"),), "watch": (HELLO,), **facts}
    return Settings(folder / "store", **given)


def run(folder: Path, body: Callable[[Keeper, PlayedJobs], Awaitable[None]], **facts: Any) -> None:
    async def main() -> None:
        jobs = PlayedJobs()
        place = folder / "store" / "agent"
        Disk().make_folder(place)
        keeper = Keeper(Node(settings(folder, **facts), jobs, folder=place, disk=Disk()))
        await keeper.start()
        await body(keeper, jobs)
        await keeper.stop()

    asyncio.run(asyncio.wait_for(main(), 20))


# --- pulls ---------------------------------------------------------------------------------------


def test_who_asks_for_a_name_that_is_pulled_joins_that_pull(tmp_path: Path) -> None:
    async def body(keeper: Keeper, jobs: PlayedJobs) -> None:
        jobs.gate = asyncio.Event()
        asked = [asyncio.create_task(keeper.pull(HELLO)) for _ in range(5)]
        await asyncio.sleep(0.05)
        asked[0].cancel()  # who leaves does not stop it
        jobs.gate.set()
        found = await asyncio.gather(*asked[1:])
        assert {one["digest"] for one in found} == {str(ONE)}
        assert len(jobs.list_done("pull")) == 1

    run(tmp_path, body)


def test_pulls_at_once_are_bounded_and_one_that_fails_stops_none(tmp_path: Path) -> None:
    async def body(keeper: Keeper, jobs: PlayedJobs) -> None:
        jobs.served = {HELLO: ONE, **{f"n{at}:latest": ONE for at in range(20)}}
        jobs.failures = {HELLO: IntegrityError("lies", got="1", want="2")}
        jobs.gate = asyncio.Event()
        pulls = [asyncio.create_task(keeper.pull(ref)) for ref in jobs.served]
        while jobs.most_running < 3:
            await asyncio.sleep(0.01)
        jobs.gate.set()
        found = await asyncio.gather(*pulls, return_exceptions=True)
        assert sum(isinstance(one, IntegrityError) for one in found) == 1
        assert jobs.most_running == 3
        failed = keeper.describe(keeper.names.get(HELLO))
        assert (failed["state"], failed["last_error"]["code"]) == ("failing", "DIGEST_INVALID")
        assert 'pulls_total{result="failed"} 1.0' in keeper.node.metrics.render().decode()

    run(tmp_path, body, pulls=3)


def test_a_name_that_is_nowhere_and_not_watched_is_forgotten(tmp_path: Path) -> None:
    async def body(keeper: Keeper, jobs: PlayedJobs) -> None:
        with pytest.raises(NotFoundError):
            await keeper.pull("absent:latest")
        assert keeper.names.find("absent:latest") is None
        assert "failing_names 0.0" in keeper.node.metrics.render().decode()

    run(tmp_path, body)


def test_the_last_versions_stay_and_what_is_pinned(tmp_path: Path) -> None:
    async def body(keeper: Keeper, jobs: PlayedJobs) -> None:
        for digest in (ONE, TWO, THREE, FOUR):
            jobs.served[HELLO] = digest
            await keeper.pull(HELLO)
            if digest == ONE:
                await keeper.pin(keeper.names.get(HELLO).reference, keep=True)
        await keeper.chores.finish()
        versions = [one.digest for one in keeper.names.get(HELLO).versions]
        assert versions == [str(FOUR), str(THREE), str(ONE)]
        record = read_record(tmp_path / "store" / "agent", Disk())
        assert [one.digest for one in record.names[HELLO].versions] == versions

    run(tmp_path, body, keep=2)


def test_a_version_that_somebody_else_pinned_stays(tmp_path: Path) -> None:
    async def body(keeper: Keeper, jobs: PlayedJobs) -> None:
        jobs.pinned = {str(ONE)}
        for digest in (ONE, TWO):
            jobs.served[HELLO] = digest
            await keeper.pull(HELLO)
        await keeper.chores.finish()
        assert [one.pinned for one in keeper.names.get(HELLO).versions] == [False, True]

    run(tmp_path, body, keep=1)


def test_a_tag_that_goes_back_makes_the_old_version_current(tmp_path: Path) -> None:
    async def body(keeper: Keeper, jobs: PlayedJobs) -> None:
        for digest in (ONE, TWO, ONE):
            jobs.served[HELLO] = digest
            await keeper.pull(HELLO)
        versions = [one.digest for one in keeper.names.get(HELLO).versions]
        assert versions == [str(ONE), str(TWO)]

    run(tmp_path, body)


def test_a_full_store_loses_old_versions_and_the_pull_goes_on(tmp_path: Path) -> None:
    async def body(keeper: Keeper, jobs: PlayedJobs) -> None:
        for digest in (ONE, TWO):
            jobs.served[HELLO] = digest
            await keeper.pull(HELLO)
        jobs.failures = {HELLO: StoreFullError("no space left")}
        jobs.evictable = [f"{HELLO}@{ONE}"]
        jobs.served[HELLO] = THREE
        await keeper.pull(HELLO)
        assert keeper.names.get(HELLO).list_have() == (THREE, TWO)
        await keeper.chores.finish()
        versions = [one.digest for one in keeper.names.get(HELLO).versions]
        assert versions == [str(THREE), str(TWO)]
        jobs.failures = {HELLO: StoreFullError("no space left")}
        jobs.served[HELLO] = FOUR
        with pytest.raises(StoreFullError):  # nothing more to evict
            await keeper.pull(HELLO)

    run(tmp_path, body)


def test_a_version_that_becomes_current_again_is_not_removed(tmp_path: Path) -> None:
    """It is surplus when the chores look, and current when they could remove it."""

    async def body(keeper: Keeper, jobs: PlayedJobs) -> None:
        for digest in (ONE, TWO):
            jobs.served[HELLO] = digest
            await keeper.pull(HELLO)
        jobs.gate = asyncio.Event()
        jobs.served[HELLO] = ONE
        pull = asyncio.create_task(keeper.pull(HELLO))
        while not jobs.running_count:
            await asyncio.sleep(0.01)
        chores = asyncio.create_task(keeper.chores.finish())
        await asyncio.sleep(0.05)
        jobs.gate.set()
        await asyncio.gather(pull, chores)
        gone = [one["digest"] for job in jobs.list_done("remove") for one in job["versions"]]
        assert gone == [str(TWO)]
        assert keeper.names.get(HELLO).current == str(ONE)

    run(tmp_path, body, keep=1)


def test_an_engine_that_was_down_gets_the_image_later(tmp_path: Path) -> None:
    async def body(keeper: Keeper, jobs: PlayedJobs) -> None:
        jobs.engines = {"docker": {"code": "TOOL_FAILED", "message": "down"}}
        await keeper.pull(HELLO)
        assert keeper.names.get(HELLO).current == str(ONE)
        wait = await keeper.chores.finish()
        assert wait is not None and wait > 0
        jobs.engines = {"docker": None}
        await keeper.chores.finish()
        assert keeper.names.get(HELLO).versions[0].handed == ["docker"]
        assert keeper.chores.list_unhanded() == []
        assert jobs.list_done("pull")[-1]["digest"] == str(ONE)

    run(tmp_path, body, load=("docker",))


# --- names ---------------------------------------------------------------------------------------


def test_what_people_watch_and_unwatch_holds_against_the_configuration(tmp_path: Path) -> None:
    names = Names(Record())
    names.configure((HELLO, "b:v1"))
    names.unwatch(HELLO)
    names.watch("c:v1")
    names.configure((HELLO, "b:v1"))
    assert {name.ref for name in names if name.watched} == {"b:v1", "c:v1"}
    names.configure(("c:v1",))  # hello is out of it, and b, and c is what people asked for
    assert {name.ref for name in names if name.watched} == {"c:v1"}
    names.configure((HELLO,))
    assert {name.ref for name in names if name.watched} == {HELLO}
    again = parse_record(serialize_record(names.record))
    assert serialize_record(again) == serialize_record(names.record)


def test_a_second_tag_has_a_link_of_its_own(tmp_path: Path) -> None:
    names = Names(Record())
    links = [names.add(ref).link for ref in (HELLO, "hello:canary", "other:canary")]
    assert links == ["current", "current-canary", "current"]


@pytest.mark.parametrize("ref", ["team/current:v1", f"team/sha256-{'a' * 64}:v1", "a/current-b:v1"])
def test_names_that_look_like_versions_are_refused(ref: str) -> None:
    with pytest.raises(UsageError):
        Names(Record()).add(ref)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b'{"kind":"layerkit-agent","major":2,"names":[],"unwatched":[]}',
        b'{"kind":"layerkit-agent","major":1,"names":[{"ref":"A B"}],"unwatched":[]}',
        b'{"kind":"layerkit-agent","major":1,"names":[{"ref":"a:b","versions":[{"digest":"x",'
        b'"pulled_at":1}]}],"unwatched":[]}',
        b'{"kind":"layerkit-agent","major":1,"names":[{"ref":"a:b","versions":[],'
        b'"last_success":"now"}],"unwatched":[]}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_record_is_a_format_error_and_kept_aside(raw: bytes, tmp_path: Path) -> None:
    with pytest.raises(FormatError):
        parse_record(raw)
    (tmp_path / "state.json").write_bytes(raw)
    assert read_record(tmp_path, Disk()) == Record()
    assert (tmp_path / "state.damaged").read_bytes() == raw


def test_a_removal_that_was_cut_goes_on_after_a_restart(tmp_path: Path) -> None:
    async def cut(keeper: Keeper, jobs: PlayedJobs) -> None:
        await keeper.pull(HELLO)
        keeper.names.unwatch(HELLO)
        keeper.names.get(HELLO).leaving = True
        await keeper.node.save()

    async def after(keeper: Keeper, jobs: PlayedJobs) -> None:
        await keeper.chores.finish()
        assert jobs.list_done("remove")[0]["whole"] is True
        assert keeper.names.find(HELLO) is None

    run(tmp_path, cut)
    run(tmp_path, after)


# --- watching ------------------------------------------------------------------------------------


class PlayedPoller:
    """Answers questions from a list; None is a server without long polls."""

    def __init__(self, *answers: Answer | Exception | None) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str, Question, float]] = []
        self.shown: list[str] = []
        self.empty = asyncio.Event()

    async def wait_for_update(
        self, url: str, token: str, question: Question, wait: float
    ) -> Answer | None:
        return await self._next("updates", url, question, wait)

    async def look(self, url: str, token: str, question: Question) -> Answer:
        self.shown.append(token)
        found = await self._next("manifests", url, question, 0.0)
        assert found is not None
        return found

    async def _next(self, what: str, url: str, question: Question, wait: float) -> Answer | None:
        self.asked.append((what, url, question, wait))
        if not self.answers:
            self.empty.set()
            await asyncio.Event().wait()
        found = self.answers.pop(0)
        await asyncio.sleep(0)
        if isinstance(found, Exception):
            raise found
        return found


def watch(
    folder: Path, poller: Callable[[], PlayedPoller], then: Digest, **facts: Any
) -> tuple[PlayedPoller, PlayedJobs]:
    """Watch hello until the answers are used up; `then` is what a pull finds after the first."""
    kept: list[Any] = []

    async def body(keeper: Keeper, jobs: PlayedJobs) -> None:
        await keeper.pull(HELLO)
        jobs.served[HELLO] = then
        played = poller()
        kept.extend((played, jobs))
        watching = Watching(keeper, played, "linux/amd64", dice=lambda: 0.0)  # type: ignore[arg-type]
        watching.follow()
        await asyncio.wait_for(played.empty.wait(), 10)
        await watching.stop()

    run(folder, body, **facts)
    return kept[0], kept[1]


def test_news_are_pulled_from_who_told_them_with_the_update_in_them(tmp_path: Path) -> None:
    answers = [Answer(False, ONE, True, True), Answer(True, TWO, update=b"delta")]
    poller, jobs = watch(tmp_path, lambda: PlayedPoller(*answers), TWO)
    last = jobs.list_done("pull")[-1]
    assert (last["update"], last["servers"][0]["url"]) == ("ZGVsdGE=", "http://one")
    assert [question.have[0] for _, _, question, _ in poller.asked] == [ONE, ONE, TWO]


def test_a_server_without_long_polls_is_asked_for_its_manifest(tmp_path: Path) -> None:
    answers = [None, Answer(False, ONE), Answer(True, TWO)]
    poller, jobs = watch(tmp_path, lambda: PlayedPoller(*answers), TWO, poll_seconds=0.1)
    assert [what for what, *_ in poller.asked] == ["updates", *["manifests"] * 3]
    assert len(jobs.list_done("pull")) == 2


def test_a_question_that_is_answered_early_is_asked_again_soon(tmp_path: Path) -> None:
    """As when a server restarts; one that never holds them is not asked in a tight loop."""
    answers = [Answer(False, ONE, True)] * 2
    poller, _ = watch(tmp_path, lambda: PlayedPoller(*answers), ONE)
    assert len(poller.asked) == 3  # after 0.25 and 0.5 s, with poll_seconds of 30


def test_a_version_that_does_not_come_is_left_for_a_while_and_its_successor_asked_for(
    tmp_path: Path,
) -> None:
    async def body(keeper: Keeper, jobs: PlayedJobs) -> None:
        await keeper.pull(HELLO)
        jobs.failures = {HELLO: IntegrityError("rotten", got="1", want="2")}
        poller = PlayedPoller(Answer(True, TWO))
        watching = Watching(keeper, poller, "linux/amd64", dice=lambda: 1.0)  # type: ignore[arg-type]
        watching.follow()
        await asyncio.wait_for(poller.empty.wait(), 10)
        assert poller.asked[-1][2].have[0] == TWO  # held until there is something after it
        assert poller.asked[-1][3] <= 1.0  # and not longer than the pause
        await watching.stop()

    run(tmp_path, body)


def test_another_server_is_asked_when_one_fails_and_that_one_is_left_alone(tmp_path: Path) -> None:
    servers = (Server("http://one"), Server("http://two"))
    answers = [RemoteError("down"), Answer(False, ONE, True, True), Answer(False, ONE, True, True)]
    poller, _ = watch(tmp_path, lambda: PlayedPoller(*answers), ONE, servers=servers)
    urls = [url for _, url, _, _ in poller.asked]
    assert urls[:4] == ["http://one", "http://two", "http://two", "http://two"]


def test_with_more_names_than_connections_questions_are_shorter(tmp_path: Path) -> None:
    async def body(keeper: Keeper, jobs: PlayedJobs) -> None:
        for name in keeper.names:
            name.add(str(ONE), 0.0)
            keeper.node.unsure.discard(name.ref)
        poller = PlayedPoller(*[Answer(False, ONE, True, True)] * 60)
        watching = Watching(keeper, poller, "linux/amd64")  # type: ignore[arg-type]
        watching.follow()
        await asyncio.wait_for(poller.empty.wait(), 10)
        assert {round(wait) for *_, wait in poller.asked} == {5}
        assert len({question.name for _, _, question, _ in poller.asked[:20]}) == 20  # in turn
        await watching.stop()

    run(tmp_path, body, watch=tuple(f"n{at}:latest" for at in range(20)), polls=2)


def look_at_registry(
    folder: Path, *answers: Answer | Exception, **facts: Any
) -> tuple[PlayedPoller, PlayedJobs]:
    """Watch a name of a registry until the answers are used up."""
    kept: list[Any] = []

    async def body(keeper: Keeper, jobs: PlayedJobs) -> None:
        jobs.served[FAR] = ONE
        await keeper.pull(FAR)
        jobs.header = facts.pop("header", jobs.header)
        played = PlayedPoller(*answers)
        kept.extend((played, jobs))
        watching = Watching(keeper, played, "linux/amd64", dice=lambda: 0.0)  # type: ignore[arg-type]
        watching.follow()
        await asyncio.wait_for(played.empty.wait(), 10)
        await watching.stop()

    run(folder, body, servers=(), watch=(FAR,), poll_seconds=0.1)
    return kept[0], kept[1]


def test_a_registry_is_only_looked_at_and_shown_what_it_accepted(tmp_path: Path) -> None:
    answers = [
        UnauthorizedError("who?"),
        Answer(False, ONE),
        Answer(False, ONE),
        Answer(False, ONE),
    ]
    poller, jobs = look_at_registry(tmp_path, *answers)
    assert {what for what, *_ in poller.asked} == {"manifests"}
    assert {url for _, url, _, _ in poller.asked} == {"https://registry.example"}
    assert poller.shown == ["", *["Bearer one"] * 4]
    assert len(jobs.list_done("authorize")) == 1
    assert jobs.list_done("pull")[0]["servers"][0]["is_registry"]


def test_a_token_that_has_ended_is_replaced(tmp_path: Path) -> None:
    ended = UnauthorizedError("it has ended")
    answers = [ended, Answer(False, ONE), ended, Answer(False, ONE)]
    _, jobs = look_at_registry(tmp_path, *answers)
    assert len(jobs.list_done("authorize")) == 2


def test_a_registry_that_lets_nobody_in_is_told_of_and_not_asked_in_a_loop(tmp_path: Path) -> None:
    poller, jobs = look_at_registry(tmp_path, UnauthorizedError("who?"), header="")
    assert len(jobs.list_done("authorize")) == 1
    assert len(poller.asked) == 2  # again after a pause


def test_a_registry_that_is_busy_is_left_alone_as_long_as_it_asks() -> None:
    clock = [0.0]
    health = Health(lambda: clock[0], dice=lambda: 0.0)
    one = Server("https://registry.example", is_registry=True)
    health.failed(one, asked=20.0)
    clock[0] = 19.9
    assert not health.list_usable((one,))
    clock[0] = 20.1
    assert health.list_usable((one,)) == (one,)


def test_many_names_of_a_registry_share_few_connections(tmp_path: Path) -> None:
    refs = tuple(f"registry.example/n{at}:latest" for at in range(20))

    async def body(keeper: Keeper, jobs: PlayedJobs) -> None:
        for name in keeper.names:
            name.add(str(ONE), 0.0)
            keeper.node.unsure.discard(name.ref)
        poller, running, most = PlayedPoller(), 0, 0

        async def look(url: str, token: str, question: Question) -> Answer:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.005)
            running -= 1
            poller.asked.append(("manifests", url, question, 0.0))
            return Answer(False, ONE)

        poller.look = look  # type: ignore[method-assign]
        watching = Watching(keeper, poller, "linux/amd64")  # type: ignore[arg-type]
        watching.follow()
        while len(poller.asked) < 20:
            await asyncio.sleep(0.005)
        assert len({question.name for _, _, question, _ in poller.asked[:20]}) == 20
        assert most <= 4
        await watching.stop()

    run(tmp_path, body, servers=(), watch=refs)


def test_pauses_double_by_half_at_random_and_end() -> None:
    low, high = Pause(dice=lambda: 0.0), Pause(dice=lambda: 1.0)
    assert [low.next() for _ in range(4)] == [0.5, 1.0, 2.0, 4.0]
    assert [high.next() for _ in range(12)][-1] == 300.0


def test_names_that_fail_together_count_as_one_failure() -> None:
    clock = [0.0]
    health = Health(lambda: clock[0], dice=lambda: 1.0)
    one, two = Server("http://one"), Server("http://two")
    for _ in range(100):
        health.failed(one)
    assert health.list_usable((one, two)) == (two,)
    clock[0] = 1.01
    assert health.list_usable((one, two)) == (one, two)


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("10GiB", 10 << 30),
        ("1.5 MiB", 3 << 19),
        ("500MB", 500_000_000),
        ("2k", 2000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "servers = 3",
        'servers = ["ftp://x"]',
        'servers = ["http://user:password@x"]',
        'servers = [{url = "http://x", secret = 1}]',
        "watch = 3",
        'watch = ["Hello World"]',
        f'watch = ["hello@{ONE}"]',
        "keep = 0",
        "keep = true",
        'quota = "much"',
        'load = ["podman"]',
        'metrics = "here"',
        'platform = "linux"',
        "unknown = 1",
        'rootfs = "a"\nlayouts = "b"',
        "= 1",
    ],
)
def test_a_wrong_configuration_is_refused(text: str, tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    good = "" if "servers" in text else 'servers = ["http://x"]\n'
    config.write_text(good + text)
    with pytest.raises(UsageError):
        load_settings({"config": config}, tmp_path)


def test_options_win_over_the_file_and_tokens_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("common\n")
    (tmp_path / "b").write_text("own\n")
    config = tmp_path / "agent.toml"
    config.write_text(
        f'keep = 2\nwatch = ["x:v1"]\ntoken_file = "{tmp_path}/a"\n'
        f'servers = ["http://x", {{url = "http://y", token_file = "{tmp_path}/b"}}]\n'
    )
    options = {"config": config, "keep": 5, "watch": (), "socket": None}
    found = load_settings(options, tmp_path)
    assert (found.keep, found.watch) == (5, ("x:v1",))
    assert [server.token for server in found.servers] == ["common", "own"]
    assert "common" not in repr(found)


def test_what_tools_say_travels_whole() -> None:
    for error in (ToolError("a", cause="b", hint="c"), NotFoundError("x"), FormatError("f")):
        again = error_of(json.loads(json.dumps(error_document(error))))
        assert (type(again), again.message, again.cause) == (
            type(error),
            error.message,
            error.cause,
        )


def test_every_request_of_the_api_is_documented(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "agent.md").read_text()

    async def body(keeper: Keeper, jobs: PlayedJobs) -> None:
        for method, path in make_handlers(keeper, lambda: None, 0.0):
            assert f"`{method} {path}`" in text

    run(tmp_path, body)


def test_the_api_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    async def body(keeper: Keeper, jobs: PlayedJobs) -> None:
        handlers = make_handlers(keeper, lambda: None, 0.0)
        for path, document in (
            ("/v1/pull", {}),
            ("/v1/pull", {"ref": 1}),
            ("/v1/pull", {"ref": HELLO, "wait": "yes"}),
            ("/v1/pull", {"ref": f"hello@{ONE}"}),
            ("/v1/watch", {"ref": "a" * 600}),
            ("/v1/watch", {"ref": "a/current"}),
            ("/v1/gc", {"dry_run": 1}),
            ("/v1/pin", {"ref": HELLO, "keep": True}),
        ):
            with pytest.raises(UsageError):
                await handlers["POST", path](document)

    run(tmp_path, body)
