"""jobs/pull against a real server: what moves, what is refused, what is left."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import AMD64, LayoutSource, hello_files, noise, publish_image

from layerkit.digest import Digest, sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.http import Blob, RunningServer, UpdateAnswer, make_app, start_server
from layerkit.edges.layout import Layout
from layerkit.edges.remote import Remote
from layerkit.edges.store import Store
from layerkit.errors import ChunkDigestError, IntegrityError, NotFoundError
from layerkit.formats import oci
from layerkit.formats.chunkmanifest import build_chunk_manifest, parse_chunk_manifest
from layerkit.formats.chunksync import Have, parse_places
from layerkit.formats.formpack import ANNOTATION_PACKED
from layerkit.formats.protocol import serialize_chunk_batch
from layerkit.formats.reference import Reference
from layerkit.formats.tokens import Caller
from layerkit.jobs.pull import PullResult, pull
from layerkit.jobs.serve import start
from layerkit.jobs.verify import verify_layout, verify_store

OLD = noise(200_000)
NEW = OLD[:90_000] + b"one edited string" + OLD[90_000:]
REF = "team/hello:v1"


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    publish_image(tmp_path / "layout", REF, hello_files(OLD))
    return tmp_path / "layout"


def run(server: RunningServer, store: Store, ref: str = REF, **options: object) -> PullResult:
    with Remote(server.url, pauses=(0.01, 0.01)) as remote:
        options.setdefault("platform", AMD64)
        return pull(Reference.parse(ref), remote, store, **options)  # type: ignore[arg-type]


def run_slowly(server: RunningServer, store: Store, ref: str = REF) -> PullResult:
    """Over a line that is known to be slow: packed forms are worth their time."""
    store.put_fact(f"line/{server.url.removeprefix('http://')}/bandwidth", "1e4")
    return run(server, store, ref)


def test_a_pull_commits_the_image(server: RunningServer, store: Store) -> None:
    result = run(server, store)
    assert store.find_image(REF) == result.digest and store.verify().good


def test_a_second_pull_is_one_request_that_moves_nothing(
    server: RunningServer, store: Store
) -> None:
    run(server, store)
    again = run(server, store)
    assert (again.up_to_date, again.request_count, again.moved_size) == (True, 1, 0)


def test_a_pull_by_a_held_digest_asks_nobody(server: RunningServer, store: Store) -> None:
    digest = run(server, store).digest
    assert run(server, store, f"team/hello@{digest}").request_count == 0


def test_an_edit_moves_few_chunks(server: RunningServer, store: Store, layout: Path) -> None:
    run(server, store)
    publish_image(layout, REF, hello_files(NEW))
    result = run(server, store)
    assert 0 < result.fetched_count < 8
    assert result.moved_size < 0.12 * result.whole_size


def test_a_dry_run_leaves_the_store_as_it_was(
    server: RunningServer, store: Store, layout: Path
) -> None:
    run(server, store)
    before = store.gc(dry_run=True)
    publish_image(layout, REF, hello_files(NEW))
    planned = run(server, store, dry_run=True)
    assert store.gc(dry_run=True) == before
    moved = run(server, store).moved_size
    assert 0.8 * moved < planned.planned_size < 1.3 * moved


def test_an_absent_image_is_not_found(server: RunningServer, store: Store) -> None:
    with pytest.raises(NotFoundError):
        run(server, store, "team/hello:v9")


@pytest.mark.parametrize("compression", ["gzip", "zstd", "tar"])
def test_output_has_the_published_digests(
    layout: Path, server: RunningServer, store: Store, tmp_path: Path, compression: str
) -> None:
    top = publish_image(layout, REF, hello_files(NEW), compression=compression)
    result = run(server, store, output=tmp_path / "out")
    out = Layout(tmp_path / "out")
    assert out.resolve(Reference.parse(REF)).digest == result.digest == top.digest
    assert verify_layout(tmp_path / "out").good
    whole = sum(blob.size for blob in out.read_manifest(top.digest).layers)
    assert result.moved_size < 1.2 * whole  # no layer was fetched twice


def test_output_of_a_layer_without_recipe_is_fetched(
    layout: Path, server: RunningServer, store: Store, tmp_path: Path
) -> None:
    publish_image(layout, REF, hello_files(NEW), recipe=False)
    run(server, store, output=tmp_path / "out")
    assert verify_layout(tmp_path / "out").good


def test_rootfs_holds_the_binary_bit_for_bit_also_from_the_store_alone(
    server: RunningServer, store: Store, tmp_path: Path
) -> None:
    for _ in range(2):
        run(server, store, rootfs=tmp_path / "root")
        assert (tmp_path / "root/app/hello").read_bytes() == OLD


def test_an_image_without_chunks_is_pulled_plainly_and_chunked_here(
    tmp_path: Path, store: Store
) -> None:
    publish_image(tmp_path / "plain", REF, hello_files(OLD), chunks=False)
    with start(tmp_path / "plain") as running:
        run(running, store, rootfs=tmp_path / "root")
    assert (tmp_path / "root/app/hello").read_bytes() == OLD
    assert store.gc().chunk_count == 0  # what was cut here is held by the image


def test_an_index_gives_the_image_of_the_platform(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "layout"
    image = publish_image(path, "tmp:v1", hello_files(OLD))
    layout = Layout(path)
    entry = oci.Descriptor(image.media_type, image.digest, image.size, {}, AMD64)
    with layout.batch():
        top = layout.put_blob(oci.serialize_index(oci.Index((entry,))), oci.INDEX)
        layout.commit(Reference.parse(REF), top)
    with start(path) as running:
        assert run(running, store, rootfs=tmp_path / "root").digest == top.digest
        assert run(running, store).request_count == 1
        with pytest.raises(NotFoundError, match="linux/arm64"):
            run(running, store, platform=oci.Platform("linux", "arm64"))


# --- chunk by chunk --------------------------------------------------------------------------


def no_update(source: LayoutSource, name: str, ref: str) -> UpdateAnswer:
    top = source.resolve(name, ref)
    assert top is not None
    return UpdateAnswer(top, None, (), False)


class PlainSource(LayoutSource):
    """Knows no updates: nodes ask for changes of chunk manifests and for chunks by place. Notes
    what they ask."""

    def __init__(self, layout: Path) -> None:
        super().__init__(layout)
        self.asked: list[str] = []

    def read_update(self, name: str, ref: str, *_: object) -> UpdateAnswer:
        return no_update(self, name, ref)

    def open_blob(self, name: str, digest: Digest) -> Blob:
        lists = self.catalogue.get(name).chunk_lists
        self.asked.append("chunk manifest" if digest in lists else "blob")
        return super().open_blob(name, digest)

    def read_change(self, name: str, digest: Digest, have: Have, caller: Caller) -> bytes:
        self.asked.append("runs" if have.runs else "change")
        return super().read_change(name, digest, have, caller)

    def read_listed(
        self, name: str, digest: Digest, raw_places: bytes, near: Digest | None, caller: Caller
    ) -> Iterator[bytes]:
        self.asked.append("places" if near is None else "places, near")
        return super().read_listed(name, digest, raw_places, near, caller)

    def read_chunk(self, name: str, chunk: Digest) -> bytes | memoryview | None:
        self.asked.append("chunk")
        return super().read_chunk(name, chunk)


class OldSource(PlainSource):
    """A server from before there were changes and places."""

    def read_change(self, *_: object) -> bytes:
        raise NotFoundError("no such path")

    def read_listed(self, *_: object) -> Iterator[bytes]:
        raise NotFoundError("no such path")


def pull_from(source: PlainSource, store: Store) -> tuple[PullResult, list[str]]:
    with start_server(make_app(source)) as running:
        result = run(running, store)
    assert store.verify().good
    return result, [what for what in source.asked if what not in ("chunk", "blob")]


def test_a_whole_pull_carries_no_ids(layout: Path, store: Store) -> None:
    result, asked = pull_from(PlainSource(layout), store)
    assert asked == [] and result.fetched_count > 150
    assert result.moved_size < 1.03 * result.whole_size  # noise: what travels is the forms


def test_an_edit_moves_the_change_of_the_chunk_manifest_and_what_changed_in_chunks(
    layout: Path, store: Store
) -> None:
    pull_from(PlainSource(layout), store)
    publish_image(layout, REF, hello_files(NEW))
    result, asked = pull_from(PlainSource(layout), store)
    assert asked == ["change", "places, near"]
    assert result.moved_size < 5000 and 0 < result.fetched_count < 8


def repetitive() -> bytes:
    """Words in random order: LZMA makes less of them than a quick zstd."""
    words = noise(2048)
    return b"".join(words[8 * at : 8 * at + 8] for at in noise(200_000, 2))


class PackedSource(LayoutSource):
    """Has packed its forms; damages them at one byte if asked to."""

    def __init__(self, layout: Path, damaged: bool, updates: bool = False) -> None:
        super().__init__(layout)
        self._damaged, self._gives_updates, self.sizes = damaged, updates, list[int]()
        self.prepare_all()
        if updates:
            find = self._packing.find
            self._packing.find = (  # type: ignore[method-assign]
                lambda form: self._damage(raw) if (raw := find(form)) else None
            )

    def read_packed(self, name: str, digest: Digest) -> bytes:
        return self._damage(super().read_packed(name, digest))

    def _damage(self, data: bytes) -> bytes:
        raw = bytearray(data)
        raw[len(raw) // 2] ^= self._damaged
        self.sizes.append(len(raw))
        return bytes(raw)

    def read_update(self, *asked: Any) -> UpdateAnswer:
        found = super().read_update(*asked)
        return found if self._gives_updates else replace(found, raw=None)


def repetitive_layout(path: Path) -> Path:
    publish_image(path, REF, hello_files(repetitive()))
    return path


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("updates", [False, True])
def test_a_packed_form_is_taken_where_there_is_one(
    tmp_path: Path, store: Store, damaged: bool, updates: bool
) -> None:
    source = PackedSource(repetitive_layout(tmp_path / "packed"), damaged, updates)
    with start_server(make_app(source)) as running:
        result = run_slowly(running, store)
    assert store.verify().good and source.sizes
    assert (result.moved_size < source.sizes[0] + 40_000) is not damaged


def test_a_first_pull_takes_few_bytes_unless_the_line_was_seen_to_be_fast(tmp_path: Path) -> None:
    source = PackedSource(repetitive_layout(tmp_path / "packed"), damaged=False, updates=True)
    sizes = {}
    with start_server(make_app(source)) as running:
        for bandwidth in ("", "1e4", "1e9"):
            with Store(tmp_path / f"store{bandwidth}", Disk()) as store:
                if bandwidth:
                    name = f"line/{running.url.removeprefix('http://')}/bandwidth"
                    store.put_fact(name, bandwidth)
                sizes[bandwidth] = run(running, store).moved_size
                assert store.verify().good
    assert sizes[""] == sizes["1e4"] < source.sizes[0] + 40_000 < sizes["1e9"]


def test_a_server_that_has_packed_nothing_is_not_asked_for_it(tmp_path: Path, store: Store) -> None:
    asked = []

    class Source(LayoutSource):
        def read_packed(self, name: str, digest: Digest) -> bytes:
            asked.append(digest)
            return super().read_packed(name, digest)

    with start_server(make_app(Source(repetitive_layout(tmp_path / "packed")))) as running:
        run(running, store)
    assert asked == []


@pytest.mark.slow
def test_a_server_packs_what_gets_a_tag_while_it_runs(layout: Path, store: Store) -> None:
    source, stop = LayoutSource(layout), threading.Event()
    packing = threading.Thread(target=source.make_preparing().run, args=(stop,))
    packing.start()
    try:
        publish_image(layout, "team/new:v1", hello_files(repetitive()))
        digest = next(iter(source.catalogue.get("team/new").referrers))
        end = time.monotonic() + 30
        while time.monotonic() < end:
            entries = source.list_referrers("team/new", digest)
            if any(ANNOTATION_PACKED in entry.annotations for entry in entries):
                break
            time.sleep(0.05)
        else:
            pytest.fail("not packed within 30 seconds")
        with start_server(make_app(source)) as running:
            moved = run_slowly(running, store, "team/new:v1").moved_size
    finally:
        stop.set()
        packing.join()
    with start(layout) as running, Store(store.path.parent / "other", Disk()) as other:
        assert moved < run_slowly(running, other, "team/new:v1").moved_size


def test_a_form_packed_by_the_build_comes_as_a_blob(tmp_path: Path, store: Store) -> None:
    publish_image(tmp_path / "packed", REF, hello_files(repetitive()), packs=True)
    publish_image(tmp_path / "other", REF, hello_files(repetitive()))
    source = LayoutSource(tmp_path / "packed")
    assert source.prepare_all() == 0  # it is there already
    with start_server(make_app(source)) as running:
        moved = run_slowly(running, store).moved_size
    with start(tmp_path / "other") as running, Store(tmp_path / "own", Disk()) as own:
        assert moved < run_slowly(running, own).moved_size


def test_a_server_that_forgot_the_old_image_gets_the_names_of_runs(
    layout: Path, store: Store, tmp_path: Path
) -> None:
    pull_from(PlainSource(layout), store)
    publish_image(tmp_path / "other", REF, hello_files(NEW))
    result, asked = pull_from(PlainSource(tmp_path / "other"), store)
    assert asked == ["change", "runs", "places, near", "places"]
    assert result.moved_size < 12_000 and 0 < result.fetched_count < 8


def test_an_old_server_is_asked_for_the_chunk_manifest_and_by_ids(
    layout: Path, store: Store
) -> None:
    pull_from(OldSource(layout), store)
    publish_image(layout, REF, hello_files(NEW))
    result, asked = pull_from(OldSource(layout), store)
    assert asked == ["chunk manifest"] and 0 < result.fetched_count < 8


def test_a_server_with_another_dictionary_is_asked_again_without(
    layout: Path, store: Store
) -> None:
    class Source(PlainSource):
        def read_listed(
            self, name: str, digest: Digest, raw_places: bytes, near: Digest | None, caller: Caller
        ) -> Iterator[bytes]:
            other = other_lists[0] if near is not None else None
            return super().read_listed(name, digest, raw_places, other, caller)

    pull_from(PlainSource(layout), store)
    near = OLD[:90_300] + noise(300, 3) + OLD[90_300:]  # has what is missing, at other offsets
    publish_image(layout, "team/other:v1", {"code": {"app/hello": near}})
    other_lists = list(LayoutSource(layout).catalogue.get("team/other").chunk_lists)
    publish_image(layout, REF, hello_files(OLD[:90_000] + OLD[90_500:91_000] + OLD[90_000:]))
    source = Source(layout)
    pull_from(source, store)
    assert source.asked[-1] in ("places", "chunk")  # by ids where the frame itself was whole


@pytest.mark.parametrize("at", [4, 12, 20, 60, -1])
def test_a_damaged_change_means_the_chunk_manifest_itself(
    layout: Path, store: Store, at: int
) -> None:
    class Source(PlainSource):
        def read_change(self, name: str, digest: Digest, have: Have, caller: Caller) -> bytes:
            raw = bytearray(super().read_change(name, digest, have, caller))
            raw[at] ^= 0x5A
            return bytes(raw)

    pull_from(PlainSource(layout), store)
    publish_image(layout, REF, hello_files(NEW))
    _, asked = pull_from(Source(layout), store)
    assert asked[:2] == ["change", "chunk manifest"]


# --- damage and lies -------------------------------------------------------------------------


class ChunkwiseSource(LayoutSource):
    """Answers a request for chunks by place through `read_chunk`."""

    def read_listed(
        self, name: str, digest: Digest, raw_places: bytes, near: Digest | None, caller: Caller
    ) -> Iterator[bytes]:
        ids = parse_chunk_manifest(self.path_of(name, digest).read_bytes()).list_raw_ids()
        indexes = parse_places(raw_places, len(ids))
        chunks = (self.read_chunk(name, Digest("b3", ids[index])) for index in indexes)
        return serialize_chunk_batch(chunks, len(indexes))


class LyingSource(ChunkwiseSource):
    """Answers the first `lies` requests for each chunk with other bytes."""

    def __init__(self, layout: Path, victims: set[Digest], lies: int) -> None:
        super().__init__(layout)
        self._victims = victims
        self._left = {chunk: lies for chunk in victims}

    def read_chunk(self, name: str, chunk: Digest) -> bytes | memoryview | None:
        data = super().read_chunk(name, chunk)
        if data is not None and self._left.get(chunk, 0) > 0:
            self._left[chunk] -= 1
            return bytes([data[0] ^ 1]) + data[1:]
        return data

    def read_update(self, name: str, ref: str, *_: object) -> UpdateAnswer:
        """None: the chunks are what is under test."""
        return no_update(self, name, ref)


def edited_chunks() -> set[Digest]:
    """Ids of the chunks that only the edited binary has."""
    manifests = []
    for binary in (OLD, NEW):
        manifests.append(build_chunk_manifest(binary, "raw", sha256_digest(binary), len(binary)))
    old, new = ({chunk.id for chunk in manifest.chunks} for manifest in manifests)
    return new - old


class BadUpdateSource(LayoutSource):
    """Answers with an update that is damaged at one byte, or is another image's."""

    def __init__(self, layout: Path, at: int) -> None:
        super().__init__(layout)
        self._at = at

    def read_update(self, *arguments: Any) -> UpdateAnswer:
        answer = super().read_update(*arguments)
        return damage_answer(answer, self._at)


def damage_answer(answer: UpdateAnswer, at: int) -> UpdateAnswer:
    raw = answer.raw
    if raw is None:
        return answer
    at %= len(raw)
    return replace(answer, raw=raw[:at] + bytes([raw[at] ^ 0x5A]) + raw[at + 1 :])


def test_an_update_is_one_request_and_gives_the_published_image(layout: Path, store: Store) -> None:
    with start_server(make_app(LayoutSource(layout))) as running:
        run(running, store)
        published = publish_image(layout, REF, hello_files(NEW))
        result = run(running, store)
        again = run(running, store)
    assert (result.request_count, result.digest) == (1, published.digest)
    assert result.moved_size < 2048
    assert (again.request_count, again.up_to_date, again.moved_size) == (1, True, 0)


@pytest.mark.parametrize("at", [0, 4, 9, 40, 60, 120, -1, -40])
def test_a_damaged_update_means_another_way(layout: Path, store: Store, at: int) -> None:
    with start_server(make_app(LayoutSource(layout))) as running:
        run(running, store)
    published = publish_image(layout, REF, hello_files(NEW))
    with start_server(make_app(BadUpdateSource(layout, at))) as running:
        result = run(running, store)
    assert result.digest == published.digest
    assert store.verify().good


def test_a_wrong_chunk_is_refused_named_and_fetched_again(layout: Path, store: Store) -> None:
    with start(layout) as running:
        run(running, store)
    publish_image(layout, REF, hello_files(NEW))
    victims = set(sorted(edited_chunks())[:1])
    with start_server(make_app(LyingSource(layout, victims, 1))) as running:
        result = run(running, store)
    assert result.refetched == tuple(map(str, victims)) and store.verify().good


def test_a_chunk_that_stays_wrong_is_an_error_and_nothing_is_committed(
    layout: Path, store: Store
) -> None:
    with start(layout) as running:
        old = run(running, store).digest
    publish_image(layout, REF, hello_files(NEW))
    victims = set(sorted(edited_chunks())[:1])
    with (
        start_server(make_app(LyingSource(layout, victims, 99))) as running,
        pytest.raises(ChunkDigestError, match=next(iter(victims)).short),
    ):
        run(running, store)
    assert store.find_image(REF) == old and store.verify().good


def test_after_a_failed_pull_the_next_one_fetches_only_the_rest(layout: Path, store: Store) -> None:
    with start(layout) as running:
        run(running, store)
    publish_image(layout, REF, hello_files(NEW))
    victims = set(sorted(edited_chunks())[:1])
    with (
        start_server(make_app(LyingSource(layout, victims, 99))) as running,
        pytest.raises(ChunkDigestError),
    ):
        run(running, store)
    with start(layout) as running:
        assert run(running, store).fetched_count == 1


class BreakingSource(ChunkwiseSource):
    """Breaks off the answer at the n-th chunk of each of the first requests."""

    def __init__(self, layout: Path, at: int, times: int) -> None:
        super().__init__(layout)
        self._at, self._times, self._count = at, times, 0

    def read_chunk(self, name: str, chunk: Digest) -> bytes | memoryview | None:
        self._count += 1
        if self._times and self._count == self._at:
            self._times -= 1
            self._count = 0
            raise RuntimeError("the server breaks off")
        return super().read_chunk(name, chunk)


@pytest.mark.parametrize("times", [1, 3])
def test_a_broken_answer_goes_on_without_fetching_again(
    layout: Path, store: Store, times: int
) -> None:
    old = OLD + noise(800_000, 3)
    publish_image(layout, REF, hello_files(old))
    with start(layout) as running:
        run(running, store)
    publish_image(layout, REF, hello_files(old[:300_000] + noise(600_000, 5)))
    with start_server(make_app(BreakingSource(layout, 150, times))) as running:
        result = run(running, store)
    assert store.verify().good and result.refetched == ()
    assert result.moved_size < 1.1 * result.planned_size + times * 80_000  # cut off in flight


def test_two_pulls_at_once_into_one_store(server: RunningServer, store: Store) -> None:
    def pull_one() -> PullResult:
        with Store(store.path, Disk()) as own:
            return run(server, own)

    with ThreadPoolExecutor(4) as pool:
        results = [future.result() for future in [pool.submit(pull_one) for _ in range(4)]]
    assert len({result.digest for result in results}) == 1
    assert store.verify().good and store.gc().chunk_count == 0


def test_a_damaged_form_blob_is_replaced_by_chunks(layout: Path, store: Store) -> None:
    source = LayoutSource(layout)
    repository = source.catalogue.get("team/hello")
    form = next(iter(repository.chunk_lists.values()))
    for digest in repository.chunk_lists:  # fill the server's cache first
        raw_id = parse_chunk_manifest(source.path_of("team/hello", digest).read_bytes()).raw_ids
        source.read_chunk("team/hello", Digest("b3", raw_id[:32]))
    path = source.path_of("team/hello", form.digest)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with start_server(make_app(source)) as running:
        run(running, store)
    assert store.verify().good


@pytest.mark.parametrize("kind", ["artifact", "chunk manifest", "gone"])
def test_a_broken_chunks_artifact_only_means_a_plain_pull(
    layout: Path, store: Store, tmp_path: Path, kind: str
) -> None:
    class Source(LayoutSource):
        def read_manifest(self, name: str, ref: str) -> tuple[oci.Descriptor, bytes]:
            descriptor, data = super().read_manifest(name, ref)
            return descriptor, data + b" " if descriptor.artifact_type else data

    source = (Source if kind == "artifact" else LayoutSource)(layout)
    if kind != "artifact":
        for digest in source.catalogue.get("team/hello").chunk_lists:
            path = source.path_of("team/hello", digest)
            path.unlink() if kind == "gone" else path.write_bytes(path.read_bytes()[::-1])
    with start_server(make_app(source)) as running:
        run(running, store, rootfs=tmp_path / "root")
    assert (tmp_path / "root/app/hello").read_bytes() == OLD and store.verify().good


def test_a_damaged_manifest_is_refused(layout: Path, store: Store) -> None:
    class Source(PlainSource):
        def read_manifest(self, name: str, ref: str) -> tuple[oci.Descriptor, bytes]:
            descriptor, data = super().read_manifest(name, ref)
            return descriptor, data.replace(b"amd64", b"arm64") + b" "

    with start_server(make_app(Source(layout))) as running, pytest.raises(IntegrityError):
        run(running, store)
    assert store.list_images() == []


def test_bit_rot_in_the_store_heals_while_pulling(
    server: RunningServer, store: Store, layout: Path
) -> None:
    run(server, store)
    pack = max((store.path / "packs").iterdir(), key=lambda path: path.stat().st_size)
    raw = bytearray(pack.read_bytes())
    raw[len(raw) // 2] ^= 1
    pack.write_bytes(raw)
    publish_image(layout, REF, hello_files(NEW))
    assert len(run(server, store).refetched) == 1
    assert store.verify().good


def test_verify_repair_then_pull_heals(server: RunningServer, store: Store) -> None:
    run(server, store)
    for path in (store.path / "packs").iterdir():
        os.truncate(path, path.stat().st_size // 2)
    assert not verify_store(store.path, Disk()).good
    verify_store(store.path, Disk(), repair=True)
    run(server, store)
    assert verify_store(store.path, Disk()).good
