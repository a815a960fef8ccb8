"""Updates between a server and a node: one request whatever the node holds, nothing lost by a cut,
nothing believed that is not checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import AMD64, LayoutSource, hello_files, noise, publish_image

from layerkit.digest import Digest, sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.http import make_app, start_server
from layerkit.edges.http.source import UpdateAnswer
from layerkit.edges.layout import Layout
from layerkit.edges.remote import Remote
from layerkit.edges.store import Store
from layerkit.edges.upstream import UpdateBody
from layerkit.errors import NotFoundError, RemoteError, StoreFullError
from layerkit.formats import oci, updateparts
from layerkit.formats.chunkmanifest import build_chunk_manifest, serialize_chunk_manifest
from layerkit.formats.deflate import compress, compression_by_name
from layerkit.formats.layer import Entry, build_tar
from layerkit.formats.protocol import pack_form
from layerkit.formats.reference import Reference
from layerkit.formats.tokens import ANYONE
from layerkit.formats.update import (
    CHUNKS,
    FORM,
    LIST,
    UPDATE_TYPE,
    Documents,
    Part,
    UpdateReader,
    serialize_update,
)
from layerkit.formats.updating import layers_of
from layerkit.jobs.pull import PullResult, pull

OLD = noise(150_000)
NEW = OLD[:90_000] + b"one edited string" + OLD[90_000:]
REF = "team/hello:v1"
ARM64 = oci.Platform("linux", "arm64")


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    publish_image(tmp_path / "layout", REF, hello_files(OLD))
    return tmp_path / "layout"


def run(source: LayoutSource, store: Store, ref: str = REF, **options: Any) -> PullResult:
    options = {"platform": AMD64, "fewest_bytes": True, **options}
    with (
        start_server(make_app(source)) as running,
        Remote(running.url, pauses=(0.01, 0.01)) as remote,
    ):
        result = pull(Reference.parse(ref), remote, store, **options)
    assert store.verify().good
    return result


def publish_layers(
    path: Path, ref: str, tars: Sequence[bytes], *, chunks: bool = True
) -> oci.Descriptor:
    """An image of these layers, without roles."""
    layout, how = Layout(path), compression_by_name("gzip")
    with layout.batch():
        layers, parts = [], []
        for tar in tars:
            layers.append(layout.put_blob(compress(tar, how), oci.LAYER_GZIP, {}))
            manifest = build_chunk_manifest(tar, "raw", sha256_digest(tar), len(tar))
            name = {oci.ANNOTATION_LAYER: str(sha256_digest(tar))}
            listed = serialize_chunk_manifest(manifest)
            parts.append(layout.put_blob(listed, oci.CHUNK_MANIFEST, name))
            parts.append(layout.put_blob(pack_form(tar, 3), oci.FORM_ZSTD, name))
        config = oci.ImageConfig(AMD64, tuple(map(sha256_digest, tars)), ("/app/hello",))
        config_blob = layout.put_blob(oci.serialize_config(config), oci.CONFIG)
        manifest_raw = oci.serialize_manifest(oci.Manifest(config_blob, tuple(layers)))
        top = layout.put_blob(manifest_raw, oci.MANIFEST)
        empty = layout.put_blob(oci.EMPTY_BLOB, oci.EMPTY)
        kind = oci.CHUNKS_ARTIFACT
        artifact = oci.Manifest(empty, tuple(parts), artifact_type=kind, subject=top)
        referrer = layout.put_blob(
            oci.serialize_manifest(artifact), oci.MANIFEST, artifact_type=kind
        )
        layout.commit(Reference.parse(ref), top, [referrer] if chunks else [])
    return top


def tar_of(name: str, data: bytes) -> bytes:
    return build_tar([Entry(name, data, 0o755)])


# --- one request ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [True, False])
@pytest.mark.parametrize("packs", [True, False])
def test_an_empty_node_gets_all_in_one_request(
    tmp_path: Path, store: Store, chunks: bool, packs: bool
) -> None:
    words = noise(2048)
    binary = b"".join(words[8 * at : 8 * at + 8] for at in noise(150_000, 2))
    top = publish_image(tmp_path / "l", REF, hello_files(binary), chunks=chunks, packs=packs)
    source = LayoutSource(tmp_path / "l")
    result = run(source, store, rootfs=tmp_path / "root")
    assert (result.request_count, result.digest) == (1, top.digest)
    assert result.moved_size < 1.01 * result.whole_size
    assert (tmp_path / "root/app/hello").read_bytes() == binary
    assert run(source, store).moved_size == 0


def test_a_dry_run_of_an_empty_node_says_what_it_moves(layout: Path, store: Store) -> None:
    source = LayoutSource(layout)
    planned = run(source, store, dry_run=True).planned_size
    assert planned == run(source, store).moved_size


def test_an_index_brings_the_image_of_the_platform(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "layout"
    for old in (OLD, NEW):
        images = [
            replace(publish_image(path, f"tmp/{one.architecture}:v1", files), platform=one)
            for one, files in ((AMD64, hello_files(old)), (ARM64, hello_files(old[::-1])))
        ]
        layout = Layout(path)
        with layout.batch():
            entries = tuple(replace(image, annotations={}) for image in images)
            index = oci.serialize_index(oci.Index(entries))
            top = layout.put_blob(index, oci.INDEX)
            layout.commit(Reference.parse(REF), top)
        result = run(LayoutSource(path), store, rootfs=tmp_path / "root")
        assert (result.request_count, result.digest) == (1, top.digest)
        assert (tmp_path / "root/app/hello").read_bytes() == old
    assert result.moved_size < 2048
    with pytest.raises(NotFoundError, match="linux/riscv64"):
        run(LayoutSource(path), store, platform=oci.Platform("linux", "riscv64"))


@pytest.mark.parametrize("chunks", [True, False])
def test_layers_of_any_held_image_are_not_sent(tmp_path: Path, store: Store, chunks: bool) -> None:
    """One layer is in one held image, one in another, one is new."""
    path = tmp_path / "layout"
    one, two, three = (tar_of(f"file{seed}", noise(50_000, seed)) for seed in (1, 2, 3))
    publish_layers(path, "team/a:v1", [one, tar_of("a", noise(90_000, 9))], chunks=chunks)
    publish_layers(path, "team/b:v1", [two], chunks=chunks)
    publish_layers(path, "team/c:v1", [one, two, three], chunks=chunks)
    source = LayoutSource(path)
    for ref in ("team/a:v1", "team/b:v1"):
        run(source, store, ref)
    result = run(source, store, "team/c:v1", rootfs=tmp_path / "root")
    assert result.request_count == 1
    assert 50_000 < result.moved_size < 53_000
    assert (tmp_path / "root/file2").read_bytes() == noise(50_000, 2)


@pytest.mark.parametrize(
    ("count", "requests"), [(128, 1), pytest.param(129, 140, marks=pytest.mark.slow)]
)
def test_as_many_layers_as_an_image_may_have(
    tmp_path: Path, store: Store, count: int, requests: int
) -> None:
    tars = [tar_of(f"file{seed}", noise(300, seed)) for seed in range(count)]
    publish_layers(tmp_path / "many", REF, tars)
    result = run(LayoutSource(tmp_path / "many"), store, rootfs=tmp_path / "root")
    assert result.request_count <= requests
    assert (tmp_path / "root/file77").read_bytes() == noise(300, 77)


def test_an_image_that_was_pulled_without_its_chunks_artifact_is_built_on(
    tmp_path: Path, store: Store
) -> None:
    """Its layers are held under other chunk manifests than the server lists now."""
    publish_image(tmp_path / "plain", REF, hello_files(OLD), chunks=False)
    run(LayoutSource(tmp_path / "plain"), store)
    publish_image(tmp_path / "full", REF, hello_files(OLD))
    publish_image(tmp_path / "full", REF, hello_files(NEW))
    result = run(LayoutSource(tmp_path / "full"), store, rootfs=tmp_path / "root")
    assert (tmp_path / "root/app/hello").read_bytes() == NEW
    assert result.moved_size < 0.1 * result.whole_size


def test_what_does_not_fit_into_an_answer_is_fetched_beside_it(
    layout: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("layerkit.jobs.updating.updates.ANSWER_SIZE", 30_000)
    result = run(LayoutSource(layout), store)
    assert result.request_count == 2
    assert result.moved_size < 1.03 * result.whole_size


# --- cut off -------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone."""


class CutRemote(Remote):
    """Gives the first update up after `size` bytes; with `kill`, all ends there."""

    size, kill = 0, False

    def open_update(self, *args: Any, **options: Any) -> UpdateBody | None:
        body = super().open_update(*args, **options)
        return replace(body, parts=self._cut(body.parts)) if body is not None else None

    def _cut(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        data, size = b"".join(parts), self.size
        if size >= len(data):
            yield data
            return
        for at in range(0, size, 1000):
            yield data[at : min(at + 1000, size)]
        raise Killed if self.kill else RemoteError("the line is cut")


def pull_cut(source: LayoutSource, store: Store, size: int, kill: bool = False) -> PullResult:
    with (
        start_server(make_app(source)) as running,
        CutRemote(running.url, pauses=(0.01, 0.01)) as remote,
    ):
        remote.size, remote.kill = size, kill
        return pull(Reference.parse(REF), remote, store, platform=AMD64, fewest_bytes=True)


PART = 20_000


class ChunkSource(LayoutSource):
    """Sends everything that has chunks in chunks: as a server does that has no delta yet, to a node
    that holds something near."""

    def read_update(self, *asked: Any) -> UpdateAnswer:
        found = super().read_update(*asked)
        if found.raw is None:
            return found
        name, _, _, platform, *_ = asked
        library = self._library(is_aside=False)
        new = library.find_documents(name, found.digest, platform)
        assert new is not None
        parts = []
        for layer in layers_of(new):
            assert layer.pair is not None
            raw, form = library.read_list(layer.pair[0]), library.form_of(*layer.pair)
            parts += updateparts.make_chunk_parts(layer.index, raw, form, {}, set(), not_held)
        return replace(found, raw=serialize_update(new, parts, None, None))


def not_held(digest: Digest) -> Any:
    pytest.fail(f"nobody named {digest}")


@pytest.mark.parametrize("kill", [False, True])
def test_a_cut_costs_one_part_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill: bool
) -> None:
    monkeypatch.setattr(updateparts, "PART_SIZE", PART)
    tars = [tar_of(f"file{seed}", noise(size, seed)) for seed, size in ((1, 5_000), (2, 70_000))]
    published = publish_layers(tmp_path / "layout", REF, tars)
    source = ChunkSource(tmp_path / "layout")
    answer = source.read_update("team/hello", "v1", (), AMD64, ANYONE, 1)
    assert answer.raw is not None
    for at in (900, 30_000, len(answer.raw) - 1):
        with Store(tmp_path / f"store{at}", Disk()) as store:
            if kill:
                with pytest.raises(Killed):
                    pull_cut(source, store, at, kill)
                result = run(source, store)
                moved = result.moved_size
            else:
                result = pull_cut(source, store, at)
                moved = result.moved_size - len(answer.raw)
            assert result.digest == published.digest and store.verify().good
            assert moved <= len(answer.raw) - at + PART + 3_000
            assert run(source, store).request_count == 1  # what was begun is forgotten


@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_what_came_of_a_form_is_not_fetched_again(
    tmp_path: Path, store: Store, share: float
) -> None:
    """One part, all that the image has; the line is cut, the next requests go on from there."""
    publish_layers(tmp_path / "layout", REF, [tar_of("file", noise(400_000))])
    source = LayoutSource(tmp_path / "layout")
    result = pull_cut(source, store, int(share * 400_000))
    assert store.verify().good and store.find_image(REF) == result.digest
    moved = result.moved_size - 400_000  # CutRemote takes all before it cuts
    assert moved < (1 - share) * 400_000 + 60_000  # 15,000 are the chunk manifest


@pytest.mark.parametrize("kill", [False, True])
def test_a_cut_anywhere_in_a_small_update_is_survived(
    layout: Path, tmp_path: Path, kill: bool
) -> None:
    source = LayoutSource(layout)
    old = source.resolve("team/hello", "v1")
    published = publish_image(layout, REF, hello_files(NEW))
    source = LayoutSource(layout)
    size = len(source.read_update("team/hello", "v1", (old,), AMD64, ANYONE, 10).raw or b"")
    assert 300 < size < 2048
    publish_image(tmp_path / "old", REF, hello_files(OLD))
    for at in (0, 44, 200, size - 1):
        with Store(tmp_path / f"store{at}", Disk()) as store:
            run(LayoutSource(tmp_path / "old"), store)
            if kill:
                with pytest.raises(Killed):
                    pull_cut(source, store, at, kill)
                assert run(source, store).request_count == 1
            else:
                assert pull_cut(source, store, at).moved_size < 8_000
            assert store.find_image(REF) == published.digest


# --- lies ----------------------------------------------------------------------------------------


class LyingSource(LayoutSource):
    """Changes updates by `lie`: documents and parts in, documents and parts out."""

    def __init__(
        self, layout: Path, lie: Callable[[Documents, list[Part]], tuple[Documents, list[Part]]]
    ) -> None:
        super().__init__(layout)
        self._lie = lie

    def read_update(self, *asked: Any) -> UpdateAnswer:
        found = super().read_update(*asked)
        if found.raw is None:
            return found
        reader = UpdateReader([found.raw])
        old = None
        if reader.old is not None:
            old = self._library(is_aside=False).find_documents("team/hello", reader.old, AMD64)
        new = reader.read_documents(old)
        parts = [Part(entry.layer, entry.kind, data) for entry, data in reader.read_parts()]
        return replace(found, raw=serialize_update(*self._lie(new, parts), reader.old, old))


def swap_layers(new: Documents, parts: list[Part]) -> tuple[Documents, list[Part]]:
    first, second = parts
    return new, [replace(first, data=second.data), replace(second, data=first.data)]


def no_such_layer(new: Documents, parts: list[Part]) -> tuple[Documents, list[Part]]:
    return new, [*parts, Part(100, FORM, b"")]


def drop_parts(new: Documents, parts: list[Part]) -> tuple[Documents, list[Part]]:
    return new, []


def other_config(new: Documents, parts: list[Part]) -> tuple[Documents, list[Part]]:
    return replace(new, config=new.config.replace(b"hello", b"other")), parts


def other_artifact(new: Documents, parts: list[Part]) -> tuple[Documents, list[Part]]:
    subject = oci.parse_manifest(new.artifact).subject
    assert subject is not None
    name, other = subject.digest.hex.encode(), sha256_digest(b"other").hex.encode()
    return replace(new, artifact=new.artifact.replace(name, other)), parts


def no_artifact(new: Documents, parts: list[Part]) -> tuple[Documents, list[Part]]:
    return replace(new, artifact=b""), parts


def no_documents(new: Documents, parts: list[Part]) -> tuple[Documents, list[Part]]:
    return Documents(b"", b"", b"", b""), parts


def list_of_another(new: Documents, parts: list[Part]) -> tuple[Documents, list[Part]]:
    return new, [Part(0, LIST, parts[0].data), Part(0, CHUNKS, b""), parts[1]]


LIES = [
    swap_layers,
    no_such_layer,
    drop_parts,
    other_config,
    other_artifact,
    no_artifact,
    no_documents,
    list_of_another,
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
@pytest.mark.parametrize("pinned", [False, True])
def test_a_lie_costs_the_way_and_nothing_else(
    layout: Path, store: Store, tmp_path: Path, lie: Any, pinned: bool
) -> None:
    source = LyingSource(layout, lie)
    digest = source.resolve("team/hello", "v1")
    ref = f"team/hello@{digest}" if pinned else REF
    result = run(source, store, ref, rootfs=tmp_path / "root")
    assert result.digest == digest
    assert (tmp_path / "root/app/hello").read_bytes() == OLD
    assert result.request_count > 1 or lie is no_such_layer


def test_a_pinned_image_is_not_exchanged_for_another(layout: Path, store: Store) -> None:
    """Neither by an update to another image nor by the word that nothing changed."""
    other = publish_image(layout, "team/hello:v2", hello_files(NEW))

    class Source(LayoutSource):
        answers: Digest | None = None

        def read_update(self, name: str, ref: str, *asked: Any) -> UpdateAnswer:
            if self.answers is not None:
                return UpdateAnswer(self.answers, None, (), True)
            return super().read_update(name, "v1", *asked)

    source = Source(layout)
    wanted = f"team/hello@{other.digest}"
    assert run(source, store, wanted).digest == other.digest
    assert store.remove_image(wanted) and store.gc().chunk_count > 0
    held = run(source, store).digest
    source.answers = held  # 304: what the node named first
    assert run(source, store, wanted).digest == other.digest


# --- versions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["type", "major"])
def test_a_server_of_another_version_is_pulled_from_plainly(
    layout: Path, store: Store, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    class Source(LayoutSource):
        def read_update(self, *asked: Any) -> UpdateAnswer:
            found = super().read_update(*asked)
            assert found.raw is not None
            return replace(found, raw=found.raw[:4] + b"\0" + found.raw[5:])

    source = Source(layout) if what == "major" else LayoutSource(layout)
    if what == "type":
        other = UPDATE_TYPE.replace("v1", "v0")
        monkeypatch.setattr("layerkit.edges.remote.UPDATE_TYPE", other)
    result = run(source, store)
    assert result.request_count > 2 and store.find_image(REF) == result.digest


def test_an_update_makes_room_before_it_comes(layout: Path, tmp_path: Path) -> None:
    """What was not used for long goes for it, and never what it is made from."""
    path = tmp_path / "small"
    publish_image(layout, "team/other:v1", hello_files(noise(150_000, 5)))
    source = LayoutSource(layout)
    with Store(path, Disk()) as store:
        run(source, store, "team/other:v1")
        run(source, store)
        used = store.usage()
    publish_image(layout, REF, hello_files(noise(120_000, 6)))
    with Store(path, Disk(), quota=used + 50_000) as store:
        result = run(source, store)
        assert [image.ref for image in store.list_images()] == [REF]
        assert result.request_count == 1 and store.find_image(REF) == result.digest


def test_an_update_that_cannot_fit_evicts_nothing(layout: Path, tmp_path: Path) -> None:
    path = tmp_path / "small"
    publish_image(layout, "team/other:v1", hello_files(noise(150_000, 5)))
    source = LayoutSource(layout)
    with Store(path, Disk()) as store:
        run(source, store, "team/other:v1")
        run(source, store)
        used = store.usage()
    publish_image(layout, REF, hello_files(noise(400_000, 6)))
    with Store(path, Disk(), quota=used + 50_000) as store:
        held = {image.ref: image.digest for image in store.list_images()}
        with pytest.raises(StoreFullError, match="have to stay"):
            run(source, store)
        assert {image.ref: image.digest for image in store.list_images()} == held
        assert store.verify().good
