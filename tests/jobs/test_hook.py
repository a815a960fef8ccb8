"""The hook: what it makes beside an image that another tool pushed, and how often it tries."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from builders import noise
from registries import INDEX, FakeRegistry

from layerkit.digest import Digest
from layerkit.edges.disk import Disk
from layerkit.edges.queue import Task, WorkQueue
from layerkit.edges.registry import Registry, Transport, fallback_tag, list_referrers
from layerkit.errors import (
    FormatError,
    LayerkitError,
    RemoteError,
    RemoteLimitError,
    StoreError,
    ToolError,
)
from layerkit.formats import oci
from layerkit.formats.chunkmanifest import parse_chunk_manifest
from layerkit.formats.deflate import compress, compression_by_name
from layerkit.formats.layer import Entry, build_tar
from layerkit.formats.notifications import Pushed
from layerkit.formats.reference import Reference
from layerkit.formats.storedupdate import find_updates
from layerkit.jobs.hook.making import Made, make_for
from layerkit.jobs.hook.settings import HookSettings
from layerkit.jobs.hook.worker import run_job
from layerkit.jobs.hook.working import GIVE_UP_SECONDS, MAX_TRIES, Work, _pause_after

NAME = "team/fn"
REF = Reference("registry", NAME, "v1")
FN = Pushed(NAME, "v1")
GZIP = compression_by_name("gzip")
CODE = bytearray(noise(40_000))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerkit.edges.registry.referrers.SETTLE_SECONDS", 0.002)
    monkeypatch.setattr("layerkit.jobs.hook.working.FIRST_PAUSE", 0.02)
    monkeypatch.setattr("layerkit.jobs.hook.working.LOOK_PAUSES", (0.01, 0.02))


@pytest.fixture
def fake(request: pytest.FixtureRequest) -> Iterator[FakeRegistry]:
    """Without a referrers API, as the registries that send notifications."""
    has_api = getattr(request, "param", False)
    with FakeRegistry(referrers_api=has_api).serving() as running:
        yield running


either = pytest.mark.parametrize("fake", [True, False], ids=["api", "fallback"], indirect=True)


def put(fake: FakeRegistry, media_type: str, raw: bytes, tag: str = "") -> dict[str, Any]:
    """As docker does it: a manifest by its digest or a tag, in docker's media types."""
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    held = fake.manifests.setdefault(NAME, {})
    held[digest] = (media_type, raw)
    if tag:
        held[tag] = (media_type, raw)
    return {"mediaType": media_type, "digest": digest, "size": len(raw)}


def put_blob(fake: FakeRegistry, media_type: str, raw: bytes) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    fake.blobs.setdefault(NAME, {})[digest] = raw
    return {"mediaType": media_type, "digest": digest, "size": len(raw)}


def edited(seed: int) -> bytes:
    """A binary of which some bytes differ."""
    code = bytearray(CODE)
    code[20_000:20_008] = noise(8, seed)
    return bytes(code)


def put_image(
    fake: FakeRegistry, seed: int, tag: str = "v1", arch: str = "amd64", **more: Any
) -> dict[str, Any]:
    """An image as docker builds it FROM scratch: two layers without a word about roles."""
    tars = [
        build_tar([Entry("etc/passwd", b"root:x:0:0\n", 0o644)]),
        build_tar([Entry(f"{arch}/fn", edited(seed), 0o755)]),
    ]
    layers = [put_blob(fake, oci.DOCKER_LAYER_GZIP, compress(tar, GZIP)) for tar in tars]
    diff_ids = [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]
    config = {
        "architecture": arch,
        "os": "linux",
        "config": {"Entrypoint": ["/fn"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    document = {
        "schemaVersion": 2,
        "mediaType": oci.DOCKER_MANIFEST,
        "config": put_blob(fake, oci.DOCKER_CONFIG, json.dumps(config).encode()),
        "layers": layers,
    } | more
    return put(fake, oci.DOCKER_MANIFEST, json.dumps(document).encode(), tag)


def put_index(fake: FakeRegistry, seed: int) -> dict[str, Any]:
    """Two platforms, and an attestation as buildx puts it beside them."""
    entries = []
    for arch in ("amd64", "arm64"):
        entry = put_image(fake, seed, "", arch)
        entries.append(entry | {"platform": {"os": "linux", "architecture": arch}})
    note = put_blob(fake, "application/vnd.in-toto+json", b'{"predicate": {}}')
    manifest = {
        "schemaVersion": 2,
        "mediaType": oci.MANIFEST,
        "config": put_blob(fake, oci.CONFIG, b"{}"),
        "layers": [note],
    }
    entry = put(fake, oci.MANIFEST, json.dumps(manifest).encode())
    entries.append(entry | {"platform": {"os": "unknown", "architecture": "unknown"}})
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    return put(fake, INDEX, json.dumps(document).encode(), "v1")


def registry_of(fake: FakeRegistry) -> Registry:
    return Registry(Transport(fake.host, plain_http=True, patience=0.05))


def digest_of(entry: Mapping[str, Any]) -> Digest:
    return Digest.parse(entry["digest"])


def make(
    fake: FakeRegistry, top: Mapping[str, Any], *seen: Mapping[str, Any], count: int = 3
) -> Made:
    olds = [digest_of(one) for one in seen]
    return make_for(registry_of(fake), REF, digest_of(top), olds, count)


def listed(fake: FakeRegistry, top: Mapping[str, Any], kind: str) -> list[oci.Descriptor]:
    return list_referrers(registry_of(fake), NAME, digest_of(top), kind)


# --- what is made --------------------------------------------------------------------------------


@either
def test_an_image_of_another_tool_gets_chunks_and_stays_as_it_is(fake: FakeRegistry) -> None:
    top = put_image(fake, 1)
    before = dict(fake.manifests[NAME])
    assert make(fake, top).chunks_count == 1
    assert {key: fake.manifests[NAME][key] for key in before} == before
    [entry] = listed(fake, top, oci.CHUNKS_ARTIFACT)
    artifact = oci.parse_manifest(fake.manifests[NAME][str(entry.digest)][1])
    assert artifact.subject is not None and artifact.subject.digest == digest_of(top)
    image = json.loads(fake.manifests[NAME]["v1"][1])
    config = json.loads(fake.blobs[NAME][image["config"]["digest"]])
    lists = [one for one in artifact.layers if one.media_type == oci.CHUNK_MANIFEST]
    found = [parse_chunk_manifest(fake.blobs[NAME][str(one.digest)]) for one in lists]
    assert [str(one.diff_id) for one in found] == config["rootfs"]["diff_ids"]
    assert {one.role for one in found} == {0}  # nobody said which; nodes know no other


def test_the_next_image_gets_updates_from_the_last_ones(fake: FakeRegistry) -> None:
    tops = [put_image(fake, seed) for seed in range(4)]
    made = make(fake, tops[3], *reversed(tops[:3]), count=2)
    assert (made.chunks_count, made.update_count) == (3, 2)
    stored = find_updates(listed(fake, tops[3], oci.UPDATE_ARTIFACT))
    assert [str(one.old) for one in stored] == [one["digest"] for one in reversed(tops[1:3])]
    for one in stored:
        raw = fake.blobs[NAME][str(one.blob)]
        assert len(raw) == one.size < 2000


def test_the_same_again_makes_nothing(fake: FakeRegistry) -> None:
    tops = [put_image(fake, seed) for seed in range(2)]
    make(fake, tops[1], tops[0])
    before = json.dumps(sorted(fake.manifests[NAME])), sorted(fake.blobs[NAME])
    again = make(fake, tops[1], tops[0])
    assert again == Made()
    assert (json.dumps(sorted(fake.manifests[NAME])), sorted(fake.blobs[NAME])) == before


@pytest.mark.slow
def test_what_the_registry_tells_is_an_old_image_too(fake: FakeRegistry) -> None:
    """A hook that lost its queue goes on from what it, or a push, wrote down."""
    tops = [put_image(fake, seed) for seed in range(3)]
    make(fake, tops[1], tops[0])
    made = make(fake, tops[2], tops[1])
    assert made.update_count == 2
    top = put_image(fake, 3)
    assert make(fake, top, tops[2], count=3).update_count == 3
    assert make(fake, put_image(fake, 4)).update_count == 0  # nothing says what came before


@pytest.mark.slow
@either
def test_two_hooks_at_once_come_to_the_same(fake: FakeRegistry) -> None:
    tops = [put_image(fake, seed) for seed in range(2)]
    failed: list[BaseException] = []

    def run() -> None:
        try:
            make(fake, tops[1], tops[0])
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(listed(fake, tops[1], oci.CHUNKS_ARTIFACT)) == 1
    assert len(find_updates(listed(fake, tops[1], oci.UPDATE_ARTIFACT))) == 1


@pytest.mark.slow
def test_each_platform_has_its_own(fake: FakeRegistry) -> None:
    tops = [put_index(fake, seed) for seed in range(2)]
    made = make(fake, tops[1], tops[0])
    assert (made.chunks_count, made.update_count) == (4, 2)
    stored = find_updates(listed(fake, tops[1], oci.UPDATE_ARTIFACT))
    assert sorted(str(one.platform) for one in stored) == ["linux/amd64", "linux/arm64"]


def test_no_updates_to_what_the_tag_names_no_more(fake: FakeRegistry) -> None:
    tops = [put_image(fake, seed) for seed in range(3)]
    made = make(fake, tops[1], tops[0])
    assert (made.chunks_count, made.update_count) == (2, 0)


@pytest.mark.slow
def test_an_old_image_that_is_gone_is_left_out(fake: FakeRegistry) -> None:
    tops = [put_image(fake, seed) for seed in range(3)]
    del fake.manifests[NAME][tops[1]["digest"]]
    made = make(fake, tops[2], tops[1], tops[0])
    assert (made.chunks_count, made.update_count, made.skipped) == (2, 1, "")
    del fake.manifests[NAME][tops[2]["digest"]]
    assert make(fake, tops[2]).skipped == "it is gone"


@pytest.mark.parametrize(
    "change",
    [
        {"artifactType": "application/x"},
        {"config": {"mediaType": "application/vnd.cncf.helm.config.v1+json"}},
        {"layers": [{"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"}]},
        {"layers": []},
        {"layers": [{"mediaType": oci.DOCKER_LAYER_GZIP, "size": 1 << 33}]},
    ],
)
def test_what_is_no_image_that_we_can_read_is_left_alone(
    fake: FakeRegistry, change: dict[str, Any]
) -> None:
    filler = put_blob(fake, "application/x", b"{}")
    changed = {
        key: [filler | one for one in value] if isinstance(value, list) else value
        for key, value in change.items()
    }
    if "config" in changed:
        changed["config"] = filler | change["config"]
    top = put_image(fake, 1, **changed)
    before = set(fake.manifests[NAME])
    made = make(fake, top)
    assert made.skipped and made.chunks_count == 0 and set(fake.manifests[NAME]) == before


@either
def test_a_list_that_lies_is_not_believed(fake: FakeRegistry) -> None:
    """Somebody lists the artifact of another image: this one still gets its own."""
    other, top = put_image(fake, 1, "other"), put_image(fake, 2)
    make(fake, other)
    if not fake.referrers_api:
        lists = fake.manifests[NAME]
        lists[fallback_tag(digest_of(top))] = lists[fallback_tag(digest_of(other))]
    assert make(fake, top).chunks_count == 1


def test_a_layer_that_is_not_what_the_config_says(fake: FakeRegistry) -> None:
    top = put_image(fake, 1)
    image = json.loads(fake.manifests[NAME]["v1"][1])
    config = json.loads(fake.blobs[NAME][image["config"]["digest"]])
    config["rootfs"]["diff_ids"].reverse()
    top = put_image(fake, 1, config=put_blob(fake, oci.DOCKER_CONFIG, json.dumps(config).encode()))
    with pytest.raises(LayerkitError, match="layer"):
        make(fake, top)


# --- when it is made -----------------------------------------------------------------------------


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


class InThisProcess:
    """A `Forker` that forks nothing."""

    def __init__(self) -> None:
        self.jobs: list[Mapping[str, object]] = []
        self.fail: Callable[[], None] = lambda: None
        self.gate = threading.Event()
        self.gate.set()

    def start(self) -> None: ...

    async def run(self, job: Mapping[str, object]) -> dict[str, object]:
        self.jobs.append(job)
        self.fail()
        await asyncio.to_thread(self.gate.wait)
        return await asyncio.to_thread(run_job, job)

    async def close(self) -> None: ...


class Counts:
    def __init__(self) -> None:
        self.ends: list[tuple[str, str]] = []

    def ended(self, kind: str, result: str, seconds: float) -> None:
        self.ends.append((kind, result))

    def made(self, result: Mapping[str, Any]) -> None: ...


class Running:
    """A hook's work without its HTTP."""

    def __init__(self, fake: FakeRegistry, folder: Path, **more: Any) -> None:
        facts: dict[str, Any] = {"scan_seconds": 0.0} | more
        settings = HookSettings(fake.url, folder, **facts)
        self.forker, self.tally = InThisProcess(), Counts()
        self.queue = WorkQueue(folder, Disk())
        self.work = Work(settings, self.queue, registry_of(fake), self.forker, self.tally)  # type: ignore[arg-type]

    def wait(self, *, failures: int = 0) -> None:
        """Until nothing is left to do."""
        end = time.monotonic() + 10
        while time.monotonic() < end:
            count = self.queue.count()
            if count.waiting + count.running + count.retrying == 0:
                assert count.failed == failures
                return
            time.sleep(0.01)
        raise AssertionError(self.work.describe())

    def __enter__(self) -> Running:
        self.work.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.work.stop()
        self.queue.close()


def test_from_two_pushes_to_an_update(fake: FakeRegistry, tmp_path: Path) -> None:
    with Running(fake, tmp_path) as running:
        for seed in range(2):
            top = put_image(fake, seed)
            assert running.work.take_in([FN, FN]) == 2
            running.wait()
        assert len(find_updates(listed(fake, top, oci.UPDATE_ARTIFACT))) == 1
        assert running.work.describe()["failures"] == []


def test_an_update_that_is_not_worth_it_is_made_once(
    fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerkit.jobs.updating.stored.worth_storing", lambda *_: False)
    with Running(fake, tmp_path) as running:
        tops = []
        for seed in range(2):
            tops.append(put_image(fake, seed))
            running.work.take_in([FN])
            running.wait()
    monkeypatch.delattr("layerkit.jobs.updating.stored._make")  # none is made again
    with Running(fake, tmp_path) as running:  # it is on disk
        running.work.take_in([FN])  # the same is pushed again
        running.wait()
        [job] = running.forker.jobs
        assert job["unworthy"] == [tops[0]["digest"]]
    assert not find_updates(listed(fake, tops[1], oci.UPDATE_ARTIFACT))


def test_no_version_is_lost_while_a_job_runs(fake: FakeRegistry, tmp_path: Path) -> None:
    free = threading.Event()
    with Running(fake, tmp_path) as running:
        running.forker.gate = free
        tops = []
        for seed in range(3):
            tops.append(put_image(fake, seed)["digest"])
            running.work.take_in([FN])
            until(lambda: running.queue.list_versions(NAME, "v1")[:1] == tops[-1:])
        free.set()
        running.wait()
        assert running.queue.list_versions(NAME, "v1") == tops[::-1]
    seen = {job["digest"]: job["seen"] for job in running.forker.jobs}
    assert seen == {top: tops[:at][::-1] for at, top in enumerate(tops)}


@pytest.mark.slow
def test_a_registry_tells_before_the_tag_moves(
    fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As distribution does: what is seen first is what the tag named before, or nothing."""
    monkeypatch.setattr("layerkit.jobs.hook.working.LOOK_PAUSES", (0.2, 0.2))
    with Running(fake, tmp_path) as running:
        tops = []
        for seed in range(2):
            running.work.take_in([FN])
            until(lambda seed=seed: running.tally.ends.count(("look", "done")) > 3 * seed)
            tops.append(put_image(fake, seed))
            running.wait()
    assert len(find_updates(listed(fake, tops[1], oci.UPDATE_ARTIFACT))) == 1


@pytest.mark.parametrize("tag", ["sha256-" + "0" * 64, "sha256-" + "0" * 64 + ".sig"])
def test_what_it_pushes_itself_is_no_news(fake: FakeRegistry, tmp_path: Path, tag: str) -> None:
    with Running(fake, tmp_path) as running:
        assert running.work.take_in([Pushed(NAME, tag)]) == 0


def test_only_the_repositories_that_it_works_for(fake: FakeRegistry, tmp_path: Path) -> None:
    with Running(fake, tmp_path, repositories=("team/*", "web")) as running:
        told = [Pushed(name, "v1") for name in ("team/a", "web", "webs", "other/team/a")]
        assert running.work.take_in(told) == 2
        running.wait()  # neither is there: no failure


def test_a_registry_that_is_down_is_waited_for(fake: FakeRegistry, tmp_path: Path) -> None:
    top = put_image(fake, 1)
    fake.down = True
    with Running(fake, tmp_path) as running:
        running.work.take_in([FN])
        until(lambda: bool(running.queue.list_retrying(1)))
        [retrying] = running.work.describe()["retrying"]
        assert "cannot reach" in retrying["why"] and retrying["ref"] == str(FN)
        fake.down = False
        running.wait()
    assert len(listed(fake, top, oci.CHUNKS_ARTIFACT)) == 1


def test_a_job_that_dies_is_tried_some_times(fake: FakeRegistry, tmp_path: Path) -> None:
    put_image(fake, 1)

    def die() -> None:
        raise ToolError("the process of a job died", cause="killed")

    with Running(fake, tmp_path) as running:
        running.forker.fail = die
        running.work.take_in([FN])
        running.wait(failures=1)
        [failure] = running.work.describe()["failures"]
    assert len(running.forker.jobs) == failure["tries"] == MAX_TRIES
    assert (failure["name"], failure["tag"], failure["code"]) == (NAME, "v1", "TOOL_FAILED")


def test_a_job_that_never_ends_is_ended(fake: FakeRegistry, tmp_path: Path) -> None:
    put_image(fake, 1)
    with Running(fake, tmp_path, job_seconds=0.0) as running:
        running.work.take_in([FN])
        running.wait(failures=1)
        assert "takes over" in running.work.describe()["failures"][0]["message"]


def test_a_bug_ends_no_other_task(fake: FakeRegistry, tmp_path: Path) -> None:
    put_image(fake, 1)

    def fail() -> None:
        raise ValueError("a bug")

    with Running(fake, tmp_path) as running:
        running.forker.fail = fail
        running.work.take_in([FN])
        running.wait(failures=1)
        running.forker.fail = lambda: None
        running.work.take_in([FN])
        until(lambda: running.tally.ends[-2:] == [("look", "done"), ("make", "done")])


def test_work_that_has_ended_is_not_ready(
    fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Running(fake, tmp_path) as running:
        running.work.check_ready()
        monkeypatch.setattr(running.queue, "take", lambda kind: 1 / 0)
        assert running.work.take_in([FN]) == 1  # what is durable is durable
        until(lambda: not running.work._thread.is_alive())
        with pytest.raises(StoreError, match="has ended"):
            running.work.check_ready()


def test_a_new_process_goes_on(fake: FakeRegistry, tmp_path: Path) -> None:
    top = put_image(fake, 1)
    queue = WorkQueue(tmp_path, Disk())
    queue.put("look", [(NAME, "v1")])
    assert queue.take("look") is not None
    queue.close()  # and dies
    with Running(fake, tmp_path) as running:
        running.wait()
    assert len(listed(fake, top, oci.CHUNKS_ARTIFACT)) == 1


def test_tags_that_moved_untold_are_found(
    fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerkit.jobs.hook.working.FIRST_SCAN_SECONDS", 0.01)
    first = put_image(fake, 1)
    with Running(fake, tmp_path, scan_seconds=0.05) as running:
        until(lambda: bool(running.queue.list_versions(NAME, "v1")))
        assert not running.forker.jobs  # the first look only notes
        second = put_image(fake, 2)
        until(lambda: bool(running.forker.jobs))
        running.wait()
    [stored] = find_updates(listed(fake, second, oci.UPDATE_ARTIFACT))
    assert stored.old == digest_of(first)


@pytest.mark.parametrize(
    ("error", "tries", "age", "again"),
    [
        (RemoteError("down"), 50, 100.0, True),
        (RemoteError("down"), 50, GIVE_UP_SECONDS + 1, False),
        (ToolError("died"), 1, 0.0, True),
        (ToolError("died"), MAX_TRIES, 0.0, False),
        (FormatError("not gzip"), 1, 0.0, False),
        (RemoteLimitError("too much"), 1, 0.0, False),
    ],
)
def test_what_is_tried_again(error: LayerkitError, tries: int, age: float, again: bool) -> None:
    task = Task("make", NAME, "v1", put_at=1000.0, tries=tries)
    pause = _pause_after(task, error, 1000.0 + age)
    assert (pause is not None) == again
    assert pause is None or 0 < pause <= 300


def test_credentials_stay_with_the_registry(tmp_path: Path) -> None:
    """A redirect and a token realm on another host get none, whatever the registry says."""
    with FakeRegistry().serving() as other, FakeRegistry(login="ci:password").serving() as fake:
        config = tmp_path / "config.json"
        auth = {"auth": "Y2k6cGFzc3dvcmQ="}
        config.write_text(json.dumps({"auths": {fake.host: auth}}))
        top = put_image(fake, 1)
        other.blobs = fake.blobs
        fake.redirect = other.url
        job = HookSettings(fake.url, tmp_path / "queue", config=config).as_job()
        job |= {"name": NAME, "tag": "v1", "digest": top["digest"], "seen": [], "unworthy": []}
        assert run_job(job)["chunks_count"] == 1
        assert other.log and all("Authorization" not in sent for _, _, sent in other.log)
        fake.realm = f"{other.url.replace('127.0.0.1', 'localhost')}/token"
        with contextlib.suppress(LayerkitError):
            run_job(job | {"seen": []})
        asked = [sent for _, path, sent in other.log if path.startswith("/token")]
        assert asked and all("Authorization" not in sent for sent in asked)
