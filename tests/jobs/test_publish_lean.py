"""Pushing without the forms that can be made: what lies in the registry, and that all goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import Silent, hello_files, noise, publish_image
from registries import FakeRegistry
from toy_go import toy_go

from layerkit.digest import Digest, sha256_digest
from layerkit.edges.layout import Layout
from layerkit.edges.registry import Registry, Transport, list_referrers
from layerkit.edges.registry.upstream import RegistryUpstream
from layerkit.edges.storage import open_storage
from layerkit.edges.storage.targets import RegistryTarget
from layerkit.edges.store import Store
from layerkit.formats import image, layer, layerform, oci
from layerkit.formats.addressfree import Hints
from layerkit.formats.deflate import compression_by_name
from layerkit.formats.layerform import LABELS_TYPE
from layerkit.formats.lean import find_left_out
from layerkit.formats.reference import Reference
from layerkit.formats.tokens import Caller
from layerkit.jobs.publish import PushResult, publish
from layerkit.jobs.pull import pull
from layerkit.jobs.updating.catalogue import Catalogue
from layerkit.jobs.updating.forms import Forms
from layerkit.jobs.updating.kept import Kept, NoMeter
from layerkit.jobs.updating.library import Library
from layerkit.jobs.updating.packing import Packing
from layerkit.jobs.updating.updates import ANY, MAKE_SECONDS, Updates
from layerkit.jobs.updating.workshop import Workshop

REF = Reference.parse("fn:v1")
BASE = noise(300_000)

pytestmark = pytest.mark.usefixtures("no_settling")


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry(referrers_api=False).serving() as running:
        yield running


def connect(fake: FakeRegistry) -> Registry:
    return Registry(Transport(fake.host, plain_http=True, patience=0.1))


def binary_of(number: int) -> bytes:
    return BASE[:100_000] + b"version %d" % number + BASE[100_000:]


def push(
    layout: Path, fake: FakeRegistry, number: int, forms: bool | None = None
) -> tuple[oci.Descriptor, PushResult]:
    top = publish_image(layout, str(REF), hello_files(binary_of(number)))
    target = RegistryTarget(connect(fake))
    return top, publish(Layout(layout), REF, target, Silent(), forms=forms)


def read_artifact(fake: FakeRegistry, image: Digest) -> oci.Manifest:
    registry = connect(fake)
    (entry,) = list_referrers(registry, "fn", image, oci.CHUNKS_ARTIFACT)
    return oci.parse_manifest(registry.read_manifest("fn", str(entry.digest))[1])


def left_out(fake: FakeRegistry, image: Digest) -> list[oci.Descriptor]:
    listed = read_artifact(fake, image).layers
    return [form for blob in listed if (form := find_left_out(blob)) is not None]


def test_an_edit_leaves_the_form_of_the_changed_layer_out(
    fake: FakeRegistry, tmp_path: Path
) -> None:
    first, _ = push(tmp_path / "layout", fake, 0)
    assert not left_out(fake, first.digest)  # nodes have nothing that an update could start from
    new, result = push(tmp_path / "layout", fake, 1)
    (form,) = left_out(fake, new.digest)
    assert str(form.digest) not in fake.blobs["fn"]
    kinds = [blob.media_type for blob in read_artifact(fake, new.digest).layers]
    assert kinds == [oci.CHUNK_MANIFEST, oci.FORM_ZSTD, oci.CHUNK_MANIFEST]
    assert result.update_count == 1 and result.sent_size < 1.1 * len(BASE)


def test_nodes_and_pushes_from_elsewhere_go_on(
    fake: FakeRegistry, tmp_path: Path, store: Store
) -> None:
    """Each version is pushed from a layout that has no other one, so the old form is made of what
    the registry has; a node that had each takes the next one by its update."""
    for number in range(4):
        top, result = push(tmp_path / f"layout{number}", fake, number)
        assert result.update_count == number
        assert len(left_out(fake, top.digest)) == (number > 0)
        fake.log.clear()
        root = tmp_path / f"root{number}"
        with RegistryUpstream(connect(fake), store) as upstream:
            found = pull(REF, upstream, store, rootfs=root, fewest_bytes=True)
        assert found.digest == top.digest
        assert (root / "app/hello").read_bytes() == binary_of(number)
        assert number == 0 or (len(fake.log) == 3 and found.moved_size < 4000)


def put_go(path: Path, number: int) -> oci.Descriptor:
    """An image of ours with a Go binary, so with an address-free form and labels."""
    recipe, layout = compression_by_name("gzip"), Layout(path)
    binary = toy_go(b"version %d" % number)
    entries = layer.code_entries("fn", binary, [])
    code = image.pack_layer(layer.CODE, entries, recipe, "test")
    settings = image.ImageSettings(oci.Platform("linux", "amd64"), ("/app/fn",), "65532")
    packed = image.pack_image([code], settings)
    artifact = image.pack_chunks_artifact(packed, {sha256_digest(binary): Hints({})})
    with layout.batch():
        for blob in (*packed.blobs(), *artifact):
            layout.put_blob(blob.data, blob.descriptor.media_type)
        layout.commit(REF, packed.manifest.descriptor, [artifact[-1].descriptor])
    return packed.manifest.descriptor


def test_the_form_of_a_go_binary_is_made_by_its_labels(
    fake: FakeRegistry, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layerform, "MIN_BINARY_SIZE", 1024)  # a toy is smaller than any Go binary
    for number in range(3):
        layout = tmp_path / f"layout{number}"
        top = put_go(layout, number)
        target = RegistryTarget(connect(fake))
        assert publish(Layout(layout), REF, target, Silent()).update_count == number
        with RegistryUpstream(connect(fake), store) as upstream:
            pull(REF, upstream, store, rootfs=tmp_path / f"root{number}", fewest_bytes=True)
        binary = (tmp_path / f"root{number}/app/fn").read_bytes()
        assert binary == toy_go(b"version %d" % number)
        kinds = [blob.media_type for blob in read_artifact(fake, top.digest).layers]
        assert LABELS_TYPE in kinds and (oci.FORM_ZSTD in kinds) == (number == 0)


def test_an_empty_node_takes_the_layer(fake: FakeRegistry, tmp_path: Path, store: Store) -> None:
    for number in range(2):
        push(tmp_path / "layout", fake, number)
    with RegistryUpstream(connect(fake), store) as upstream:
        pull(REF, upstream, store, rootfs=tmp_path / "root", fewest_bytes=True)
    assert (tmp_path / "root/app/hello").read_bytes() == binary_of(1)


def test_again_changes_nothing(fake: FakeRegistry, tmp_path: Path) -> None:
    for number in range(2):
        push(tmp_path / "layout", fake, number)
    before = dict(fake.manifests["fn"])
    _, result = push(tmp_path / "layout", fake, 1)
    assert result.sent_count == 0 and fake.manifests["fn"] == before


def test_where_there_is_no_update_the_forms_go(fake: FakeRegistry, tmp_path: Path) -> None:
    push(tmp_path / "layout", fake, 0)
    new = publish_image(tmp_path / "layout", str(REF), hello_files(noise(300_000, 9)))
    target = RegistryTarget(connect(fake))
    result = publish(Layout(tmp_path / "layout"), REF, target, Silent())
    assert result.update_count == 0 and not left_out(fake, new.digest)


def test_who_wants_the_forms_gets_them(fake: FakeRegistry, tmp_path: Path) -> None:
    push(tmp_path / "layout", fake, 0)
    new, _ = push(tmp_path / "layout", fake, 1, forms=True)
    assert not left_out(fake, new.digest)
    other = FakeRegistry()
    with other.serving():
        top, _ = push(tmp_path / "layout", other, 2, forms=False)
        assert len(left_out(other, top.digest)) == 2


def test_a_server_of_that_registry_makes_updates_and_first_pulls(
    fake: FakeRegistry, tmp_path: Path
) -> None:
    olds = [push(tmp_path / "layout", fake, number)[0].digest for number in range(3)]
    storage = open_storage(fake.url, repositories=("fn",), cache=tmp_path / "cache")
    catalogue, workshop = Catalogue(storage), Workshop()
    forms = Forms(catalogue, 8 << 20)
    packing = Packing(catalogue, forms, Kept("packed", 0, workshop, NoMeter()))
    deltas = Kept("delta", 1 << 20, workshop, NoMeter())
    updates = Updates(Library(catalogue, forms, packing, deltas, is_aside=True))
    caller = Caller("", ("*",), ())
    found = updates.answer("fn", olds[2], [olds[1]], caller, ANY, MAKE_SECONDS)
    assert found.stream is not None and found.is_final
    assert found.old == olds[1] and len(found.stream.join()) < 4000
    whole = updates.answer("fn", olds[2], [], caller, ANY, MAKE_SECONDS)
    assert whole.stream is not None and len(whole.stream.join()) > len(BASE)
