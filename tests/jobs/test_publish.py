"""Publishing: the order of what is written, what is sent, what a crash leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import Silent, hello_files, noise, publish_image
from registries import FakeRegistry

from layerkit.edges.disk import Disk
from layerkit.edges.layout import Layout
from layerkit.edges.registry import Registry, Transport
from layerkit.edges.storage import open_storage
from layerkit.edges.storage.targets import FolderTarget, RegistryTarget, find_target
from layerkit.errors import IntegrityError, LayerkitError, NotFoundError, UsageError
from layerkit.formats import oci
from layerkit.formats.reference import Reference
from layerkit.jobs.publish import PushResult, publish

REF = Reference.parse("fn:v1")


pytestmark = pytest.mark.usefixtures("no_settling")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    publish_image(tmp_path / "layout", "fn:v1", hello_files(noise(30_000)))
    return Layout(tmp_path / "layout")


@pytest.fixture(params=[True, False], ids=["api", "fallback"])
def fake(request: pytest.FixtureRequest) -> Iterator[FakeRegistry]:
    with FakeRegistry(referrers_api=request.param).serving() as running:
        yield running


def push(layout: Layout, fake: FakeRegistry, ref: Reference = REF) -> PushResult:
    transport = Transport(fake.host, plain_http=True, patience=0.1)
    return publish(layout, ref, RegistryTarget(Registry(transport)), Silent())


def test_the_tag_comes_last(layout: Layout, fake: FakeRegistry) -> None:
    push(layout, fake)
    written = [path for method, path, _ in fake.log if method == "PUT"]
    assert written[-1] == "/v2/fn/manifests/v1"
    kinds = ["manifests" if "/manifests/" in path else "blobs" for path in written]
    assert kinds == sorted(kinds)
    digests = [path for path in written if "/manifests/sha256:" in path]
    assert digests[0].endswith(str(layout.resolve(REF).digest))


@pytest.mark.slow
def test_a_push_that_fails_anywhere_shows_nothing_and_is_gone_on_with(
    layout: Layout, fake: FakeRegistry
) -> None:
    """Each write in turn is refused: the tag stays what it was, and all that it names is there."""
    push(layout, fake)
    old = fake.manifests["fn"]["v1"]
    publish_image(layout.path, "fn:v1", hello_files(noise(30_000, 2)))
    failed = 0
    for number in range(100):
        clean = FakeRegistry(referrers_api=fake.referrers_api)
        clean.blobs = {name: dict(held) for name, held in fake.blobs.items()}
        clean.manifests = {name: dict(held) for name, held in fake.manifests.items()}
        with clean.serving():
            clean.refuse_after = number
            try:
                push(layout, clean)
            except LayerkitError:
                failed += 1
                assert clean.manifests["fn"]["v1"] == old
                clean.refuse_after = -1
                push(layout, clean)
                assert clean.manifests["fn"]["v1"][1] == layout.read_blob(layout.resolve(REF))
            else:
                break
    assert failed > 4


def test_again_sends_and_changes_nothing(layout: Layout, fake: FakeRegistry) -> None:
    first = push(layout, fake)
    before = dict(fake.manifests["fn"])
    again = push(layout, fake)
    assert first.sent_count > 0 and again.sent_count == again.mounted_count == 0
    assert fake.manifests["fn"] == before


def test_blobs_of_another_repository_are_mounted(layout: Layout, fake: FakeRegistry) -> None:
    push(layout, fake)
    publish_image(layout.path, "other:v1", hello_files(noise(30_000)))
    result = push(layout, fake, Reference.parse("other:v1"))
    assert result.mounted_count > 0


def test_what_the_tag_named_is_found_by_who_comes_later(
    layout: Layout, fake: FakeRegistry, tmp_path: Path
) -> None:
    tops = [layout.resolve(REF).digest]
    push(layout, fake)
    for seed in (2, 3):
        tops.append(publish_image(layout.path, "fn:v1", hello_files(noise(30_000, seed))).digest)
        push(layout, fake)
    storage = open_storage(fake.url, repositories=("fn",), cache=tmp_path / "cache")
    entries = oci.parse_index(storage.read_index()).manifests
    was = [e.digest for e in entries if e.annotations.get(oci.ANNOTATION_WAS) == "fn:v1"]
    assert was == tops[:2]


def test_a_damaged_blob_is_not_sent(layout: Layout, fake: FakeRegistry) -> None:
    manifest = layout.read_manifest(layout.resolve(REF).digest)
    path = layout.blob_path(manifest.layers[-1].digest)
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(IntegrityError, match="damaged"):
        push(layout, fake)
    path.unlink()
    with pytest.raises(NotFoundError):
        push(layout, fake)
    assert "v1" not in fake.manifests.get("fn", {})


def test_another_layout_gets_the_same_index(layout: Layout, tmp_path: Path) -> None:
    target = FolderTarget(tmp_path / "copy", Disk())
    result = publish(layout, REF, target, Silent())
    copy = Layout(tmp_path / "copy")
    assert copy.resolve(REF).digest == result.digest
    assert len(copy.referrers(result.digest)) == result.referrer_count == 1
    assert publish(layout, REF, target, Silent()).sent_count == 0


def test_a_failed_push_leaves_no_layout(layout: Layout, tmp_path: Path) -> None:
    manifest = layout.read_manifest(layout.resolve(REF).digest)
    layout.blob_path(manifest.layers[-1].digest).unlink()
    with pytest.raises(NotFoundError):
        publish(layout, REF, FolderTarget(tmp_path / "copy", Disk()), Silent())
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("ref", "where"),
    [
        ("127.0.0.1:5000/fn:v1", "http://127.0.0.1:5000"),
        ("localhost:5000/fn:v1", "http://localhost:5000"),
        ("registry.example/fn:v1", "https://registry.example"),
    ],
)
def test_the_registry_of_a_reference(ref: str, where: str) -> None:
    assert find_target("", Reference.parse(ref)).where == where


@pytest.mark.parametrize("text", ["ftp://host", "host:5000", "https://host/path", "http://"])
def test_what_is_no_target_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        find_target(text, REF)
