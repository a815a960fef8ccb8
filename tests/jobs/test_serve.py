"""jobs/serve over a storage: who may have what, roles, damage, an index that changes, several
servers at once, the page's facts."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from builders import AMD64, LayoutSource, hello_files, noise, publish_image

from layerkit.digest import Digest, sha256_digest
from layerkit.edges.http import UpdateAnswer
from layerkit.edges.layout import Layout
from layerkit.edges.storage import FolderShelf
from layerkit.errors import FormatError, LayerkitError, NotFoundError, StoreError
from layerkit.formats import oci
from layerkit.formats.chunkmanifest import (
    build_chunk_manifest,
    parse_chunk_manifest,
    serialize_chunk_manifest,
)
from layerkit.formats.chunksync import Have, change_olds, chunk_places
from layerkit.formats.protocol import pack_form, parse_chunk_batch
from layerkit.formats.reference import Reference
from layerkit.formats.tokens import ANYONE, Caller
from layerkit.jobs.serve import SourceOptions
from layerkit.jobs.updating import forms as forms_module

OLD = noise(120_000, 1)
NEW = OLD[:60_000] + b"one edited string" + OLD[60_000:]
ONLY_A = Caller("a", ("team/a",), ())
ONLY_B = Caller("b", ("team/b",), ())


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """Repository a holds the old image, b the new one."""
    publish_image(tmp_path / "layout", "team/a:v1", hello_files(OLD))
    publish_image(tmp_path / "layout", "team/b:v1", hello_files(NEW))
    return tmp_path / "layout"


@pytest.fixture
def source(layout: Path) -> LayoutSource:
    return LayoutSource(layout)


def code_list(source: LayoutSource, name: str, at: int = 0) -> Digest:
    """The chunk manifest of the code layer of an image of repository `name`."""
    lists = source.catalogue.get(name).chunk_lists
    found = [digest for digest in lists if source.role_of_chunks(name, digest) == "code"]
    return found[at]


def ask(
    source: LayoutSource, name: str, have: Sequence[Digest], caller: Caller = ANYONE
) -> UpdateAnswer:
    return source.read_update(name, "v1", have, AMD64, caller, 60)


# --- who may have what -----------------------------------------------------------------------


def test_an_update_builds_on_no_image_that_the_caller_may_not_pull(source: LayoutSource) -> None:
    old = source.resolve("team/a", "v1")
    assert old is not None
    both = ask(source, "team/b", [old], Caller("x", ("team/*",), ()))
    own = ask(source, "team/b", [old], ONLY_B)
    nothing = ask(source, "team/b", [sha256_digest(b"unknown")], ONLY_B)
    assert both.raw is not None and own.raw == nothing.raw != both.raw


def test_a_change_is_of_no_chunk_manifest_that_the_caller_may_not_pull(
    source: LayoutSource,
) -> None:
    have = Have((code_list(source, "team/a"),))
    wanted = code_list(source, "team/b")
    assert change_olds(source.read_change("team/b", wanted, have, ANYONE)) == [*have.manifests]
    assert change_olds(source.read_change("team/b", wanted, have, ONLY_B)) is None


def test_chunks_are_not_made_near_a_form_that_the_caller_may_not_pull(
    source: LayoutSource,
) -> None:
    near, wanted = code_list(source, "team/a"), code_list(source, "team/b")
    places = chunk_places([0])
    assert b"".join(source.read_listed("team/b", wanted, places, near, ANYONE))
    with pytest.raises(NotFoundError) as hidden:
        source.read_listed("team/b", wanted, places, near, ONLY_B)
    absent = Digest("sha256", bytes(32))
    with pytest.raises(NotFoundError) as unknown:
        source.read_listed("team/b", wanted, places, absent, ONLY_B)
    assert hidden.value.message.replace(near.short, absent.short) == unknown.value.message


def test_nothing_is_read_through_a_repository_that_does_not_hold_it(source: LayoutSource) -> None:
    listed = code_list(source, "team/a")
    form = source.catalogue.get("team/a").chunk_lists[listed].digest
    old_ids, new_ids = (
        set(parse_chunk_manifest(source.path_of(name, code_list(source, name)).read_bytes()).ids())
        for name in ("team/a", "team/b")
    )
    gone = min(old_ids - new_ids)
    assert source.read_chunk("team/a", gone) is not None
    assert source.read_chunk("team/b", gone) is None
    for read in (
        lambda: source.open_blob("team/b", listed),
        lambda: source.open_blob("team/b", form),
        lambda: source.read_manifest("team/b", str(source.resolve("team/a", "v1"))),
        lambda: source.read_change("team/b", listed, Have(()), ANYONE),
        lambda: source.read_listed("team/b", listed, chunk_places([0]), None, ANYONE),
        lambda: source.read_packed("team/b", form),
    ):
        with pytest.raises(NotFoundError):
            read()


def test_the_page_shows_what_the_caller_may_pull(source: LayoutSource) -> None:
    assert [one.name for one in source.describe(ANYONE)] == ["team/a", "team/b"]
    assert [one.name for one in source.describe(ONLY_A)] == ["team/a"]


# --- roles and facts -------------------------------------------------------------------------


def test_blobs_forms_and_chunk_manifests_have_the_role_of_their_layer(
    source: LayoutSource,
) -> None:
    repository = source.catalogue.get("team/a")
    roles = {}
    _, raw = source.read_manifest("team/a", "v1")
    for layer in oci.parse_manifest(raw).layers:
        roles[layer.digest] = layer.annotations[oci.ANNOTATION_ROLE]
    for listed, form in repository.chunk_lists.items():
        data = source.path_of("team/a", listed).read_bytes()
        role = ["", "base", "deps", "code"][parse_chunk_manifest(data).role]
        roles |= {listed: role, form.digest: role}
    found = {digest: source.open_blob("team/a", digest).role for digest in repository.blobs}
    assert found == dict.fromkeys(repository.blobs, "") | roles
    assert sorted(set(roles.values())) == ["base", "code"]


def test_a_version_has_the_sizes_of_its_layers(source: LayoutSource) -> None:
    (facts,) = source.describe(ONLY_A)
    (version,) = facts.versions
    sizes = dict(version.sizes)
    assert (version.tag, version.digest) == ("v1", source.resolve("team/a", "v1"))
    assert sorted(sizes) == ["base", "code"] and sizes["code"] > 100_000


def test_the_newest_version_comes_first(layout: Path) -> None:
    publish_image(layout, "team/a:v2", hello_files(NEW))
    publish_image(layout, "team/a:v0", hello_files(OLD + b"."))
    (facts,) = LayoutSource(layout).describe(ONLY_A)
    assert [version.tag for version in facts.versions] == ["v0", "v2", "v1"]


# --- an index that changes -------------------------------------------------------------------


def test_what_is_published_is_served_at_once(layout: Path, source: LayoutSource) -> None:
    before = source.version()
    top = publish_image(layout, "team/a:v2", hello_files(NEW))
    assert source.version() != before and source.resolve("team/a", "v2") == top.digest


def test_known_documents_are_not_read_again(
    layout: Path, source: LayoutSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, asked = source.catalogue.read_document, list[Digest]()

    def note(name: str, digest: Digest) -> bytes:
        asked.append(digest)
        return read(name, digest)

    monkeypatch.setattr(source.catalogue, "read_document", note)
    publish_image(layout, "team/a:v2", hello_files(OLD + b"v2"))
    assert source.resolve("team/a", "v2") is not None
    assert len(asked) == 2  # the new manifest, and its chunks artifact


def test_a_damaged_index_leaves_the_last_good_one(layout: Path, source: LayoutSource) -> None:
    path = layout / "index.json"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    assert source.resolve("team/a", "v1") is not None
    with pytest.raises(StoreError, match="index of the storage is damaged"):
        source.check_ready()
    with pytest.raises(StoreError):
        LayoutSource(layout)
    path.write_bytes(good)
    source.check_ready()


def test_a_folder_that_goes_away_is_the_servers_fault(layout: Path, source: LayoutSource) -> None:
    (layout / "index.json").unlink()
    with pytest.raises(StoreError):
        source.list_tags("team/a")
    with pytest.raises(StoreError):
        source.check_ready()


def test_bare_tags_belong_to_the_folders_repository_and_bad_names_to_none(tmp_path: Path) -> None:
    layout = tmp_path / "Hello"
    publish_image(layout, "team/a:v1", hello_files(OLD))
    index = oci.parse_index((layout / "index.json").read_bytes())
    names = itertools.cycle(["v7", "NOT A NAME"])
    image = next(one for one in index.manifests if one.annotations)
    entries = [replace(image, annotations={oci.ANNOTATION_REF_NAME: next(names)}) for _ in range(2)]
    (layout / "index.json").write_bytes(
        oci.serialize_index(replace(index, manifests=(*index.manifests, *entries)))
    )
    source = LayoutSource(layout, options=SourceOptions(bare_name="hello"))
    assert source.list_tags("hello") == ["v7"] and source.list_tags("team/a") == ["v1"]


def test_requests_are_answered_while_the_index_is_replaced(
    layout: Path, source: LayoutSource
) -> None:
    stop, failures = threading.Event(), list[LayerkitError]()

    def keep_asking() -> None:
        while not stop.is_set():
            try:
                source.read_manifest("team/a", "v1")
                source.read_change("team/b", code_list(source, "team/b"), Have(()), ANYONE)
                source.list_referrers("team/a", source.catalogue.get("team/a").tags["v1"])
            except LayerkitError as exc:
                failures.append(exc)

    threads = [threading.Thread(target=keep_asking) for _ in range(4)]
    for thread in threads:
        thread.start()
    for index in range(8):
        publish_image(layout, f"team/c:v{index}", {"code": {"f": noise(3000, index)}})
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == [] and len(source.list_tags("team/c")) == 8


# --- damage ----------------------------------------------------------------------------------


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0x5A
    path.write_bytes(raw)


@pytest.mark.parametrize("what", ["damaged", "gone"])
def test_a_manifest_that_cannot_be_read_takes_nothing_else_with_it(layout: Path, what: str) -> None:
    top = Layout(layout).resolve(Reference.parse("team/a:v1")).digest
    path = Layout(layout).blob_path(top)
    damage(path) if what == "damaged" else path.unlink()
    source = LayoutSource(layout)
    with pytest.raises(StoreError, match="team/a"):
        source.read_manifest("team/a", "v1")
    assert source.read_manifest("team/b", "v1")
    assert [one.name for one in source.describe(ANYONE)] == ["team/a", "team/b"]


@pytest.mark.parametrize("what", ["chunk manifest", "form"])
def test_a_damaged_blob_is_an_error_of_the_server_and_others_go_on(
    source: LayoutSource, what: str
) -> None:
    listed = code_list(source, "team/a")
    form = source.catalogue.get("team/a").chunk_lists[listed].digest
    fresh = LayoutSource(source._storage.path)
    damage(source.path_of("team/a", listed if what == "chunk manifest" else form))
    with pytest.raises(StoreError, match=rf"{what} .* damaged"):
        fresh.read_listed("team/a", listed, chunk_places([0]), None, ANYONE)
    wanted = code_list(fresh, "team/b")
    assert b"".join(fresh.read_listed("team/b", wanted, chunk_places([0]), None, ANYONE))


def test_a_blob_that_is_listed_and_gone_is_an_error_of_the_server(source: LayoutSource) -> None:
    listed = code_list(source, "team/a")
    source.path_of("team/a", listed).unlink()
    with pytest.raises(StoreError, match="lacks blob"):
        source.open_blob("team/a", listed)


def publish_lying(path: Path, form: bytes, listed: bytes) -> None:
    """An image of team/liar with form blob `form`, and the chunk manifest of another one."""
    top = publish_image(path, "team/liar:v1", {"code": {"app/hello": OLD}}, chunks=False)
    layout = Layout(path)
    manifest = oci.parse_manifest(layout.read_blob(top))
    diff_id = oci.parse_config(layout.read_blob(manifest.config)).diff_ids[0]
    of_layer = {oci.ANNOTATION_LAYER: str(diff_id)}
    lie = build_chunk_manifest(listed, "raw", sha256_digest(listed), len(listed), 3)
    with layout.batch():
        parts = (
            layout.put_blob(serialize_chunk_manifest(lie), oci.CHUNK_MANIFEST, of_layer),
            layout.put_blob(pack_form(form, 3), oci.FORM_ZSTD, of_layer),
        )
        artifact = oci.Manifest(
            layout.put_blob(oci.EMPTY_BLOB, oci.EMPTY),
            parts,
            artifact_type=oci.CHUNKS_ARTIFACT,
            subject=top,
        )
        referrer = layout.put_blob(
            oci.serialize_manifest(artifact), oci.MANIFEST, artifact_type=oci.CHUNKS_ARTIFACT
        )
        layout.commit(Reference.parse("team/liar:v1"), top, [referrer])


@pytest.mark.parametrize(
    "listed",
    [noise(50_000, 8), noise(50_001, 9), b"", noise(49_999, 9)],
    ids=["other", "larger", "empty", "smaller"],
)
def test_a_chunk_manifest_that_lies_is_an_error_of_the_server(layout: Path, listed: bytes) -> None:
    publish_lying(layout, noise(50_000, 9), listed)
    source = LayoutSource(layout)
    (lie,) = source.catalogue.get("team/liar").chunk_lists
    if listed:
        with pytest.raises(StoreError, match="form"):
            source.read_listed("team/liar", lie, chunk_places([0]), None, ANYONE)
    old = source.resolve("team/a", "v1")
    assert old is not None
    for name in ("team/a", "team/b"):
        assert source.read_chunk(name, Digest("b3", bytes(32))) is None
    with_lie = source.read_update("team/liar", "v1", [old], AMD64, ANYONE, 60)
    assert with_lie.digest == source.resolve("team/liar", "v1")


def test_a_form_beyond_the_limit_is_not_decompressed(
    layout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms_module, "MAX_FORM_SIZE", 200_000)
    publish_lying(layout, bytes(300_000), bytes(300_000))
    source = LayoutSource(layout)
    (listed,) = source.catalogue.get("team/liar").chunk_lists
    with pytest.raises(StoreError, match="over 200000 bytes"):
        source.read_listed("team/liar", listed, chunk_places([0]), None, ANYONE)


def test_decompressed_forms_are_bounded(layout: Path) -> None:
    source = LayoutSource(layout, options=SourceOptions(memory_size=280_000))
    for name in ("team/a", "team/b", "team/a"):
        wanted = code_list(source, name)
        b"".join(source.read_listed(name, wanted, chunk_places([0]), None, ANYONE))
    assert len(source._forms._forms._made) == 1


# --- chunks ----------------------------------------------------------------------------------


def test_chunks_by_place_are_the_forms_own(source: LayoutSource) -> None:
    listed = code_list(source, "team/b")
    manifest = parse_chunk_manifest(source.path_of("team/b", listed).read_bytes())
    indexes = [0, 3, 4]
    parts = source.read_listed("team/b", listed, chunk_places(indexes), None, ANYONE)
    found = list(parse_chunk_batch(parts, [manifest.sizes[index] for index in indexes]))
    ids = manifest.list_raw_ids()
    assert found == [source.read_chunk("team/b", Digest("b3", ids[index])) for index in indexes]


def test_places_that_are_none_are_refused(source: LayoutSource) -> None:
    with pytest.raises(FormatError):
        source.read_listed(
            "team/b", code_list(source, "team/b"), chunk_places([10_000]), None, ANYONE
        )


# --- several servers over one folder -----------------------------------------------------------


@pytest.fixture
def servers(layout: Path, tmp_path: Path) -> Iterator[list[LayoutSource]]:
    yield [LayoutSource(layout, FolderShelf(tmp_path / "made")) for _ in range(3)]


def test_servers_over_one_folder_answer_the_same(servers: list[LayoutSource]) -> None:
    old = servers[0].resolve("team/a", "v1")
    assert old is not None
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(ask, server, "team/b", [old]) for server in servers * 2]
        assert len({answer.result().raw for answer in answers}) == 1


def test_a_server_finds_what_another_one_made(
    servers: list[LayoutSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = servers[0].resolve("team/a", "v1")
    assert old is not None
    first = ask(servers[0], "team/b", [old])

    def refuse(*_: object) -> None:
        pytest.fail("it is made a second time")

    monkeypatch.setattr("layerkit.formats.delta.diff", refuse)
    assert ask(servers[1], "team/b", [old]).raw == first.raw is not None
