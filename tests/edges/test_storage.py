"""Storages: one suite over each kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import hello_files, noise, publish_image

from layerkit.digest import Digest, check_digest, sha256_digest
from layerkit.edges.storage import FolderStorage, Storage
from layerkit.errors import LayerkitError, NotFoundError, RemoteError, StoreError
from layerkit.formats import oci

ABSENT = sha256_digest(b"absent")


class StorageSuite:
    """What every storage does that holds `fn:v1` of `layout`; `publish` brings over the layout."""

    def publish(self, storage: Storage, layout: Path) -> None:
        raise NotImplementedError

    def entries(self, storage: Storage) -> tuple[oci.Descriptor, ...]:
        return oci.parse_index(storage.read_index()).manifests

    def test_the_index_names_tags_and_lists_referrers(self, storage: Storage) -> None:
        names = [e.annotations.get(oci.ANNOTATION_REF_NAME, "") for e in self.entries(storage)]
        assert sorted(names) == ["", "fn:v1"]

    def test_what_the_index_lists_reads_by_its_digest(self, storage: Storage) -> None:
        for entry in self.entries(storage):
            check_digest(storage.read_blob("fn", entry.digest, entry.size), entry.digest, "entry")

    def test_the_referrers_subject_is_the_image(self, storage: Storage) -> None:
        (artifact,) = (e for e in self.entries(storage) if not e.annotations)
        raw = storage.read_blob("fn", artifact.digest, oci.MAX_DOCUMENT_SIZE)
        subject = oci.parse_manifest(raw).subject
        assert subject and subject.digest == top_of(self.entries(storage))

    def test_a_blob_reads_in_parts(self, storage: Storage) -> None:
        layer = layers_of(storage)[-1]
        whole = storage.read_blob("fn", layer.digest, layer.size)
        blob = storage.open_blob("fn", layer.digest)
        assert blob.size == layer.size == len(whole)
        for offset, size in ((0, layer.size), (0, 1), (100, 1000), (layer.size - 5, 5)):
            assert b"".join(blob.read(offset, size)) == whole[offset : offset + size]

    def test_a_path_is_that_of_the_blob(self, storage: Storage) -> None:
        layer = layers_of(storage)[0]
        blob = storage.open_blob("fn", layer.digest)
        if blob.path is not None:
            check_digest(blob.path.read_bytes(), layer.digest, "file")

    def test_what_is_absent_is_not_found(self, storage: Storage) -> None:
        with pytest.raises(NotFoundError):
            storage.read_blob("fn", ABSENT, 1000)
        with pytest.raises(NotFoundError):
            storage.open_blob("fn", ABSENT)

    def test_a_blob_over_the_limit_is_refused(self, storage: Storage) -> None:
        layer = layers_of(storage)[-1]
        with pytest.raises((StoreError, RemoteError)):
            storage.read_blob("fn", layer.digest, layer.size - 1)

    def test_the_version_stays_while_nothing_changes(self, storage: Storage) -> None:
        version, index = storage.version(), storage.read_index()
        assert (storage.version(), storage.read_index()) == (version, index)

    def test_the_version_changes_with_a_publish(self, storage: Storage, tmp_path: Path) -> None:
        version = storage.version()
        publish_image(tmp_path / "layout", "fn:v2", hello_files(noise(30_000, 2)))
        self.publish(storage, tmp_path / "layout")
        assert storage.version() != version
        names = {e.annotations.get(oci.ANNOTATION_REF_NAME) for e in self.entries(storage)}
        assert {"fn:v1", "fn:v2"} <= names

    def test_it_is_ready(self, storage: Storage) -> None:
        storage.check_ready()


def top_of(entries: tuple[oci.Descriptor, ...]) -> Digest:
    return next(e.digest for e in entries if e.annotations.get(oci.ANNOTATION_REF_NAME))


def layers_of(storage: Storage) -> tuple[oci.Descriptor, ...]:
    top = top_of(oci.parse_index(storage.read_index()).manifests)
    return oci.parse_manifest(storage.read_blob("fn", top, oci.MAX_DOCUMENT_SIZE)).layers


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    publish_image(tmp_path / "layout", "fn:v1", hello_files(noise(30_000, 1)))
    return tmp_path / "layout"


class TestFolderStorage(StorageSuite):
    @pytest.fixture
    def storage(self, layout: Path) -> FolderStorage:
        return FolderStorage(layout)

    def publish(self, storage: Storage, layout: Path) -> None:
        """It is the layout."""

    def test_a_folder_that_is_no_layout_is_not_ready(self, tmp_path: Path) -> None:
        storage = FolderStorage(tmp_path)
        with pytest.raises(NotFoundError):
            storage.version()
        with pytest.raises(LayerkitError, match="is not an OCI layout"):
            storage.check_ready()

    def test_a_blob_that_shrinks_while_it_is_read_is_noticed(self, storage: Storage) -> None:
        layer = layers_of(storage)[-1]
        blob = storage.open_blob("fn", layer.digest)
        assert blob.path is not None
        blob.path.write_bytes(b"short")
        with pytest.raises(StoreError, match="early"):
            list(blob.read(0, blob.size))
