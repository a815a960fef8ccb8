"""Publishing with updates: from which images, what they give, what a dying target leaves."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import Silent, hello_files, noise, publish_image
from registries import FakeRegistry

from layerkit.digest import Digest
from layerkit.edges.disk import Disk
from layerkit.edges.layout import Layout
from layerkit.edges.registry import Registry, Transport, list_referrers
from layerkit.edges.storage.reading import ImageReader, LayoutReader
from layerkit.edges.storage.targets import FolderTarget, RegistryTarget, Target
from layerkit.errors import NotFoundError, RemoteError
from layerkit.formats import oci
from layerkit.formats.reference import Reference
from layerkit.formats.storedupdate import StoredUpdate, find_updates
from layerkit.formats.update import Documents, UpdateReader
from layerkit.jobs.publish import publish

REF = Reference.parse("fn:v1")
BASE = noise(300_000)


pytestmark = pytest.mark.usefixtures("no_settling")


def edit(layout: Path, number: int, ref: str = "fn:v1") -> oci.Descriptor:
    """A version that differs from the others in a few bytes."""
    binary = BASE[:100_000] + b"version %d" % number + BASE[100_000:]
    return publish_image(layout, ref, hello_files(binary))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    edit(tmp_path / "layout", 0)
    return Layout(tmp_path / "layout")


@pytest.fixture(params=[True, False], ids=["api", "fallback"])
def fake(request: pytest.FixtureRequest) -> Iterator[FakeRegistry]:
    with FakeRegistry(referrers_api=request.param).serving() as running:
        yield running


def registry_of(fake: FakeRegistry) -> Registry:
    return Registry(Transport(fake.host, plain_http=True, patience=0.1))


def read_update(reader: ImageReader, stored: StoredUpdate, old: Documents) -> Documents:
    """The documents that a stored update gives to who holds `old`."""
    raw = reader.read_blob("fn", stored.blob, stored.size)
    assert len(raw) == stored.size
    stream = UpdateReader([raw])
    assert stream.old == stored.old
    documents = stream.read_documents(old)
    assert [size for _, data in stream.read_parts() if (size := len(data))]
    return documents


def documents_of(layout: Layout, top: oci.Descriptor) -> Documents:
    manifest = layout.read_manifest(top.digest)
    (artifact,) = layout.referrers(top.digest, oci.CHUNKS_ARTIFACT)
    return Documents(
        layout.read_blob(top.digest),
        b"",
        layout.read_blob(manifest.config.digest),
        layout.read_blob(artifact.digest),
    )


def test_a_registry_gets_updates_from_what_the_tag_named(
    layout: Layout, fake: FakeRegistry
) -> None:
    target = RegistryTarget(registry_of(fake))
    tops = [layout.resolve(REF)]
    assert publish(layout, REF, target, Silent()).update_count == 0
    for number in range(1, 4):
        tops.append(edit(layout.path, number))
        result = publish(layout, REF, target, Silent(), update_count=2, forms=True)
        assert result.update_count == min(2, number)
    found = find_updates(list_referrers(registry_of(fake), "fn", tops[3].digest))
    assert {one.old for one in found} == {tops[2].digest, tops[1].digest}
    assert max(one.size for one in found) < 4000
    for one in found:
        old = next(top for top in tops if top.digest == one.old)
        new = read_update(target.reader, one, documents_of(layout, old))
        assert new == documents_of(layout, tops[3])


def test_old_forms_come_from_the_registry_where_the_layout_has_none(
    layout: Layout, fake: FakeRegistry, tmp_path: Path
) -> None:
    """A CI job has a fresh layout each time."""
    target = RegistryTarget(registry_of(fake))
    publish(layout, REF, target, Silent())
    fresh = Layout(tmp_path / "fresh")
    new = edit(fresh.path, 1)
    result = publish(fresh, REF, target, Silent(), forms=True)
    assert result.update_count == 1 and result.update_size < 4000
    (found,) = find_updates(list_referrers(registry_of(fake), "fn", new.digest))
    old = documents_of(layout, layout.resolve(REF))
    assert read_update(target.reader, found, old) == documents_of(fresh, new)


def test_another_layout_lists_updates_of_what_is_named_only(layout: Layout, tmp_path: Path) -> None:
    target = FolderTarget(tmp_path / "copy", Disk())
    copy = Layout(tmp_path / "copy")
    tops = [layout.resolve(REF)]
    for number in range(3):
        publish(layout, REF, target, Silent())
        tops.append(edit(layout.path, number + 1))
    named = copy.resolve(REF).digest
    found = find_updates(copy.referrers(named, oci.UPDATE_ARTIFACT))
    assert {one.old for one in found} == {top.digest for top in tops if top.digest != named} - {
        tops[-1].digest
    }
    subjects = [
        manifest.subject.digest
        for entry in copy.read_index().manifests
        if (manifest := copy.read_manifest(entry.digest)).artifact_type == oci.UPDATE_ARTIFACT
        and manifest.subject
    ]
    assert set(subjects) == {named}


def test_an_image_that_is_named_is_an_old_one_too(layout: Layout, fake: FakeRegistry) -> None:
    target = RegistryTarget(registry_of(fake))
    publish(layout, REF, target, Silent())
    two, named = Reference.parse("fn:v2"), Reference.parse("fn:v1")
    new = edit(layout.path, 1, "fn:v2")
    assert publish(layout, two, target, Silent()).update_count == 0
    assert publish(layout, two, target, Silent(), olds=[named]).update_count == 1
    assert publish(layout, two, target, Silent(), olds=[named]).update_count == 0  # it is there
    (found,) = find_updates(list_referrers(registry_of(fake), "fn", new.digest))
    assert found.old == layout.resolve(named).digest


def test_who_names_an_old_image_that_is_nowhere_is_told(layout: Layout, fake: FakeRegistry) -> None:
    target = RegistryTarget(registry_of(fake))
    with pytest.raises(NotFoundError, match="neither"):
        publish(layout, REF, target, Silent(), olds=[Reference.parse("fn:none")])
    assert not fake.blobs.get("fn")


def test_each_platform_gets_its_update(layout: Layout, tmp_path: Path) -> None:
    amd64, arm64 = (oci.parse_platform(f"linux/{name}") for name in ("amd64", "arm64"))

    def index(number: int) -> oci.Descriptor:
        children = []
        for at, platform in enumerate((amd64, arm64)):
            image = edit(layout.path, 10 * number + at, f"part:{at}")
            children.append(dataclasses.replace(image, annotations={}, platform=platform))
        raw = oci.serialize_index(oci.Index(tuple(children)))
        top = layout.put_blob(raw, oci.INDEX)
        layout.commit(Reference.parse("many:v1"), top)
        return top

    ref, target = Reference.parse("many:v1"), FolderTarget(tmp_path / "copy", Disk())
    old = index(1)
    publish(layout, ref, target, Silent())
    new = index(2)
    assert publish(layout, ref, target, Silent()).update_count == 2
    found = find_updates(LayoutReader(Layout(tmp_path / "copy")).list_referrers("", new.digest))
    assert {one.platform for one in found} == {amd64, arm64}
    assert {one.old for one in found} == {old.digest}


def test_an_update_that_cannot_be_made_keeps_no_image_from_being_pushed(
    layout: Layout, fake: FakeRegistry
) -> None:
    target = RegistryTarget(registry_of(fake))
    old = layout.resolve(REF)
    publish(layout, REF, target, Silent())
    edit(layout.path, 1)
    (artifact,) = layout.referrers(old.digest, oci.CHUNKS_ARTIFACT)
    for blob in layout.read_manifest(artifact.digest).layers:
        if blob.digest not in _blobs_of(layout, layout.resolve(REF).digest):
            layout.blob_path(blob.digest).write_bytes(b"rotten")
            fake.blobs["fn"].pop(str(blob.digest))
    warned: list[str] = []
    result = publish(layout, REF, target, Silent(), warn=warned.append)
    assert result.update_count == 0 and len(warned) == 1
    assert fake.manifests["fn"]["v1"][1] == layout.read_blob(result.digest)


def _blobs_of(layout: Layout, top: Digest) -> set[Digest]:
    (artifact,) = layout.referrers(top, oci.CHUNKS_ARTIFACT)
    return {blob.digest for blob in layout.read_manifest(artifact.digest).layers}


class DyingTarget:
    """Passes `steps` writes on, and fails at all that follow."""

    def __init__(self, target: Target, steps: int) -> None:
        self.where, self.reader, self.session = target.where, target.reader, target.session
        self.make_history, self.is_lean = target.make_history, target.is_lean
        self._target = target
        self.left = steps

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise RemoteError("the target is gone")

    def put_blob(self, *facts: object) -> str:
        self._step()
        return self._target.put_blob(*facts)  # type: ignore[arg-type]

    def put_manifest(self, *facts: object) -> None:
        self._step()
        self._target.put_manifest(*facts)  # type: ignore[arg-type]

    def commit(self, *facts: object) -> None:
        self._step()
        self._target.commit(*facts)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_target_that_dies_anywhere_shows_the_old_image_whole(
    layout: Layout, tmp_path: Path
) -> None:
    """Each step in turn is the last that works; then the push goes on where it was."""
    old = layout.resolve(REF)
    publish(layout, REF, FolderTarget(tmp_path / "before", Disk()), Silent())
    new = edit(layout.path, 1)
    died = 0
    for steps in range(60):
        shutil.copytree(tmp_path / "before", path := tmp_path / f"copy{steps}")
        target, copy = FolderTarget(path, Disk()), Layout(path)
        dying = DyingTarget(target, steps)
        try:
            publish(layout, REF, dying, Silent())
        except RemoteError:
            died += 1
            assert copy.resolve(REF).digest == old.digest
            assert len(copy.read_index().manifests) == 2
            publish(layout, REF, target, Silent())
        assert copy.resolve(REF).digest == new.digest
        (found,) = find_updates(copy.referrers(new.digest, oci.UPDATE_ARTIFACT))
        update = read_update(target.reader, found, documents_of(layout, old))
        assert update == documents_of(layout, new)
        if dying.left >= 0:
            break
    assert died > 8
