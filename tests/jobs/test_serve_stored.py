"""jobs/serve: updates that were published beside an image, answered as they lie there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from builders import LayoutSource, Silent, hello_files, noise, publish_image

from layerkit.edges.disk import Disk
from layerkit.edges.http import Blob, Joined, UpdateAnswer, make_app, start_server
from layerkit.edges.layout import Layout
from layerkit.edges.remote import Remote
from layerkit.edges.storage.targets import FolderTarget
from layerkit.edges.store import Store
from layerkit.formats import delta, oci
from layerkit.formats.reference import Reference
from layerkit.formats.storedupdate import make_update_artifact
from layerkit.formats.tokens import Caller
from layerkit.formats.update import UPDATE_TYPE
from layerkit.jobs.publish import publish
from layerkit.jobs.pull import pull
from layerkit.jobs.serve import stored as module

REF = Reference.parse("fn:v1")
BASE = noise(300_000)
ANYONE = Caller("", ("*",), ())
AMD64 = oci.parse_platform("linux/amd64")


def edit(layout: Path, number: int) -> oci.Descriptor:
    binary = BASE[:100_000] + b"version %d" % number + BASE[100_000:]
    return publish_image(layout, "fn:v1", hello_files(binary))


@pytest.fixture
def tops(tmp_path: Path) -> list[oci.Descriptor]:
    """Two versions in `served`, the second pushed with its update from the first."""
    target, found = FolderTarget(tmp_path / "served", Disk()), []
    for number in range(2):
        found.append(edit(tmp_path / "built", number))
        publish(Layout(tmp_path / "built"), REF, target, Silent())
    return found


@pytest.fixture
def source(tops: list[oci.Descriptor], tmp_path: Path) -> LayoutSource:
    return LayoutSource(tmp_path / "served")


def ask(source: LayoutSource, old: oci.Descriptor, caller: Caller = ANYONE) -> UpdateAnswer:
    return source.read_update("fn", "v1", [old.digest], AMD64, caller, 10)


@pytest.fixture
def made(source: LayoutSource, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of how many old forms each delta is that the server makes."""
    real, found = delta.diff, list[int]()

    def diff(olds: Sequence[bytes], new: bytes) -> bytes:
        found.append(len(olds))
        return real(olds, new)

    monkeypatch.setattr(delta, "diff", diff)
    return found


def test_what_is_stored_is_the_answer(
    source: LayoutSource, tops: list[oci.Descriptor], tmp_path: Path, made: list[int]
) -> None:
    (stored,) = source.catalogue.get("fn").updates[tops[1].digest]
    answer = ask(source, tops[0])
    assert answer.raw == Layout(tmp_path / "served").read_blob(stored.blob)
    assert answer.was_kept and answer.digest == tops[1].digest
    assert {share.role for share in answer.shares} == {"", "base", "code"}
    assert sum(share.sent_size for share in answer.shares) == stored.size
    assert not made


def test_nothing_is_prepared_that_is_stored(source: LayoutSource, made: list[int]) -> None:
    source.prepare_all()
    assert not made
    (facts,) = source.describe(ANYONE)
    (update,) = facts.updates
    assert update.size < 4000 and update.whole_size > 300_000


def test_a_node_takes_it_in_one_request(
    source: LayoutSource, tops: list[oci.Descriptor], tmp_path: Path, made: list[int]
) -> None:
    with (
        start_server(make_app(source)) as server,
        Store(tmp_path / "store", Disk()) as store,
    ):
        remote = Remote(server.url)
        pull(Reference.parse(f"fn@{tops[0].digest}"), remote, store)
        before = remote.request_count, remote.bytes_moved
        result = pull(REF, remote, store)
        assert result.digest == tops[1].digest
        assert remote.request_count - before[0] == 1
        assert remote.bytes_moved - before[1] < 4000
    assert not any(made)  # the first pull holds nothing


def test_a_large_one_goes_out_as_the_file_that_it_is(
    source: LayoutSource,
    tops: list[oci.Descriptor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SMALL_SIZE", 0)
    answer = ask(source, tops[0])
    (stored,) = source.catalogue.get("fn").updates[tops[1].digest]
    assert isinstance(answer.raw, Blob)
    assert answer.raw.path == Layout(tmp_path / "served").blob_path(stored.blob)
    with (
        start_server(make_app(source)) as server,
        Store(tmp_path / "store", Disk()) as store,
    ):
        remote = Remote(server.url)
        pull(Reference.parse(f"fn@{tops[0].digest}"), remote, store)
        assert pull(REF, remote, store).digest == tops[1].digest


@pytest.mark.parametrize("how", ["rotten", "other image", "other start", "gone"])
def test_one_that_is_something_else_is_not_used(
    source: LayoutSource, tops: list[oci.Descriptor], tmp_path: Path, how: str
) -> None:
    layout = Layout(tmp_path / "served")
    (stored,) = source.catalogue.get("fn").updates[tops[1].digest]
    path = layout.blob_path(stored.blob)
    if how == "rotten":
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    elif how == "gone":
        path.unlink()
    else:
        raw = path.read_bytes()
        third = edit(tmp_path / "served", 3)
        old = tops[0] if how == "other image" else tops[1]
        blob = layout.put_blob(raw, UPDATE_TYPE)
        _, artifact = make_update_artifact(third, old.digest, None, blob)
        layout.put_blob(artifact, oci.MANIFEST)
        layout.commit(REF, layout.resolve(REF), [oci.describe(artifact, oci.MANIFEST)])
        tops = [old, third]
        assert source.catalogue.get("fn").updates[third.digest]
    answer = ask(source, tops[0])
    assert answer.digest == tops[1].digest and isinstance(answer.raw, bytes)
    assert answer.raw != (path.read_bytes() if path.exists() else b"")
    assert len(answer.raw) < 4000  # made as ever


def test_no_update_starts_from_what_the_caller_may_not_see(tmp_path: Path) -> None:
    secret = publish_image(tmp_path / "l", "secret:v1", hello_files(BASE))
    edit(tmp_path / "l", 1)
    target = FolderTarget(tmp_path / "served", Disk())
    publish(Layout(tmp_path / "l"), Reference.parse("secret:v1"), target, Silent())
    olds = [Reference.parse("secret:v1")]
    assert publish(Layout(tmp_path / "l"), REF, target, Silent(), olds=olds).update_count == 1
    source = LayoutSource(tmp_path / "served")
    stored, other = ask(source, secret), ask(source, secret, Caller("x", ("fn",), ()))
    assert isinstance(stored.raw, bytes) and len(stored.raw) < 4000
    assert isinstance(other.raw, Joined) and other.raw.size > 300_000  # all of it


def test_who_waits_for_the_tag_gets_it_when_the_tag_moves(
    source: LayoutSource, tops: list[oci.Descriptor], tmp_path: Path
) -> None:
    """The push makes it before the tag moves, so the server has nothing to make."""
    edit(tmp_path / "built", 2)
    target = FolderTarget(tmp_path / "served", Disk())
    publish(Layout(tmp_path / "built"), REF, target, Silent())
    started = time.monotonic()
    answer = ask(source, tops[1])
    assert answer.etag and time.monotonic() - started < 1
    assert not source.catalogue.get("fn").updates.get(tops[1].digest)  # of what is not named
