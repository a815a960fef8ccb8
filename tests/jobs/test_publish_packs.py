"""Publishing chunk packs: what a node without a server reads, and what is not made twice."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from builders import Silent, hello_files, noise, publish_image

from layerkit.edges.disk import Disk
from layerkit.edges.layout import Layout
from layerkit.edges.storage.targets import FolderTarget
from layerkit.formats import chunkpack, oci
from layerkit.formats.chunkmanifest import ChunkManifest, parse_chunk_manifest
from layerkit.formats.chunkpack import PackIndex, parse_pack_index, read_frame
from layerkit.formats.reference import Reference
from layerkit.jobs.publish import publish

REF = Reference.parse("fn:v1")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunkpack, "MIN_FORM_SIZE", 100_000)


def edits(count: int) -> list[bytes]:
    """Versions of a binary, each with a few edits more than the one before."""
    dice, found = random.Random(3), [noise(500_000)]
    for _ in range(count):
        binary = bytearray(found[-1])
        for _ in range(6):
            binary[dice.randrange(len(binary))] ^= 1
        found.append(bytes(binary))
    return found


def push(
    tmp_path: Path, binary: bytes, update_count: int = 3, packs: bool | None = True
) -> oci.Descriptor:
    top = publish_image(tmp_path / "built", "fn:v1", hello_files(binary))
    target = FolderTarget(tmp_path / "served", Disk())
    publish(
        Layout(tmp_path / "built"), REF, target, Silent(), update_count=update_count, packs=packs
    )
    return top


def read_pack(layout: Layout, top: oci.Descriptor) -> tuple[ChunkManifest, PackIndex, bytes]:
    """The one layer that is packed: the code."""
    (artifact,) = layout.referrers(top.digest, oci.PACKS_ARTIFACT)
    index, pack = layout.read_manifest(artifact.digest).layers
    assert (index.media_type, pack.media_type) == (
        chunkpack.PACK_INDEX_TYPE,
        chunkpack.PACK_TYPE,
    )
    (chunks,) = layout.referrers(top.digest, oci.CHUNKS_ARTIFACT)
    layer = pack.annotations[oci.ANNOTATION_LAYER]
    assert index.annotations[oci.ANNOTATION_LAYER] == layer
    (listed,) = [
        blob
        for blob in layout.read_manifest(chunks.digest).layers
        if blob.media_type == oci.CHUNK_MANIFEST and blob.annotations[oci.ANNOTATION_LAYER] == layer
    ]
    manifest = parse_chunk_manifest(layout.read_blob(listed))
    return manifest, parse_pack_index(layout.read_blob(index), manifest), layout.read_blob(pack)


def test_what_any_version_before_lacks_is_one_range(tmp_path: Path) -> None:
    """Versions that no update starts from any more, too: the order is carried on."""
    layout = Layout(tmp_path / "served")
    tops = [push(tmp_path, binary, update_count=1) for binary in edits(3)]
    manifest, index, pack = read_pack(layout, tops[-1])
    chunks = {
        chunk.raw: bytes(data)
        for frame in index.frames
        for chunk, data in read_frame(pack[frame.offset :][: frame.size], frame, manifest)
    }
    assert set(chunks) == set(manifest.list_raw_ids())
    for top in tops[:-1]:
        held = set(read_pack(layout, top)[0].list_raw_ids())
        missing = [raw for raw in manifest.list_raw_ids() if raw not in held]
        found = index.find_frames(missing, manifest)
        assert found == list(index.frames[: len(found)]) and 0 < len(found) < len(index.frames)


def test_what_is_there_is_not_packed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = edits(0)[0]
    old = push(tmp_path, binary)

    def fail(*_: object) -> tuple[bytes, bytes]:
        raise AssertionError("it is packed again")

    monkeypatch.setattr("layerkit.jobs.updating.packs.make_pack", fail)
    assert push(tmp_path, binary) == old
    files = hello_files(binary)
    files["base"] = {"etc/passwd": b"another\n"}
    new = publish_image(tmp_path / "built", "fn:v1", files)
    layout = Layout(tmp_path / "served")
    served = FolderTarget(layout.path, Disk())
    publish(Layout(tmp_path / "built"), REF, served, Silent(), packs=True)
    assert read_pack(layout, new)[2] == read_pack(layout, old)[2]


def test_a_small_form_has_no_pack(tmp_path: Path) -> None:
    top = push(tmp_path, noise(50_000))
    assert not Layout(tmp_path / "served").referrers(top.digest, oci.PACKS_ARTIFACT)


def test_an_image_that_cannot_be_packed_is_pushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> tuple[bytes, bytes]:
        raise ValueError("a bug")

    monkeypatch.setattr("layerkit.jobs.updating.packs.make_pack", fail)
    top = push(tmp_path, edits(0)[0])
    assert Layout(tmp_path / "served").resolve(REF).digest == top.digest
