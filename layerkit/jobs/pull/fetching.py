"""Bytes of layers from the server into the store: whole forms, batches of chunks, plain blobs.

Each part is durable before the next is fetched, so that after a crash or a cut the next pull goes
on. A chunk that comes wrong is refused, named, and fetched once more. Memory: a batch streams; one
form or one plain layer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from layerkit.digest import Digest, check_digest, chunk_id
from layerkit.edges import held
from layerkit.edges.spares import Spares
from layerkit.edges.store import CHUNK_MANIFEST_KIND, Store
from layerkit.edges.upstream import ChunkServer, Upstream
from layerkit.errors import (
    ChunkDigestError,
    FormatError,
    IntegrityError,
    LayerkitError,
    NotFoundError,
    RemoteError,
    StoreChangedError,
)
from layerkit.formats import formpack, oci
from layerkit.formats.chunkmanifest import (
    RAW,
    ROLE_CODES,
    Chunk,
    ChunkManifest,
    build_chunk_manifest,
    cut_form,
    parse_chunk_manifest,
    serialize_chunk_manifest,
)
from layerkit.formats.chunksync import chunk_places, gone_chunks
from layerkit.formats.deflate import decompress
from layerkit.formats.plan import LayerPlan, LayerWant, batch_chunks
from layerkit.formats.protocol import unpack_form
from layerkit.formats.updateparts import size_limit
from layerkit.formats.updating import NewLayer, list_form, read_plain
from layerkit.jobs.pull.packs import read_packed_chunks
from layerkit.jobs.pull.trees import Background

__all__ = ["Fetcher", "Progress", "open_plain"]

BATCH_COUNT: Final = 1 << 14  # ids a request: 512 KiB of body
BATCH_SIZE: Final = 64 << 20  # plain bytes a request: what a cut answer may cost at most
MAX_ROUNDS: Final = 8  # times that the rest of a cut batch is asked for
MAX_SINGLE_COUNT: Final = 64  # wrong chunks fetched again one by one; with more, the server lies
_log = logging.getLogger(__name__)


class Progress(Protocol):
    """A running count of plain bytes."""

    def total(self, size: int) -> None: ...
    def advance(self, size: int) -> None: ...


@dataclass(frozen=True, slots=True)
class _Listed:
    """A published chunk manifest, the first place of each of its chunks, and a held chunk manifest
    with those of its chunks that it has instead."""

    digest: Digest
    places: Mapping[bytes, int]
    near: tuple[Digest, bytes] | None = None

    def place(self, chunk: Chunk) -> int:
        return self.places[chunk.id.raw]


def open_plain(want: LayerWant, raw: bytes) -> NewLayer:
    """A layer by its plain blob: verified by its diff_id, its form is the tar."""
    blob = want.blob
    plain = decompress(raw, blob.media_type, size_limit(raw))
    cut = Background(lambda: cut_form(plain))
    check_digest(plain, want.diff_id, f"layer {want.diff_id.short}")
    role = ROLE_CODES.get(blob.annotations.get(oci.ANNOTATION_ROLE, ""), 0)
    manifest = build_chunk_manifest(plain, RAW, want.diff_id, len(plain), role, done=cut.result())
    return NewLayer(plain, plain, manifest, serialize_chunk_manifest(manifest))


@dataclass(slots=True)
class Fetcher:
    """Fetches for one pull from repository `name`; counts what it put into the store."""

    name: str
    remote: Upstream
    store: Store
    progress: Progress | None = None
    spares: Spares | None = None
    fetched_count: int = 0
    refetched: list[Digest] = field(default_factory=list)
    read_ids: set[bytes] = field(default_factory=set)  # chunks that this pull found in the store

    def fetch_batches(
        self, want: LayerWant, chunks: Sequence[Chunk], near: Mapping[Digest, bytes]
    ) -> None:
        """Chunks of a layer, in as few requests as their limits allow: by their places in the chunk
        manifest, with the chunks that one of `near` has instead as dictionary; else by ids. Each
        chunk is fetched by one of the processes that want it at the same time."""
        listed = None
        if want.listed is not None and chunks and want.pack is None:
            listed = self._list(want, near)
        left, is_patient = list(chunks), True
        with self.store.session():
            while left:
                claim = self.store.claim(chunk.id.raw for chunk in left)
                ids = claim.mine if is_patient else claim.mine | claim.others
                here = self.store.has_raw(ids)  # it may have come since the plan
                try:
                    mine = [chunk for chunk in left if chunk.id.raw in ids - here]
                    if want.pack is not None and mine:
                        self._fetch_from_pack(want, mine)
                    else:
                        for batch in batch_chunks(mine, BATCH_COUNT, BATCH_SIZE):
                            self._fetch_batch(batch, listed)
                finally:
                    self.store.release(claim.mine)
                others = claim.others - ids
                missing = self.store.wait_for(others) if others else set()
                left = [chunk for chunk in left if chunk.id.raw in missing]
                is_patient = False  # whoever had claimed them has died, or is stuck

    def _fetch_from_pack(self, want: LayerWant, chunks: Sequence[Chunk]) -> None:
        """Chunks out of the layer's pack. What came before it broke off stays, and the next pull
        finds it by the chunk manifest."""
        failures: list[LayerkitError] = []

        def answers() -> Iterator[tuple[Digest, bytes]]:
            wanted = {chunk.id.raw for chunk in chunks}
            try:
                for chunk, data in read_packed_chunks(self.remote, self.name, want, wanted):
                    self._advance(len(data))
                    yield chunk, data
            except (RemoteError, FormatError, IntegrityError, NotFoundError) as exc:
                failures.append(exc)

        self.fetched_count += self.store.put_many(answers())
        if failures:
            assert want.chunk_manifest is not None
            data = serialize_chunk_manifest(want.chunk_manifest)
            self.store.put_blob(data, CHUNK_MANIFEST_KIND)
            failure = failures[0]
            if isinstance(failure, RemoteError):  # a pack that cannot be read is as good as none
                raise NotFoundError("chunk pack breaks off", cause=failure.message) from failure
            raise failure

    def _list(self, want: LayerWant, near: Mapping[Digest, bytes]) -> _Listed:
        """Places of the chunks, and the held neighbour that shares most with them."""
        manifest = want.chunk_manifest
        assert manifest is not None and want.listed is not None
        places: dict[bytes, int] = {}
        for index, raw in enumerate(manifest.list_raw_ids()):
            places.setdefault(raw, index)
        best, best_shared = None, 0
        for digest, data in near.items():
            old = parse_chunk_manifest(data)
            shared = len(places.keys() & set(old.list_raw_ids()))
            if shared > best_shared:
                best, best_shared = (digest, old), shared
        if best is not None:
            try:
                form = held.read_form(self.store, best[1])
            except (ChunkDigestError, NotFoundError):
                best = None  # not whole: then without it
        if best is None:
            return _Listed(want.listed.digest, places)
        gone = b"".join(form[at : at + size] for at, size in gone_chunks(best[1], manifest))
        return _Listed(want.listed.digest, places, (best[0], gone))

    def keep_form(
        self,
        form: bytes,
        blob: oci.Descriptor,
        diff_id: Digest,
        listed: oci.Descriptor | None,
        near: list[tuple[bytes, ChunkManifest]] | None = None,
        meanwhile: Callable[[], None] | None = None,
    ) -> NewLayer:
        """The layer that a form gives, verified; its chunks are in the store then. By two threads:
        one decodes, the other cuts, hashes, and stores what is proven to be the published form;
        most of both is done without Python's lock. `near` are the verified forms that it was made
        from; the list is emptied as soon as they are of no more use. `meanwhile` is called when
        only the first thread is still at work: all three at once would wait for Python's lock."""
        near = [] if near is None else near
        plain = Background(lambda: read_plain(form, diff_id))
        try:
            manifest, data = list_form(form, blob, diff_id, listed, near)
            near.clear()
            self.put_form(manifest, form)
            if meanwhile is not None:
                meanwhile()
        except BaseException:
            plain.wait()  # nothing of it runs on
            raise
        return NewLayer(form, plain.result(), manifest, data)

    def fetch_whole(self, want: LayerWant) -> NewLayer:
        """A layer by its form alone, as `keep_form`: no ids travel."""
        assert want.form is not None
        form = self._fetch_packed(want, want.form)
        if form is not None:
            try:
                return self.keep_form(form, want.blob, want.diff_id, want.listed)
            except (FormatError, IntegrityError) as exc:
                _log.warning("packed form of %s is refused: %s", want.form.digest, exc.message)
        raw = self.remote.fetch_blob(self.name, want.form.digest, want.form.size, self._advance)
        form = unpack_form(raw, limit=size_limit(raw))
        del raw  # a quarter of a binary, which nobody needs while it is decoded
        return self.keep_form(form, want.blob, want.diff_id, want.listed)

    def _fetch_packed(self, want: LayerWant, form: oci.Descriptor) -> bytes | None:
        """The form by its packed form, where it was published or the server says that it has it.
        Not verified, and asked for only where it is known to be."""
        try:
            if want.packed is not None and want.packed.size < form.size:
                raw = self.remote.fetch_blob(self.name, want.packed.digest, want.packed.size)
            elif want.is_packed:
                raw = self._server().fetch_packed(self.name, form.digest, form.size)
            else:
                return None
            data = formpack.unpack(raw, size_limit(raw))
        except (FormatError, IntegrityError, NotFoundError, RemoteError) as exc:
            _log.info("no packed form %s: %s", form.digest.short, exc.message)
            return None
        self._advance(form.size)
        return data

    def fetch_form(self, layer: LayerPlan) -> list[Chunk]:
        """The whole form; returns the chunks that are still to be fetched (all, if it is bad)."""
        want = layer.want
        assert want.form is not None and want.chunk_manifest is not None
        try:
            data = self._fetch_packed(want, want.form)
            if data is None or len(data) != want.chunk_manifest.form_size:
                raw = self.remote.fetch_blob(self.name, want.form.digest, want.form.size)
                data = unpack_form(raw, want.chunk_manifest.form_size, size_limit(raw))
            form = memoryview(data)
        except (IntegrityError, FormatError, NotFoundError) as exc:
            _log.warning("form %s is refused: %s", want.form.digest.short, exc.message)
            return list(layer.chunks)
        bad: list[Chunk] = []

        def verified() -> Iterator[tuple[Digest, bytes]]:
            assert want.chunk_manifest is not None
            for offset, chunk in want.chunk_manifest.spans():
                data = bytes(form[offset : offset + chunk.size])
                if chunk_id(data) == chunk.id:
                    self._advance(len(data))
                    yield chunk.id, data
                else:
                    bad.append(chunk)

        self.fetched_count += self.store.put_many(verified())
        return bad

    def _fetch_batch(self, batch: list[Chunk], listed: _Listed | None) -> None:
        """Many chunks by one request; a cut answer is asked again for its rest."""
        left = batch
        bad: list[Chunk] = []
        for _ in range(MAX_ROUNDS):
            done: set[Digest] = set()
            failures: list[RemoteError | FormatError] = []
            answers = self._answers(self._ask(left, listed), left, done, bad, failures)
            self.fetched_count += self.store.put_many(answers)
            if not failures:
                break
            if not done:
                if listed is None:
                    raise failures[0]
                listed = None  # the simpler way, then
            _log.info("answer was cut after %d chunks: %s", len(done), failures[0].message)
            wrong = {chunk.id for chunk in bad}
            left = [chunk for chunk in left if chunk.id not in done and chunk.id not in wrong]
            if not left:
                break
            if listed is not None:
                left.sort(key=listed.place)
        else:
            raise failures[0]
        self._fetch_singly(bad)

    def _ask(self, chunks: list[Chunk], listed: _Listed | None) -> Iterator[bytes | None]:
        """An answer that holds these chunks; a server that does not know places is asked by ids."""
        server, sizes = self._server(), [chunk.size for chunk in chunks]
        if listed is not None:
            places = chunk_places(map(listed.place, chunks))
            for near in (listed.near, None) if listed.near else (None,):
                try:
                    yield from server.fetch_listed(self.name, listed.digest, places, sizes, near)
                    return
                except NotFoundError as exc:
                    _log.info("no chunks by their places: %s", exc.message)
        yield from server.fetch_chunks(self.name, [chunk.id for chunk in chunks], sizes)

    def _server(self) -> ChunkServer:
        """Who cuts chunks; NotFoundError where nobody does."""
        server = self.remote.chunk_server
        if server is None:
            raise NotFoundError(f"{self.remote.url} gives no single chunks")
        return server

    def _answers(
        self,
        answer: Iterator[bytes | None],
        chunks: list[Chunk],
        done: set[Digest],
        bad: list[Chunk],
        failures: list[RemoteError | FormatError],
    ) -> Iterator[tuple[Digest, bytes]]:
        """Verified chunks as they come. Ends, with a note in `failures`, when the answer fails."""
        waiting = iter(chunks)
        try:
            for data in answer:
                chunk = next(waiting)
                if data is not None and chunk_id(data) == chunk.id:
                    done.add(chunk.id)
                    self._advance(len(data))
                    yield chunk.id, data
                else:
                    bad.append(chunk)
        except (RemoteError, FormatError) as exc:
            failures.append(exc)

    def _fetch_singly(self, bad: list[Chunk]) -> None:
        """Chunks that came wrong or not at all: refused, named, fetched once more."""
        if len(bad) > MAX_SINGLE_COUNT:
            raise ChunkDigestError(
                f"{len(bad)} chunks from {self.remote.url} do not match their ids",
                got="other bytes",
                want=str(bad[0].id),
            )
        for chunk in bad:
            _log.warning("chunk %s from %s is refused, again", chunk.id, self.remote.url)
            self.refetched.append(chunk.id)
            data = self._server().fetch_chunk(self.name, chunk.id, chunk.size)
            self.fetched_count += self.store.put_many([(chunk.id, data)])
            self._advance(len(data))

    def fetch_plain(self, want: LayerWant) -> NewLayer:
        """A layer blob from a server that has no chunks of it; chunked here."""
        raw = self.remote.fetch_blob(self.name, want.blob.digest, want.blob.size)
        self._advance(want.blob.size)
        return open_plain(want, raw)

    def put_chunks(self, chunks: Iterable[tuple[Digest, bytes]]) -> None:
        """Verified chunks, durable when it returns."""
        self.fetched_count += self.store.put_many(chunks)

    def counted(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        """The parts of an answer as they come, shown as progress."""
        for part in parts:
            self._advance(len(part))
            yield part

    def put_form(self, manifest: ChunkManifest, form: bytes) -> None:
        """The chunks of a form that the store lacks. Those that this pull has read from it are
        not looked up again: should they have gone since, the commit says so."""
        view, raw_ids = memoryview(form), manifest.list_raw_ids()
        unknown = [
            (at, size, raw)
            for at, size, raw in zip(manifest.offsets(), manifest.sizes, raw_ids, strict=False)
            if raw not in self.read_ids
        ]
        held_ids = self.store.has_raw(raw for _, _, raw in unknown)
        pairs = (
            (Digest("b3", raw), bytes(view[at : at + size]))
            for at, size, raw in unknown
            if raw not in held_ids
        )
        self.fetched_count += self.store.put_many(pairs, is_new=True)

    def read_old(self, manifest: ChunkManifest) -> bytes:
        """A form that a delta builds on, verified: a spare one, or from the store's chunks."""
        found = self.spares.read_form(manifest.form_digest) if self.spares is not None else None
        return held.read_form(self.store, manifest) if found is None else found

    def read_form(self, manifest: ChunkManifest) -> bytes:
        """A form from the store, verified; damaged chunks are fetched again."""
        try:
            return held.read_form(self.store, manifest)
        except (ChunkDigestError, NotFoundError):
            form = b"".join(self.read_chunk(chunk) for chunk in manifest.chunks)
        check_digest(form, manifest.form_digest, f"form of layer {manifest.diff_id.short}")
        return form

    def read_chunk(self, chunk: Chunk) -> bytes:
        """A chunk of the store; a damaged one is fetched again, where it can be had alone. Else
        StoreChangedError: its layer is no longer whole here."""
        try:
            return self.store.get(chunk.id)
        except (ChunkDigestError, NotFoundError) as exc:
            _log.warning("chunk %s in the store is damaged, fetching it", chunk.id)
            self.refetched.append(chunk.id)
            server = self.remote.chunk_server
            if server is None:
                self.store.give_up([chunk.id])
                raise StoreChangedError(
                    f"chunk {chunk.id} in the store was damaged", cause=exc.message
                ) from exc
            self.store.drop([chunk.id])
            data = server.fetch_chunk(self.name, chunk.id, chunk.size)
            self.fetched_count += self.store.put_many([(chunk.id, data)])
            return data

    def _advance(self, size: int) -> None:
        if self.progress is not None:
            self.progress.advance(size)
