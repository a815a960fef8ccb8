"""The layout folder: verified reads, tags that move, referrers, nothing left behind."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from layerkit.digest import sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.layout import KEEP_UNTAGGED, Layout, write_docker_archive
from layerkit.errors import (
    FormatError,
    IntegrityError,
    NotFoundError,
    StoreFullError,
    UsageError,
)
from layerkit.formats import oci
from layerkit.formats.deflate import compression_by_name
from layerkit.formats.image import ImageSettings, pack_chunks_artifact, pack_image, pack_layer
from layerkit.formats.layer import Entry
from layerkit.formats.reference import Reference

V1 = Reference.parse("hello:v1")
AMD64 = oci.Platform("linux", "amd64")


def put_image(layout: Layout, ref: str, content: bytes) -> oci.Descriptor:
    layer = pack_layer("code", [Entry("app/x", content)], compression_by_name("gzip"), "test")
    image = pack_image([layer], ImageSettings(AMD64, ("/app/x",), "65532"))
    artifact = pack_chunks_artifact(image)
    with layout.batch():
        for blob in (*image.blobs(), *artifact):
            layout.put_blob(blob.data, blob.descriptor.media_type)
        layout.commit(Reference.parse(ref), image.manifest.descriptor, [artifact[-1].descriptor])
    return image.manifest.descriptor


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


def test_resolve_by_tag_and_by_digest(layout: Layout) -> None:
    want = put_image(layout, "hello:v1", b"1").digest
    found = [layout.resolve(V1).digest, layout.resolve(V1.pinned(want)).digest]
    assert found == [want, want]


def test_a_tag_moves_and_the_old_image_stays_by_digest(layout: Layout) -> None:
    old = put_image(layout, "hello:v1", b"1").digest
    new = put_image(layout, "hello:v1", b"2").digest
    assert layout.resolve(V1).digest == new
    assert layout.resolve(V1.pinned(old)).digest == old
    assert len(layout.referrers(old)) == len(layout.referrers(new)) == 1


def test_other_tags_are_kept(layout: Layout) -> None:
    put_image(layout, "hello:v1", b"1")
    put_image(layout, "bye:v1", b"2")
    put_image(layout, "hello:v1", b"3")
    assert sorted(layout.tags()) == ["bye:v1", "hello:v1"]


def test_the_same_image_twice_changes_nothing(layout: Layout) -> None:
    put_image(layout, "hello:v1", b"1")
    before = layout.read_index()
    put_image(layout, "hello:v1", b"1")
    assert sorted(map(str, layout.read_index().manifests)) == sorted(map(str, before.manifests))


def test_untagged_images_do_not_pile_up(layout: Layout) -> None:
    for number in range(KEEP_UNTAGGED + 5):
        put_image(layout, "hello:v1", b"%d" % number)
    assert len(layout.read_index().manifests) == 2 * (KEEP_UNTAGGED + 1)


def test_referrers_are_told_by_artifact_type(layout: Layout) -> None:
    image = put_image(layout, "hello:v1", b"1").digest
    counts = [len(layout.referrers(image, kind)) for kind in (oci.CHUNKS_ARTIFACT, "other")]
    assert counts == [1, 0]


def test_a_changed_blob_is_refused(layout: Layout) -> None:
    image = put_image(layout, "hello:v1", b"1")
    layout.blob_path(image.digest).write_bytes(b"x" * image.size)
    with pytest.raises(IntegrityError):
        layout.read_blob(image.digest)


def test_a_blob_over_the_limit_is_refused(layout: Layout) -> None:
    image = put_image(layout, "hello:v1", b"1")
    with pytest.raises(FormatError, match="over its limit"):
        layout.read_blob(image.digest, image.size - 1)


def test_a_bare_tag_of_a_foreign_layout_resolves(layout: Layout) -> None:
    want = put_image(layout, "hello:v1", b"1").digest
    index = json.loads((layout.path / "index.json").read_text())
    for entry in index["manifests"]:
        if "annotations" in entry:
            entry["annotations"] = {oci.ANNOTATION_REF_NAME: "v1"}
    (layout.path / "index.json").write_text(json.dumps(index))
    assert layout.resolve(V1).digest == want


def test_an_absent_tag_says_what_there_is(layout: Layout) -> None:
    put_image(layout, "hello:v1", b"1")
    with pytest.raises(NotFoundError) as caught:
        layout.resolve(Reference.parse("hello:v2"))
    assert "hello:v1" in caught.value.cause


def test_a_folder_with_other_things_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(UsageError), Layout(tmp_path).batch():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


class FullDisk(Disk):
    """Full at the n-th primitive."""

    def __init__(self, stop_at: int) -> None:
        self.left = stop_at

    def act(self, op, path, call):  # type: ignore[no-untyped-def]
        if op not in ("remove", "lock"):
            self.left -= 1
            if self.left == 0:
                raise StoreFullError(f"no space left for {path}")
        return super().act(op, path, call)


def test_a_full_disk_at_any_step_leaves_nothing(tmp_path: Path) -> None:
    steps = 0
    while True:
        steps += 1
        layout = Layout(tmp_path / "layout", FullDisk(steps))
        try:
            put_image(layout, "hello:v1", b"1")
        except StoreFullError:
            assert list(tmp_path.iterdir()) == [], f"after step {steps}"
            continue
        break
    assert steps > 30


def test_a_full_disk_at_any_step_leaves_the_old_image(tmp_path: Path) -> None:
    want = put_image(Layout(tmp_path / "layout"), "hello:v1", b"1").digest
    before = sorted(path for path in tmp_path.rglob("*"))
    for steps in range(1, 1000):
        layout = Layout(tmp_path / "layout", FullDisk(steps))
        try:
            put_image(layout, "hello:v1", b"2")
        except StoreFullError:
            if layout.resolve(V1).digest == want:
                assert sorted(path for path in tmp_path.rglob("*")) == before
            continue
        break
    assert layout.resolve(V1).digest != want


def test_docker_archive_is_both_formats(layout: Layout, tmp_path: Path) -> None:
    put_image(layout, "hello:v1", b"1")
    write_docker_archive(layout, V1, tmp_path / "x.tar", AMD64)
    with tarfile.open(tmp_path / "x.tar") as archive:
        (docker,) = json.load(archive.extractfile("manifest.json"))
        for name in (docker["Config"], *docker["Layers"]):
            data = archive.extractfile(name).read()
            assert name == f"blobs/sha256/{sha256_digest(data).hex}"
        oci.parse_index(archive.extractfile("index.json").read())
    assert docker["RepoTags"] == ["hello:v1"]
