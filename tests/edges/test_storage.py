"""Storages: one suite over each kind."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from builders import hello_files, noise, publish_image
from registries import FakeRegistry

from layerkit.digest import Digest, check_digest, sha256_digest
from layerkit.edges.layout import Layout
from layerkit.edges.registry import Registry, Transport, add_fallback
from layerkit.edges.storage import (
    BlobCache,
    CachedStorage,
    FolderStorage,
    Storage,
    open_storage,
)
from layerkit.edges.storage.registry import RegistryOrigin
from layerkit.errors import (
    IntegrityError,
    LayerkitError,
    NotFoundError,
    RemoteError,
    StoreError,
    UsageError,
)
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


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry().serving() as running:
        yield running


def push(fake: FakeRegistry, layout: Path) -> None:
    """All of a layout, in no order that matters to a reader that comes later."""
    registry = Registry(Transport(fake.host, plain_http=True))
    for blob in (layout / "blobs/sha256").iterdir():
        fake.blobs.setdefault("fn", {})[f"sha256:{blob.name}"] = blob.read_bytes()
    for entry in Layout(layout).read_index().manifests:
        raw = Layout(layout).read_blob(entry)
        text = entry.annotations.get(oci.ANNOTATION_REF_NAME, "")
        tag = text.partition(":")[2] or str(entry.digest)
        subject = None if text else oci.parse_manifest(raw).subject
        if not registry.put_manifest("fn", tag, entry, raw) and subject:
            add_fallback(registry, "fn", subject.digest, [entry], sleep=lambda _: None)


def over(fake: FakeRegistry, cache: Path, names: tuple[str, ...] = ("fn",)) -> CachedStorage:
    registry = Registry(Transport(fake.host, plain_http=True, patience=0.1))
    return CachedStorage(RegistryOrigin(registry, names), BlobCache(cache), refresh=0)


class TestRegistryStorage(StorageSuite):
    @pytest.fixture(params=[True, False], ids=["api", "fallback"])
    def storage(
        self, request: pytest.FixtureRequest, fake: FakeRegistry, layout: Path, tmp_path: Path
    ) -> CachedStorage:
        fake.referrers_api = request.param
        self.fake = fake
        push(fake, layout)
        return over(fake, tmp_path / "cache")

    def publish(self, storage: Storage, layout: Path) -> None:
        push(self.fake, layout)


def test_all_repositories_are_served_unless_some_are_named(
    fake: FakeRegistry, layout: Path, tmp_path: Path
) -> None:
    push(fake, layout)
    storage = over(fake, tmp_path / "cache", ())
    assert len(oci.parse_index(storage.read_index()).manifests) == 2


def test_a_blob_is_fetched_once(fake: FakeRegistry, layout: Path, tmp_path: Path) -> None:
    push(fake, layout)
    storage = over(fake, tmp_path / "cache")
    layer = layers_of(storage)[-1]
    for _ in range(3):
        storage.open_blob("fn", layer.digest)
        storage.read_blob("fn", layer.digest, layer.size)
    assert len(fake.paths("GET", str(layer.digest))) == 1


def test_many_threads_fetch_a_blob_once(fake: FakeRegistry, layout: Path, tmp_path: Path) -> None:
    push(fake, layout)
    storage = over(fake, tmp_path / "cache")
    layer = layers_of(storage)[-1]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: storage.open_blob("fn", layer.digest), range(8)))
    assert len(fake.paths("GET", str(layer.digest))) == 1


def test_another_blob_is_never_kept(fake: FakeRegistry, layout: Path, tmp_path: Path) -> None:
    push(fake, layout)
    storage = over(fake, tmp_path / "cache")
    layer = layers_of(storage)[-1]
    fake.blobs["fn"][str(layer.digest)] = bytes(layer.size)
    for _ in range(2):
        with pytest.raises(IntegrityError):
            storage.open_blob("fn", layer.digest)


def test_the_cache_stays_within_its_limit(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "cache", limit=5000)
    for number in range(10):
        data = noise(1000, number)
        path = cache.get(sha256_digest(data), lambda data=data: (len(data), iter((data,))))
        os.utime(path, (number, number))  # used long ago
    files = list((tmp_path / "cache/blobs/sha256").iterdir())
    assert sum(path.stat().st_size for path in files) <= 5000
    assert cache.find(sha256_digest(noise(1000, 9))) is not None


def test_what_was_just_used_is_not_taken_away(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "cache", limit=1500)
    paths = []
    for number in range(3):
        data = noise(1000, number)
        paths.append(cache.get(sha256_digest(data), lambda data=data: (len(data), iter((data,)))))
    assert all(path.exists() for path in paths)


def test_the_registry_is_asked_every_few_seconds_only(
    fake: FakeRegistry, layout: Path, tmp_path: Path
) -> None:
    push(fake, layout)
    now = 100.0
    registry = Registry(Transport(fake.host, plain_http=True))
    origin = RegistryOrigin(registry, ["fn"])
    storage = CachedStorage(origin, BlobCache(tmp_path / "cache"), refresh=5.0, now=lambda: now)
    for _ in range(20):
        storage.version()
    assert len(fake.paths("GET", "/tags/list")) == 1
    now += 6
    storage.version()
    assert len(fake.paths("GET", "/tags/list")) == 2


@pytest.mark.parametrize("restarted", [False, True])
def test_what_is_here_is_served_while_the_registry_is_down(
    fake: FakeRegistry, layout: Path, tmp_path: Path, restarted: bool
) -> None:
    push(fake, layout)
    storage = over(fake, tmp_path / "cache")
    index, layer = storage.read_index(), layers_of(storage)[-1]
    storage.open_blob("fn", layer.digest)
    fake.down = True
    if restarted:
        storage = over(fake, tmp_path / "cache")
    assert storage.read_index() == index
    assert storage.open_blob("fn", layer.digest).size == layer.size
    with pytest.raises(RemoteError, match="cannot reach"):
        storage.check_ready()
    fake.down = False
    storage.version()
    storage.check_ready()


def test_without_an_index_a_registry_that_is_down_is_an_error(
    fake: FakeRegistry, tmp_path: Path
) -> None:
    fake.down = True
    with pytest.raises(RemoteError, match="cannot reach"):
        over(fake, tmp_path / "cache").version()


def names_of(storage: Storage, key: str) -> dict[str, Digest]:
    entries = oci.parse_index(storage.read_index()).manifests
    return {e.annotations[key]: e.digest for e in entries if key in e.annotations}


def test_an_image_whose_tag_moved_on_is_still_listed(
    fake: FakeRegistry, layout: Path, tmp_path: Path
) -> None:
    push(fake, layout)
    storage = over(fake, tmp_path / "cache")
    old = names_of(storage, oci.ANNOTATION_REF_NAME)["fn:v1"]
    publish_image(tmp_path / "layout", "fn:v1", hello_files(noise(30_000, 9)))
    push(fake, layout)
    assert names_of(storage, oci.ANNOTATION_WAS) == {"fn:v1": old}
    assert names_of(storage, oci.ANNOTATION_REF_NAME)["fn:v1"] != old


def test_a_broken_image_or_referrer_hides_no_other(
    fake: FakeRegistry, layout: Path, tmp_path: Path
) -> None:
    push(fake, layout)
    fake.manifests["fn"]["bad"] = (oci.MANIFEST, b'{"schemaVersion": 1}')
    top = names_of(over(fake, tmp_path / "cache"), oci.ANNOTATION_REF_NAME)["fn:v1"]
    subject = {"mediaType": oci.MANIFEST, "digest": str(top), "size": 1}
    raw = json.dumps({"schemaVersion": 2, "subject": subject, "layers": "none"}).encode()
    fake.manifests["fn"][str(sha256_digest(raw))] = (oci.MANIFEST, raw)
    entries = oci.parse_index(over(fake, tmp_path / "c2").read_index()).manifests
    assert len(entries) == 2


def test_a_referrer_cannot_name_itself(fake: FakeRegistry, layout: Path, tmp_path: Path) -> None:
    push(fake, layout)
    top = names_of(over(fake, tmp_path / "cache"), oci.ANNOTATION_REF_NAME)["fn:v1"]
    manifest = oci.Manifest(
        oci.EMPTY_DESCRIPTOR,
        (),
        {oci.ANNOTATION_REF_NAME: "fn:v9"},
        artifact_type="x/evil",
        subject=oci.Descriptor(oci.MANIFEST, top, 1),
    )
    raw = oci.serialize_manifest(manifest)
    fake.manifests["fn"][str(sha256_digest(raw))] = (oci.MANIFEST, raw)
    found = over(fake, tmp_path / "c2")
    assert list(names_of(found, oci.ANNOTATION_REF_NAME)) == ["fn:v1"]


# --- what a person writes


@pytest.mark.parametrize(
    "text", ["ftp://host", "http://", "https://host/path", "https://user@host", "s3:///x"]
)
def test_what_is_no_storage_is_a_usage_error(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        open_storage(text, cache=tmp_path)


def test_a_registry_without_a_cache_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="folder"):
        open_storage("http://127.0.0.1:1")


def test_a_folder_is_opened_with_a_shelf_of_its_own_outside_of_it(
    layout: Path, tmp_path: Path
) -> None:
    before = sorted(layout.rglob("*"))
    storage = open_storage(str(layout), cache=tmp_path / "cache")
    assert storage.made is not None
    storage.made.put("key", b"bytes")
    again = open_storage(str(layout), cache=tmp_path / "cache").made
    other = open_storage(str(tmp_path / "other"), cache=tmp_path / "cache").made
    assert again is not None and again.get("key") == b"bytes"
    assert other is not None and other.get("key") is None
    assert storage.read_index() and sorted(layout.rglob("*")) == before
    assert open_storage(str(layout)).made is None


def test_a_registry_is_opened(fake: FakeRegistry, layout: Path, tmp_path: Path) -> None:
    push(fake, layout)
    storage = open_storage(fake.url, cache=tmp_path / "cache", made=str(tmp_path / "made"))
    assert names_of(storage, oci.ANNOTATION_REF_NAME)
    storage.made.put("key", b"bytes")
    assert (tmp_path / "made").is_dir()
