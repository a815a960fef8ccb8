"""The first pull of a function onto a node that holds others: one request, a delta against them."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import urllib3
import zstandard
from builders import AMD64, LayoutSource, hello_files, noise, publish_image

from layerkit.digest import Digest, sha256_digest
from layerkit.edges import held
from layerkit.edges.disk import Disk
from layerkit.edges.http import RunningServer, make_app, start_server
from layerkit.edges.http.source import UpdateAnswer
from layerkit.edges.remote import Remote
from layerkit.edges.store import Store
from layerkit.errors import StoreError
from layerkit.formats import delta
from layerkit.formats.chunkmanifest import parse_chunk_manifest
from layerkit.formats.reference import Reference
from layerkit.formats.tokens import ANYONE, Caller
from layerkit.formats.update import DELTA, MAX_HAVE_COUNT, UpdateReader
from layerkit.jobs.build import build
from layerkit.jobs.pull import PullResult, pull
from layerkit.jobs.serve import start
from layerkit.jobs.updating.library import Library

COMMON = noise(150_000, 1)  # what all functions have, as of a Go release
A = COMMON + noise(60_000, 2)
B = COMMON[:100_000] + noise(90_000, 3)
C = noise(500, 4) + COMMON + A[160_000:190_000] + B[120_000:170_000]


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    for name, binary in {"team/a": A, "team/b": B, "other/c": C}.items():
        publish_image(tmp_path / "layout", f"{name}:v1", hello_files(binary))
    return tmp_path / "layout"


def run(server: RunningServer, store: Store, ref: str, **options: object) -> PullResult:
    with Remote(server.url, pauses=(0.01, 0.01)) as remote:
        return pull(Reference.parse(ref), remote, store, platform=AMD64, **options)  # type: ignore[arg-type]


def hold_others(server: RunningServer, store: Store) -> None:
    for name in ("team/a", "team/b"):
        run(server, store, f"{name}:v1")


def test_it_is_one_request_for_a_few_percent(
    server: RunningServer, store: Store, tmp_path: Path
) -> None:
    hold_others(server, store)
    result = run(server, store, "other/c:v1", rootfs=tmp_path / "root")
    assert result.request_count == 1
    assert result.moved_size < 0.02 * result.whole_size  # of two old forms: either alone is 0.2
    assert (tmp_path / "root/app/hello").read_bytes() == C
    assert store.verify().good and store.find_image("other/c:v1") == result.digest


def test_a_small_layer_that_is_like_none_held_travels_whole_in_it(
    layout: Path, server: RunningServer, store: Store
) -> None:
    files = hello_files(C)
    files["deps"] = {"app/new.dat": noise(5_000, 30)}
    publish_image(layout, "other/d:v1", files)
    hold_others(server, store)
    result = run(server, store, "other/d:v1")
    assert result.request_count == 1 and 5_000 < result.moved_size < 5_000 + 0.03 * len(C)
    assert store.verify().good


def test_a_dry_run_says_what_it_moves(server: RunningServer, store: Store) -> None:
    hold_others(server, store)
    planned = run(server, store, "other/c:v1", dry_run=True).planned_size
    assert planned == run(server, store, "other/c:v1").moved_size


def test_the_same_image_under_another_name_moves_nothing(
    layout: Path, server: RunningServer, store: Store
) -> None:
    run(server, store, "team/a:v1")
    publish_image(layout, "other/twin:v1", hello_files(A))
    result = run(server, store, "other/twin:v1")
    assert (result.request_count, result.moved_size, result.up_to_date) == (1, 0, True)
    assert store.find_image("other/twin:v1") == result.digest


def test_a_server_that_knows_none_of_them_answers_as_to_a_new_node(
    layout: Path, store: Store, tmp_path: Path
) -> None:
    for name, binary in {"team/a": A, "team/b": B}.items():
        publish_image(tmp_path / "foreign", f"{name}:v1", hello_files(binary))
    publish_image(tmp_path / "own", "other/c:v1", hello_files(C))
    with start(tmp_path / "foreign") as running:
        hold_others(running, store)
    with start(tmp_path / "own") as running:
        result = run(running, store, "other/c:v1")
    assert result.request_count == 1 and store.verify().good
    assert 0.95 * result.whole_size < result.moved_size < 1.05 * result.whole_size


def test_functions_that_share_nothing_are_no_help(
    layout: Path, server: RunningServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_image(layout, "other/far:v1", {"code": {"app/hello": noise(1_200_000, 9)}})
    hold_others(server, store)

    def refuse(*_: object) -> None:
        pytest.fail("a delta was made")

    monkeypatch.setattr(delta, "diff", refuse)
    assert run(server, store, "other/far:v1").request_count == 1
    assert store.verify().good


def test_a_repository_that_may_not_be_read_is_not_built_on(layout: Path, store: Store) -> None:
    source = LayoutSource(layout)
    with start_server(make_app(source)) as running:
        hold_others(running, store)
    have = held.list_held(store, Reference.parse("other/c:v1"))
    sizes = []
    for patterns in (("*",), ("other/*", "team/b"), ("other/*",)):
        raw = source.read_update("other/c", "v1", have, AMD64, Caller("x", patterns, ()), 10).raw
        assert raw is not None
        old = UpdateReader([raw]).old
        assert old is None if len(patterns) == 1 and patterns != ("*",) else old in have
        sizes.append(len(raw))
    assert sizes[0] < sizes[1] / 10 < sizes[2] / 20


def test_only_images_that_were_named_are_built_on(layout: Path) -> None:
    source = LayoutSource(layout)
    a = source.catalogue.get("team/a")
    held_a = a.tags["v1"]
    raw = ask_source(source, [held_a]).raw
    assert raw is not None
    reader = UpdateReader([raw])
    assert reader.old == held_a
    reader.read_documents(source._library(is_aside=False).find_documents("team/a", held_a, AMD64))
    digests = {
        parse_chunk_manifest(source.path_of("team/a", listed).read_bytes()).form_digest.raw[:16]
        for listed in a.chunk_lists
    }
    named = {
        digest
        for entry, one in reader.read_parts()
        if entry.kind == DELTA
        for digest in delta.read_digests(one)[0]
    }
    assert named <= digests


def ask_source(
    source: LayoutSource, have: Sequence[Digest], within: float = 60, caller: Caller = ANYONE
) -> UpdateAnswer:
    return source.read_update("other/c", "v1", have, AMD64, caller, within)


def ask(server: RunningServer, names: list[str], platform: str = "linux/amd64") -> int:
    query = f"from={quote(','.join(names), safe=':,')}&platform={platform}"
    path = f"{server.url}/v1/other/c/updates/v1?{query}"
    return urllib3.request("GET", path, retries=False).status


UNKNOWN = [str(sha256_digest(bytes([seed]))) for seed in range(40)]


@pytest.mark.parametrize(
    ("names", "status"),
    [
        (UNKNOWN[:MAX_HAVE_COUNT], 200),
        (UNKNOWN[: MAX_HAVE_COUNT + 1], 400),
        (["team/a:v1"], 400),
        (["../../etc/passwd"], 400),
        ([""], 200),
        (["sha256:" + "0" * 63], 400),
        (["b3:" + "0" * 64], 400),
        (["sha256:" + "0" * 64, "sha256:" + "A" * 64], 400),
    ],
)
def test_names_that_are_none_or_too_many(
    server: RunningServer, names: list[str], status: int
) -> None:
    assert ask(server, names) == status


def test_digests_of_what_is_no_image_are_not_built_on(layout: Path) -> None:
    source = LayoutSource(layout)
    repository = source.catalogue.get("team/a")
    image = repository.tags["v1"]
    others = [digest for digest in sorted(repository.blobs) if digest != image]
    raw = ask_source(source, others[:MAX_HAVE_COUNT]).raw
    assert raw is not None and UpdateReader([raw]).old is None


def test_an_update_is_made_once_for_all_who_hold_the_same(
    layout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = LayoutSource(layout)
    have = [source.catalogue.get(name).tags["v1"] for name in ("team/a", "team/b")]
    made, diff = [], delta.diff

    def count(olds: list[bytes], new: bytes) -> bytes:
        made.append(len(olds))
        return diff(olds, new)

    monkeypatch.setattr(delta, "diff", count)
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(ask_source, source, have) for _ in range(6)]
        answers = {one.result().raw for one in asked}
    assert made == [2] and len(answers) == 1


@pytest.fixture
def go_on(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Until it is set, deltas are not ready."""
    event, diff = threading.Event(), delta.diff

    def wait(olds: list[bytes], new: bytes) -> bytes:
        assert event.wait(60)
        return diff(olds, new)

    monkeypatch.setattr(delta, "diff", wait)
    return event


def test_what_is_not_made_yet_comes_in_chunks_in_the_same_answer(
    layout: Path, go_on: threading.Event, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerkit.edges.http.endpoints.DEFAULT_WITHIN_SECONDS", 0.5)
    source = LayoutSource(layout)
    sizes = []
    for is_free in (False, True):
        with (
            start_server(make_app(source)) as running,
            Store(tmp_path / str(is_free), Disk()) as store,
            Remote(running.url) as remote,
        ):
            go_on.set()
            hold_others(running, store)
            if not is_free:
                go_on.clear()
            result = pull(Reference.parse("other/c:v1"), remote, store, platform=AMD64)
            assert store.verify().good and store.find_image("other/c:v1") == result.digest
            assert result.request_count == 1
            sizes.append(result.moved_size)
            go_on.set()
    assert 2 * sizes[1] < sizes[0] < 0.1 * result.whole_size


def test_only_an_answer_that_will_not_get_smaller_is_to_be_kept(
    layout: Path, go_on: threading.Event
) -> None:
    source = LayoutSource(layout)
    have = [source.catalogue.get("team/a").tags["v1"]]
    quick = [ask_source(source, have, within) for within in (0, 0.05)]
    go_on.set()
    made = [ask_source(source, have, within) for within in (60, 0)]
    assert [answer.was_kept for answer in (*quick, *made)] == [False, False, True, True]
    assert made[0] == made[1]
    assert quick[0].raw == quick[1].raw != made[0].raw


def test_when_too_much_is_made_at_once_chunks_go_out(
    layout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerkit.jobs.updating.workshop.MAX_JOB_COUNT", 0)
    source = LayoutSource(layout)
    answer = ask_source(source, [source.catalogue.get("team/a").tags["v1"]])
    assert answer.raw is not None and not answer.was_kept
    assert 10_000 < len(answer.raw) < 80_000


def test_what_fails_is_not_kept(layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = LayoutSource(layout)
    have = [source.catalogue.get("team/a").tags["v1"]]

    def fail(*_: object) -> None:
        raise StoreError("layout is damaged")

    with monkeypatch.context() as patch:
        patch.setattr(delta, "diff", fail)
        failed = ask_source(source, have)
    made = ask_source(source, have)
    assert failed.raw and made.raw and len(made.raw) < len(failed.raw)
    assert (failed.was_kept, made.was_kept) == (False, True)


def test_what_cannot_be_read_is_left_to_the_node(
    layout: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreError("layout is damaged")

    monkeypatch.setattr(Library, "form_of", fail)
    monkeypatch.setattr(Library, "read_layer", fail)
    source = LayoutSource(layout)
    answer = ask_source(source, ())
    assert answer.raw is not None and not answer.was_kept
    reader = UpdateReader([answer.raw])
    reader.read_documents(None)
    assert reader.table == ()
    with start_server(make_app(source)) as running:
        assert run(running, store, "other/c:v1").request_count > 1
    assert store.verify().good


def test_shares_are_by_role_and_come_to_the_answer(layout: Path) -> None:
    source = LayoutSource(layout)
    for have in ([], [source.catalogue.get("team/a").tags["v1"]]):
        answer = ask_source(source, have)
        assert answer.raw is not None
        shares = {share.role: share for share in answer.shares}
        assert sum(share.sent_size for share in answer.shares) == len(answer.raw)
        assert (shares["base"].sent_size == 0) is bool(have)
        assert shares["code"].whole_size > 200_000 and shares["base"].whole_size > 20_000
        assert shares[""].whole_size == 0


@pytest.mark.parametrize("at", [4, 20, 60, 400, -1])
def test_a_damaged_one_means_another_way(layout: Path, store: Store, at: int) -> None:
    class Source(LayoutSource):
        is_lying = False

        def read_update(self, *asked: Any) -> UpdateAnswer:
            found = super().read_update(*asked)
            raw = found.raw
            if raw is not None and self.is_lying:
                raw = raw[:at] + bytes([raw[at] ^ 0x5A]) + raw[at:][1:]
            return replace(found, raw=raw)

    source = Source(layout)
    with start_server(make_app(source)) as running:
        hold_others(running, store)
        source.is_lying = True
        result = run(running, store, "other/c:v1")
    assert result.request_count > 1 and store.verify().good


def test_a_node_names_one_image_a_repository_and_the_largest_of_many(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "MAX_HAVE_COUNT", 6)
    path, count = tmp_path / "many", 9
    for index in range(count):
        binary = COMMON[: 20_000 + 2_000 * index] + noise(200, 50 + index)
        publish_image(path, f"many/f{index}:v1", hello_files(binary))
        publish_image(path, f"many/f{index}:v2", hello_files(binary + b"."))
    with start(path) as running:
        for index in range(count):
            run(running, store, f"many/f{index}:v1")
        run(running, store, "many/f5:v2")
    named = held.list_held(store, Reference.parse("many/f0:v1"))
    tops = {store.find_image(f"many/f{index}:v1"): index for index in range(count)}
    found = [tops.get(digest) for digest in named]
    assert len(named) == 6 and found[0] == 0
    assert {1, 2, 3}.isdisjoint(found) and 5 not in found  # 5 by its v2


# --- real functions --------------------------------------------------------------------------


@pytest.mark.go
def test_a_go_function_beside_others_of_the_release(
    go_toolchain: Path, tmp_path: Path, store: Store
) -> None:
    caches = subprocess.run(
        [go_toolchain, "env", "GOCACHE", "GOMODCACHE"], capture_output=True, text=True, check=True
    ).stdout.split()
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    env |= {"GOCACHE": caches[0], "GOMODCACHE": caches[1]}
    for name in ("hello", "echo"):
        source = tmp_path / name
        source.mkdir()
        (source / "go.mod").write_text(f"module example.com/{name}\n\ngo 1.24\n")
        (source / "main.go").write_text(SOURCES[name])
        build(source, Reference.parse(f"{name}:v1"), layout_path=tmp_path / "go", env=env)
    with start(tmp_path / "go") as running:
        run(running, store, "hello:v1")
        result = run(running, store, "echo:v1", rootfs=tmp_path / "root")
    binary = (tmp_path / "root/app/echo").read_bytes()
    assert result.request_count == 1
    assert result.moved_size <= 0.05 * len(zstandard.ZstdCompressor(level=19).compress(binary))


SOURCES = {
    "hello": """package main

import (
	"fmt"
	"os"
)

func main() { fmt.Fprintln(os.Stdout, "hello") }
""",
    "echo": """package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

func main() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		fmt.Println(strings.ToUpper(lines.Text()))
	}
}
""",
}
