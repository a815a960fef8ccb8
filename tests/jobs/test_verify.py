"""jobs/verify: what is damaged is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import hello_files, noise, publish_image

from layerkit.edges.disk import Disk
from layerkit.edges.layout import Layout
from layerkit.edges.store import Store
from layerkit.errors import NotFoundError, StoreError
from layerkit.formats.oci import FORM_ZSTD
from layerkit.jobs.verify import verify_layout, verify_store


def test_a_sound_layout_is_good(tmp_path: Path) -> None:
    publish_image(tmp_path / "l", "a:v1", hello_files(noise(20_000)))
    result = verify_layout(tmp_path / "l")
    assert result.good and result.image_count == 1 and result.chunk_count > 10


def test_every_damaged_blob_of_a_layout_is_named(tmp_path: Path) -> None:
    publish_image(tmp_path / "l", "a:v1", hello_files(noise(20_000)))
    for path in sorted((tmp_path / "l/blobs/sha256").iterdir()):
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        assert any(path.name in problem for problem in verify_layout(tmp_path / "l").problems)
        path.write_bytes(good)
    assert verify_layout(tmp_path / "l").good


def test_a_missing_blob_of_a_layout_is_named(tmp_path: Path) -> None:
    publish_image(tmp_path / "l", "a:v1", hello_files(noise(20_000)))
    layout = Layout(tmp_path / "l")
    artifact = next(e for e in layout.read_index().manifests if e.artifact_type)
    form = next(
        blob
        for blob in layout.read_manifest(artifact.digest).layers
        if blob.media_type == FORM_ZSTD
    )
    layout.blob_path(form.digest).unlink()
    assert [form.digest.hex in text for text in verify_layout(tmp_path / "l").problems] == [True]


def test_an_absent_store_or_layout_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        verify_store(tmp_path / "none", Disk())
    with pytest.raises(NotFoundError):
        verify_layout(tmp_path / "none")


def test_a_damaged_index_is_an_error_and_repair_makes_it_again(tmp_path: Path) -> None:
    Store(tmp_path, Disk()).close()
    index = tmp_path / "index.sqlite"
    index.write_bytes(b"x" * index.stat().st_size)
    with pytest.raises(StoreError, match="damaged"):
        verify_store(tmp_path, Disk())
    result = verify_store(tmp_path, Disk(), repair=True)
    assert result.index_rebuilt and not result.good
    assert verify_store(tmp_path, Disk()).good
