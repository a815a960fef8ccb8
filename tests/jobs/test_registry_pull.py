"""Pulling from a plain registry: few requests with our referrers, plainly without, whatever the
referrers hold."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import Silent, hello_files, noise, publish_image
from cryptography.hazmat.primitives.asymmetric import ec
from keys import write_key
from registries import FakeRegistry

from layerkit.digest import sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.layout import Layout
from layerkit.edges.registry import Registry, Transport
from layerkit.edges.registry.upstream import RegistryUpstream
from layerkit.edges.signing import Verifier
from layerkit.edges.storage.targets import RegistryTarget
from layerkit.edges.store import CHUNK_MANIFEST_KIND, Store
from layerkit.errors import (
    IntegrityError,
    LayerkitError,
    NotFoundError,
    RemoteDeniedError,
    RemoteError,
    SignatureError,
)
from layerkit.formats import oci
from layerkit.formats.chunkmanifest import ChunkManifest, build_chunk_manifest
from layerkit.formats.chunkpack import PACK_TYPE
from layerkit.formats.layerform import ADDRESS_FREE
from layerkit.formats.reference import Reference
from layerkit.jobs.publish import publish
from layerkit.jobs.pull import PullResult, make_check, pull
from layerkit.jobs.pull.packs import MIN_PARTED_SIZE

REF = Reference.parse("fn:v1")
HALF = noise(60_000, 3)


@pytest.fixture(autouse=True)
def _quick(no_settling: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerkit.formats.chunkpack.MIN_FORM_SIZE", 500_000)


@pytest.fixture(params=[pytest.param(True, id="api", marks=pytest.mark.slow), False])
def fake(request: pytest.FixtureRequest) -> Iterator[FakeRegistry]:
    with FakeRegistry(referrers_api=request.param).serving() as running:
        yield running


def connect(fake: FakeRegistry) -> Registry:
    return Registry(Transport(fake.host, plain_http=True, patience=0.5, sleep=lambda _: None))


def push(layout: Path, fake: FakeRegistry, text: bytes, *, chunks: bool = True) -> oci.Descriptor:
    top = publish_image(layout, str(REF), hello_files(HALF + text + HALF[::-1]), chunks=chunks)
    publish(Layout(layout), REF, RegistryTarget(connect(fake)), Silent())
    return top


def bring(
    fake: FakeRegistry, store: Store, ref: Reference = REF, rootfs: Path | None = None
) -> PullResult:
    fake.log.clear()
    with RegistryUpstream(connect(fake), store) as upstream:
        return pull(ref, upstream, store, rootfs=rootfs, disk=Disk(), fewest_bytes=True)


def read_file(fake: FakeRegistry, store: Store, tmp_path: Path) -> bytes:
    """The function's file, as the store now has it; nothing is asked for."""
    root = tmp_path / f"root{len(list(tmp_path.iterdir()))}"
    before = len(fake.log)
    with RegistryUpstream(connect(fake), store) as upstream:
        top = store.find_image(str(REF))
        assert top is not None
        pull(REF.pinned(top), upstream, store, rootfs=root, disk=Disk())
    assert len(fake.log) == before
    return (root / "app/hello").read_bytes()


def test_an_update_is_three_requests(fake: FakeRegistry, tmp_path: Path, store: Store) -> None:
    push(tmp_path / "layout", fake, b"one")
    first = bring(fake, store)
    assert first.request_count == len(fake.log)
    top = push(tmp_path / "layout", fake, b"two")
    found = bring(fake, store)
    assert (found.digest, found.request_count, len(fake.log)) == (top.digest, 3, 3)
    assert found.moved_size < 3000
    assert [method for method, _, _ in fake.log] == ["HEAD", "GET", "GET"]
    assert read_file(fake, store, tmp_path) == HALF + b"two" + HALF[::-1]


def test_what_is_current_is_one_request(fake: FakeRegistry, tmp_path: Path, store: Store) -> None:
    push(tmp_path / "layout", fake, b"one")
    bring(fake, store)
    found = bring(fake, store)
    assert (found.up_to_date, found.request_count, found.moved_size) == (True, 1, 0)


def test_anybodys_image_comes_plainly(fake: FakeRegistry, tmp_path: Path, store: Store) -> None:
    for text in (b"one", b"two"):
        top = push(tmp_path / "layout", fake, text, chunks=False)
        assert bring(fake, store).digest == top.digest
        assert read_file(fake, store, tmp_path) == HALF + text + HALF[::-1]


def test_a_layer_of_anybodys_image_comes_once(
    fake: FakeRegistry, tmp_path: Path, store: Store
) -> None:
    """Nothing lies beside either image; the base layer is the same."""
    for text in (b"one", b"two"):
        top = push(tmp_path / "layout", fake, text, chunks=False)
        bring(fake, store)
    base, code = Layout(tmp_path / "layout").read_manifest(top.digest).layers
    assert not fake.paths("GET", str(base.digest)) and fake.paths("GET", str(code.digest))
    assert read_file(fake, store, tmp_path) == HALF + b"two" + HALF[::-1]


def test_one_of_several_held_images_will_do(
    fake: FakeRegistry, tmp_path: Path, store: Store
) -> None:
    push(tmp_path / "layout", fake, b"one")
    bring(fake, store)
    for text in (b"two", b"three"):  # the node misses the one between
        push(tmp_path / "layout", fake, text)
    found = bring(fake, store)
    assert found.request_count == 3
    assert read_file(fake, store, tmp_path) == HALF + b"three" + HALF[::-1]


def _spoil(fake: FakeRegistry, how: str) -> None:
    """Make what refers to the image useless in one way."""
    held = fake.manifests["fn"]
    updates = [
        json.loads(raw)
        for _, raw in held.values()
        if json.loads(raw).get("artifactType") == oci.UPDATE_ARTIFACT
    ]
    blobs = {layer["digest"] for update in updates for layer in update["layers"]}
    assert blobs
    for digest in blobs:
        data = fake.blobs["fn"][digest]
        if how == "gone":
            del fake.blobs["fn"][digest]
        elif how == "damaged":
            fake.blobs["fn"][digest] = data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
        elif how == "short":
            fake.blobs["fn"][digest] = data[:-100]
        elif how == "html":
            fake.blobs["fn"][digest] = b"<html>all is well</html>".ljust(len(data))
    if how == "broken list":
        for ref in [ref for ref in held if ref.startswith("sha256-")]:
            held[ref] = (oci.INDEX, b'{"schemaVersion":2,"manifests":"none"}')
        fake.faults += [("/referrers/", 200, {"Content-Type": oci.INDEX})] * 9
    if how == "refused list":
        fake.faults += [("/referrers/", 403, {})] * 99 + [("manifests/sha256-", 403, {})] * 99
    if how == "failing list":
        fake.faults += [("/referrers/", 500, {})] * 99 + [("manifests/sha256-", 500, {})] * 99


@pytest.mark.parametrize("how", ["gone", "damaged", "short", "html", "broken list", "failing list"])
def test_bad_referrers_mean_a_plain_pull(
    fake: FakeRegistry, tmp_path: Path, store: Store, how: str
) -> None:
    push(tmp_path / "layout", fake, b"one")
    bring(fake, store)
    top = push(tmp_path / "layout", fake, b"two")
    _spoil(fake, how)
    assert bring(fake, store).digest == top.digest
    fake.faults.clear()
    assert read_file(fake, store, tmp_path) == HALF + b"two" + HALF[::-1]


@pytest.mark.parametrize("has_api", [True, False], ids=["api", "fallback"])
@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("no signature", SignatureError),
        ("broken list", RemoteError),
        ("failing list", RemoteError),
        ("refused list", RemoteDeniedError),
    ],
)
def test_trouble_with_the_list_is_told_from_no_signature(
    how: str, error: type[LayerkitError], has_api: bool, tmp_path: Path, store: Store
) -> None:
    _, public = write_key(tmp_path, ec.generate_private_key(ec.SECP256R1()), "ours")
    with FakeRegistry(referrers_api=has_api).serving() as fake:
        push(tmp_path / "layout", fake, b"one")
        push(tmp_path / "layout", fake, b"two")
        _spoil(fake, how)
        with (
            RegistryUpstream(connect(fake), store) as upstream,
            pytest.raises(LayerkitError) as caught,
        ):
            pull(REF, upstream, store, check=make_check(Verifier.load([public])))
    assert type(caught.value) is error
    assert store.find_image(str(REF)) is None


def test_an_update_to_another_image_is_refused(
    fake: FakeRegistry, tmp_path: Path, store: Store
) -> None:
    """Anybody who may push a referrer can offer a good update to an old, bad version."""
    layout = tmp_path / "layout"
    push(layout, fake, b"one")
    bring(fake, store)
    push(layout, fake, b"two, which is bad")
    top = push(layout, fake, b"three")
    held = fake.manifests["fn"]
    documents = {ref: (kind, json.loads(raw)) for ref, (kind, raw) in held.items()}
    updates = {
        ref: document
        for ref, (_, document) in documents.items()
        if ref.startswith("sha256:") and document.get("artifactType") == oci.UPDATE_ARTIFACT
    }
    bad = next(d for d in updates.values() if d["subject"]["digest"] != str(top.digest))
    kept = dict(bad["annotations"])
    for ref in [ref for ref in updates if updates[ref]["subject"]["digest"] == str(top.digest)]:
        del held[ref]
    bad["subject"]["digest"] = str(top.digest)
    raw = json.dumps(bad).encode()
    held[str(sha256_digest(raw))] = (oci.MANIFEST, raw)
    for ref, (kind, document) in documents.items():
        if ref == f"sha256-{top.digest.hex}":
            for entry in document["manifests"]:
                if entry.get("artifactType") == oci.UPDATE_ARTIFACT:
                    entry["annotations"] = kept
            held[ref] = (kind, json.dumps(document).encode())
    found = bring(fake, store)
    assert found.digest == top.digest and found.request_count > 3
    assert read_file(fake, store, tmp_path) == HALF + b"three" + HALF[::-1]


def test_a_cut_update_goes_on_where_it_was(
    fake: FakeRegistry, tmp_path: Path, store: Store
) -> None:
    push(tmp_path / "layout", fake, b"one")
    bring(fake, store)
    push(tmp_path / "layout", fake, noise(40_000, 9))
    fake.cuts.append(20_000)
    found = bring(fake, store)
    assert found.request_count == 4 and found.moved_size < 50_000
    assert fake.log[-1][2]["Range"].startswith("bytes=20000-")


def test_after_a_cut_the_next_pull_fetches_only_what_is_left(
    fake: FakeRegistry, tmp_path: Path, store: Store
) -> None:
    push(tmp_path / "layout", fake, b"one")
    fake.cuts += [-1, -1, *[0] * 30]  # config and base come, then the line is gone
    with pytest.raises(RemoteError), RegistryUpstream(connect(fake), store) as upstream:
        pull(REF, upstream, store, disk=Disk(), fewest_bytes=True)
    fake.cuts.clear()
    got = {path for _, path, _ in fake.log if "/blobs/" in path}
    found = bring(fake, store)
    again = [path for _, path, _ in fake.log if "/blobs/" in path]
    assert len([path for path in again if path in got]) <= 2  # config, and the layer that was cut
    assert found.held_count > 0


def test_the_missing_api_is_asked_for_once(tmp_path: Path, store: Store) -> None:
    with FakeRegistry(referrers_api=False).serving() as fake:
        push(tmp_path / "layout", fake, b"one")
        bring(fake, store)
        assert len(fake.paths("GET", "/referrers/")) == 1
        push(tmp_path / "layout", fake, b"two")
        bring(fake, store)
        assert not fake.paths("GET", "/referrers/")


def test_an_api_that_is_new_is_found(tmp_path: Path, store: Store) -> None:
    """The registry was known to have none; who pushed since then wrote no tag."""
    with FakeRegistry(referrers_api=False).serving() as fake:
        push(tmp_path / "layout", fake, b"one")
        bring(fake, store)
        fake.referrers_api = True
        push(tmp_path / "layout", fake, b"two")
        assert bring(fake, store).moved_size < 3000
        assert store.fact(f"registry/{fake.host}/referrers") == "api"


def test_a_manifest_that_is_another_is_refused(
    fake: FakeRegistry, tmp_path: Path, store: Store
) -> None:
    top = push(tmp_path / "layout", fake, b"one")
    kind, raw = fake.manifests["fn"][str(top.digest)]
    fake.manifests["fn"][str(top.digest)] = (kind, raw + b" ")
    with pytest.raises(IntegrityError):
        bring(fake, store, Reference.parse(f"fn@{top.digest}"))


def test_what_is_not_there_is_not_found(fake: FakeRegistry, store: Store) -> None:
    with pytest.raises(NotFoundError):
        bring(fake, store)


def test_a_damaged_chunk_brings_its_layer_again(
    fake: FakeRegistry, tmp_path: Path, store: Store
) -> None:
    push(tmp_path / "layout", fake, b"one")
    bring(fake, store)
    pack = max((tmp_path / "store").rglob("*.pack"), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    found = bring(fake, store, rootfs=tmp_path / "root")
    assert (tmp_path / "root/app/hello").read_bytes() == HALF + b"one" + HALF[::-1]
    assert len(found.refetched) == 1


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_a_platform_of_an_index_gets_its_own_update(
    fake: FakeRegistry, tmp_path: Path, store: Store, architecture: str
) -> None:
    platform = oci.Platform("linux", architecture)
    for text in (b"one", b"two"):
        publish_index(tmp_path / "layout", fake, text)
        fake.log.clear()
        with RegistryUpstream(connect(fake), store) as upstream:
            found = pull(REF, upstream, store, platform=platform, disk=Disk(), fewest_bytes=True)
    assert found.request_count == 3 and found.moved_size < 4500
    root = tmp_path / "root"
    with RegistryUpstream(connect(fake), store) as upstream:
        pull(REF, upstream, store, platform=platform, rootfs=root, disk=Disk())
    assert (root / "app/hello").read_bytes() == HALF + architecture.encode() + text + HALF


def publish_index(path: Path, fake: FakeRegistry, text: bytes) -> None:
    """An image for two platforms, pushed with what refers to it."""
    layout, entries, referrers = Layout(path), [], []
    for architecture in ("amd64", "arm64"):
        name = Reference.parse(f"part:{architecture}")
        binary = HALF + architecture.encode() + text + HALF
        top = publish_image(path, str(name), hello_files(binary))
        referrers += layout.referrers(top.digest)
        platform = oci.Platform("linux", architecture)
        entries.append(oci.Descriptor(top.media_type, top.digest, top.size, platform=platform))
    raw = oci.serialize_index(oci.Index(tuple(entries)))
    with layout.batch():
        layout.commit(REF, layout.put_blob(raw, oci.INDEX), referrers)
    publish(layout, REF, RegistryTarget(connect(fake)), Silent())


# --- chunk packs -------------------------------------------------------------------------------

LONG = noise(1_200_000, 5)
EDIT = noise(20_000, 6)


def push_packed(layout: Path, fake: FakeRegistry, binary: bytes) -> oci.Descriptor:
    """Without updates, as for a node that comes from a version that nobody made one for."""
    top = publish_image(layout, str(REF), hello_files(binary))
    publish(Layout(layout), REF, RegistryTarget(connect(fake)), Silent(), update_count=0)
    return top


def find_pack(fake: FakeRegistry, top: oci.Descriptor) -> str:
    for _, raw in fake.manifests["fn"].values():
        document = json.loads(raw)
        subject = document.get("subject", {}).get("digest")
        if document.get("artifactType") == oci.PACKS_ARTIFACT and subject == str(top.digest):
            return str(max(document["layers"], key=lambda layer: layer["size"])["digest"])
    raise AssertionError("no packs were published")


@pytest.fixture
def packed(fake: FakeRegistry, tmp_path: Path, store: Store) -> str:
    """The node holds a version, and there is a new one with a pack; the pack's digest."""
    push_packed(tmp_path / "layout", fake, LONG)
    bring(fake, store)
    top = push_packed(tmp_path / "layout", fake, LONG[:600_000] + EDIT + LONG[600_000:])
    return find_pack(fake, top)


def test_missing_chunks_come_by_ranges(
    fake: FakeRegistry, tmp_path: Path, store: Store, packed: str
) -> None:
    found = bring(fake, store)
    ranges = [headers["Range"] for headers in fake.headers(packed)]
    assert len(ranges) == 1 and found.moved_size < 0.25 * found.whole_size
    assert read_file(fake, store, tmp_path) == LONG[:600_000] + EDIT + LONG[600_000:]


def test_a_registry_without_ranges_sends_the_pack_once(
    fake: FakeRegistry, tmp_path: Path, store: Store, packed: str
) -> None:
    fake.knows_ranges = False
    bring(fake, store)
    assert len(fake.paths("GET", packed)) == 1
    assert read_file(fake, store, tmp_path) == LONG[:600_000] + EDIT + LONG[600_000:]


@pytest.mark.parametrize("how", ["gone", "damaged", "short"])
def test_a_bad_pack_means_the_plain_layer(
    fake: FakeRegistry, tmp_path: Path, store: Store, packed: str, how: str
) -> None:
    data = fake.blobs["fn"].pop(packed)
    if how != "gone":
        spoiled = data[:50] if how == "short" else bytes(200) + data[200:]
        fake.blobs["fn"][packed] = spoiled
    bring(fake, store)
    assert read_file(fake, store, tmp_path) == LONG[:600_000] + EDIT + LONG[600_000:]


def test_an_image_that_came_plainly_holds_no_list_of_chunks_that_are_not_here(
    fake: FakeRegistry, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published chunk manifests are of forms that a plain blob does not give at once, as
    address-free ones: the image cannot be committed with them."""
    push_packed(tmp_path / "layout", fake, LONG)
    bring(fake, store)
    new = LONG[:600_000] + EDIT + LONG[600_000:]

    def of_another_form(form: bytes, _: str, *facts: Any) -> ChunkManifest:
        return build_chunk_manifest(noise(len(form), 8), ADDRESS_FREE, *facts)

    monkeypatch.setattr("builders.build_chunk_manifest", of_another_form)
    top = push_packed(tmp_path / "layout", fake, new)
    monkeypatch.undo()
    listed = [
        oci.parse_manifest(raw)
        for _, raw in fake.manifests["fn"].values()
        if json.loads(raw).get("subject", {}).get("digest") == str(top.digest)
    ]
    published = {
        part.digest
        for artifact in listed
        for part in artifact.layers
        if part.media_type == oci.CHUNK_MANIFEST
    }
    for digest in published:  # as an earlier pull that began with its chunks leaves it
        store.put_blob(fake.blobs["fn"][str(digest)], CHUNK_MANIFEST_KIND)
    for media_type in (PACK_TYPE, oci.FORM_ZSTD):
        for artifact in listed:
            for part in artifact.layers:
                if part.media_type == media_type:
                    fake.blobs["fn"].pop(str(part.digest), None)
    assert bring(fake, store).digest == top.digest == store.find_image(str(REF))
    held = store.list_blobs(top.digest, CHUNK_MANIFEST_KIND)
    assert len(held) == len(fake_layers(fake, top)) and store.verify().good
    assert read_file(fake, store, tmp_path) == new


def fake_layers(fake: FakeRegistry, top: oci.Descriptor) -> tuple[oci.Descriptor, ...]:
    raw = next(raw for _, raw in fake.manifests["fn"].values() if sha256_digest(raw) == top.digest)
    return oci.parse_manifest(raw).layers


# --- chunk manifests by their runs ---------------------------------------------------------------

FAR = noise(3_000_000, 7)  # its chunk manifest has some 100 KB
FAR_EDITED = FAR[:900_000] + EDIT + FAR[900_000:]


def sent_size(fake: FakeRegistry, digest: str) -> int:
    """Bytes that were sent of a blob of the registry, if it knows ranges."""
    size = len(fake.blobs["fn"][digest])
    sent = 0
    for headers in fake.headers(digest):
        wanted = headers.get("Range", f"bytes=0-{size - 1}").removeprefix("bytes=")
        start, _, end = wanted.partition("-")
        sent += min(int(end) + 1, size) - int(start)
    return sent


@pytest.fixture
def listed(fake: FakeRegistry, tmp_path: Path, store: Store) -> str:
    """The node holds a version, and there is a new one with packs; its long chunk manifest."""
    push_packed(tmp_path / "layout", fake, FAR)
    bring(fake, store)
    before = set(fake.blobs["fn"])
    push_packed(tmp_path / "layout", fake, FAR_EDITED)
    found = [
        digest
        for digest in set(fake.blobs["fn"]) - before
        if fake.blobs["fn"][digest].startswith(b"LKCHUNKS")
    ]
    return max(found, key=lambda digest: len(fake.blobs["fn"][digest]))


def test_of_a_chunk_manifest_only_the_root_and_the_missing_runs_come(
    fake: FakeRegistry, tmp_path: Path, store: Store, listed: str
) -> None:
    bring(fake, store)
    assert len(fake.blobs["fn"][listed]) > MIN_PARTED_SIZE
    assert len(fake.paths("GET", listed)) == 3  # the root, the edit, the end of the tar
    assert sent_size(fake, listed) < 0.2 * len(fake.blobs["fn"][listed])
    assert read_file(fake, store, tmp_path) == FAR_EDITED and store.verify().good


def test_a_registry_without_ranges_sends_the_chunk_manifest_once(
    fake: FakeRegistry, tmp_path: Path, store: Store, listed: str
) -> None:
    fake.knows_ranges = False
    bring(fake, store)
    assert len(fake.paths("GET", listed)) == 1
    assert read_file(fake, store, tmp_path) == FAR_EDITED


SPOILED = [pytest.param(30, marks=pytest.mark.slow), 200, pytest.param(-1, marks=pytest.mark.slow)]


@pytest.mark.parametrize("offset", SPOILED, ids=["root", "run table", "last run"])
def test_a_damaged_chunk_manifest_means_the_plain_layer(
    fake: FakeRegistry, tmp_path: Path, store: Store, listed: str, offset: int
) -> None:
    spoiled = bytearray(fake.blobs["fn"][listed])
    spoiled[offset] ^= 1
    fake.blobs["fn"][listed] = bytes(spoiled)
    bring(fake, store)
    assert read_file(fake, store, tmp_path) == FAR_EDITED and store.verify().good


@pytest.mark.parametrize("cut", [0, pytest.param(3_000, marks=pytest.mark.slow)])
def test_a_chunk_manifest_that_is_cut_goes_on(
    fake: FakeRegistry, tmp_path: Path, store: Store, listed: str, cut: int
) -> None:
    fake.cuts += [-1, cut, cut]  # config, and then the root
    bring(fake, store)
    assert sent_size(fake, listed) < 0.4 * len(fake.blobs["fn"][listed])
    assert read_file(fake, store, tmp_path) == FAR_EDITED


def test_a_range_that_is_cut_is_asked_for_again(
    fake: FakeRegistry, tmp_path: Path, store: Store, packed: str
) -> None:
    before = len(fake.log)
    fake.cuts += [-1, -1, -1, 5_000]  # config, chunk manifest, index, and then the pack
    bring(fake, store)
    assert len(fake.log) != before and len(fake.paths("GET", packed)) == 2
    assert read_file(fake, store, tmp_path) == LONG[:600_000] + EDIT + LONG[600_000:]
