"""`layerkit pull`: bring an image into the store, moving only what the node lacks.

resolve -> documents -> plan (pure) -> fetch -> verify each chunk -> assemble -> verify form digest
and diff_id -> commit -> materialise. What was fetched stays fetched: after a crash or a cut the
next pull goes on. The chunks artifact only says how to move bytes; what is accepted is decided by
the image's own manifest and diff_ids. Memory: one layer's form and plain tar, and plain tars up to
KEEP_SIZE.
"""

from __future__ import annotations

import logging
import platform as host
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from layerkit.digest import Digest, check_digest, chunk_id, sha256_digest
from layerkit.edges import held
from layerkit.edges.disk import Disk
from layerkit.edges.layout import Layout
from layerkit.edges.remote import Remote
from layerkit.edges.rootfs import extract_layers
from layerkit.edges.store import ARTIFACT_KIND, CHUNK_MANIFEST_KIND, Store
from layerkit.errors import (
    ChunkDigestError,
    FormatError,
    IntegrityError,
    NotFoundError,
    RemoteError,
)
from layerkit.formats import oci
from layerkit.formats.chunkmanifest import (
    MAX_FORM_SIZE,
    RAW,
    ROLE_CODES,
    Chunk,
    build_chunk_manifest,
    parse_chunk_manifest,
    serialize_chunk_manifest,
)
from layerkit.formats.deflate import compress, decompress
from layerkit.formats.plan import LayerPlan, LayerWant, Plan, batch_chunks, plan_pull
from layerkit.formats.protocol import unpack_form
from layerkit.formats.reference import Reference
from layerkit.formats.update import Update, parse_update, update_old
from layerkit.formats.updating import apply_update, check_manifest, plain_of_form

__all__ = ["LayerPlan", "LayerWant", "Plan", "PullResult", "host_platform", "plan_pull", "pull"]

BATCH_COUNT: Final = 1 << 14  # ids a request: 512 KiB of body
BATCH_SIZE: Final = 64 << 20  # plain bytes a request: what a cut answer may cost at most
MAX_ROUNDS: Final = 8  # times that the rest of a cut batch is asked for
MAX_SINGLE_COUNT: Final = 64  # wrong chunks fetched again one by one; with more, the server lies
KEEP_SIZE: Final = 256 << 20  # bytes of plain tars kept between verifying and materialising
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
_log = logging.getLogger(__name__)


class Progress(Protocol):
    """A running count of plain bytes."""

    def total(self, size: int) -> None: ...
    def advance(self, size: int) -> None: ...


@dataclass(frozen=True, slots=True)
class PullResult:
    """What a pull did, or with `dry_run` would do."""

    ref: str
    digest: Digest
    up_to_date: bool
    dry_run: bool
    moved_size: int  # bytes of bodies, sent and received
    request_count: int
    fetched_count: int  # chunks
    held_count: int
    planned_size: int  # what it was planned to move, documents included
    whole_size: int  # what a plain pull of the layers would move
    seconds: float
    refetched: tuple[str, ...] = ()  # ids of chunks that came wrong and were fetched again


def host_platform() -> oci.Platform:
    """Linux on this machine's processor."""
    return oci.Platform("linux", _MACHINES.get(host.machine(), host.machine().lower()))


_REFUSED: Final = (FormatError, IntegrityError, NotFoundError)  # of what only helps to move bytes


def pull(
    ref: Reference,
    remote: Remote,
    store: Store,
    *,
    disk: Disk | None = None,
    output: Path | None = None,
    rootfs: Path | None = None,
    platform: oci.Platform | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
    now: Callable[[], float] = time.monotonic,
) -> PullResult:
    """Pull `ref`; then write an OCI layout (`output`) and a file tree (`rootfs`) if asked to."""
    started = now()
    run = _Pull(ref.tagged, remote, store, platform or host_platform(), progress)
    before = (remote.bytes_moved, remote.request_count)
    planned_size = 0
    with store.session():
        update_size = run.measure_update() if dry_run else None
        if dry_run or not run.try_update():
            run.resolve()
        if update_size is not None:
            planned_size = update_size
        elif not run.up_to_date:
            run.read_documents()
            run.make_plan()
            planned_size = remote.bytes_moved - before[0] + run.plan.planned_size
            if not dry_run:
                run.fetch()
                run.check_layers()
                run.commit()
        elif not dry_run and (output is not None or rootfs is not None):
            run.load_stored()
        if not dry_run and output is not None:
            run.write_layout(Layout(output, disk or Disk()))
        if not dry_run and rootfs is not None:
            extract_layers(run.plain_layers(), rootfs, disk or Disk())
    return PullResult(
        str(ref.tagged),
        run.top,
        run.up_to_date,
        dry_run,
        remote.bytes_moved - before[0],
        remote.request_count - before[1],
        run.fetched_count,
        run.plan.held_count,
        planned_size,
        run.whole_size,
        now() - started,
        tuple(str(chunk) for chunk in run.refetched),
    )


@dataclass(slots=True)
class _Pull:
    """The state of one pull."""

    ref: Reference
    remote: Remote
    store: Store
    platform: oci.Platform
    progress: Progress | None
    up_to_date: bool = False
    top: Digest = field(default_factory=lambda: oci.EMPTY_DESCRIPTOR.digest)
    image: oci.Descriptor = oci.EMPTY_DESCRIPTOR
    manifest: oci.Manifest | None = None
    artifact: oci.Manifest | None = None
    wants: list[LayerWant] = field(default_factory=list)
    plan: Plan = field(default_factory=lambda: Plan((), 0, 0, 0, 0))
    fetched_count: int = 0
    refetched: list[Digest] = field(default_factory=list)
    _blobs: dict[Digest, tuple[bytes, str]] = field(default_factory=dict)  # to commit: data, kind
    _plains: dict[Digest, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.ref.repository

    @property
    def whole_size(self) -> int:
        return sum(blob.size for blob in self._read_manifest().layers)

    # --- updates -----------------------------------------------------------------------------

    def measure_update(self) -> int | None:
        """Bytes of the update that a pull would get; None if it would get none."""
        have = held.list_versions(self.store, self.ref)
        if not have:
            return None
        try:
            return self.remote.measure_update(self.name, self._text, have, str(self.platform))
        except NotFoundError:
            return None

    @property
    def _text(self) -> str:
        """The tag, or the digest that the reference pins."""
        return str(self.ref.digest) if self.ref.digest is not None else self.ref.tag

    def try_update(self) -> bool:
        """One request for all that an image held here lacks to become the wanted one. False when
        there is none, or it is refused: then the pull goes its plain way."""
        have = held.list_versions(self.store, self.ref)
        if not have or (self.ref.digest and self.store.is_complete(self.ref.digest)):
            return False
        try:
            raw = self.remote.fetch_update(self.name, self._text, have, str(self.platform))
            if raw is None:
                self._use_top(have[0], self.store.get_blob(have[0]))
                return True
            old = update_old(raw)
            if old not in have:
                raise IntegrityError("update builds on another image", got=str(old))
            update = parse_update(raw, held.read_documents(self.store, old).as_list())
            self._take_update(old, update)
        except _REFUSED as exc:
            _log.info("no update: %s", exc.message)
            self._blobs.clear()
            self._plains.clear()
            self.artifact = None
            return False
        return True

    def _take_update(self, old: Digest, update: Update) -> None:
        """Check everything that an update brings, then put its chunks into the store."""
        top = sha256_digest(update.top)
        if self.ref.digest not in (None, top):
            raise IntegrityError("update of another image", got=str(top), want=str(self.ref.digest))
        self._blobs[top] = (update.top, "")
        for data, kind in ((update.manifest, ""), (update.config, "")):
            if data:
                self._blobs[sha256_digest(data)] = (data, kind)
        self._use_top(top, update.top)
        artifact = oci.parse_manifest(update.artifact)
        if artifact.subject is None or artifact.subject.digest != self.image.digest:
            raise IntegrityError("update: chunks artifact of another image")
        self._blobs[sha256_digest(update.artifact)] = (update.artifact, ARTIFACT_KIND)
        self.artifact = artifact
        listed = held.read_chunk_manifests(self.store, old)
        for made in apply_update(update, listed, partial(held.read_form, self.store)):
            manifest, form = made.chunk_manifest, memoryview(made.form)
            data = made.chunk_manifest_data
            self._blobs[sha256_digest(data)] = (data, CHUNK_MANIFEST_KIND)
            self._plains[manifest.diff_id] = made.plain
            held_ids = self.store.has({chunk.id for chunk in manifest.chunks})
            pairs = (
                (chunk.id, bytes(form[at : at + chunk.size]))
                for at, chunk in manifest.spans()
                if chunk.id not in held_ids
            )
            self.fetched_count += self.store.put_many(pairs)

    # --- documents ---------------------------------------------------------------------------

    def resolve(self) -> None:
        """Find the image manifest; up to date if the store holds it whole."""
        known = self.store.find_image(str(self.ref))
        if self.ref.digest is not None and self.store.is_complete(self.ref.digest):
            known = self.ref.digest
            found = None
        else:
            found = self.remote.resolve(self.name, self._text, known)
        if found is not None:
            self.top, data = found.digest, found.data
            self._blobs[self.top] = (data, "")
        elif known is not None:
            self.top = known
            data = self._read_small(known, oci.MAX_DOCUMENT_SIZE)
        else:
            raise NotFoundError(f"{self.ref} is not on {self.remote.url}")
        self._use_top(self.top, data)

    def _use_top(self, top: Digest, data: bytes) -> None:
        """Settle on what the reference names; up to date if the store holds it whole."""
        self.top = top
        known = self.store.find_image(str(self.ref))
        self._select_image(data)
        if self.store.is_complete(self.top):
            self.up_to_date = self.image.digest in self.store.list_blobs(self.top)
            if self.up_to_date and known != self.top:  # the same image under another name
                self.store.commit_image(str(self.ref), self.top, ())

    def _select_image(self, data: bytes) -> None:
        """The image manifest in `data`, or that of our platform in an index."""
        try:
            self.manifest = oci.parse_manifest(data)
            self.image = oci.Descriptor(self.manifest.media_type, self.top, len(data))
            return
        except FormatError:
            index = oci.parse_index(data)
        for entry in index.manifests:
            if entry.platform == self.platform and entry.media_type in oci.MANIFEST_TYPES:
                self.image = replace(entry, annotations={}, platform=None)
                raw = self._read_small(entry.digest, min(entry.size, oci.MAX_DOCUMENT_SIZE), True)
                self.manifest = oci.parse_manifest(raw)
                return
        have = ", ".join(str(entry.platform) for entry in index.manifests[:8])
        raise NotFoundError(f"{self.ref} has no image for {self.platform}", cause=f"it has {have}")

    def _read_small(
        self, digest: Digest, size: int, manifest: bool = False, kind: str = ""
    ) -> bytes:
        """A small blob from the store, else from the server; kept for the commit."""
        if digest in self._blobs:
            return self._blobs[digest][0]
        try:
            data = self.store.get_blob(digest)
        except (NotFoundError, IntegrityError):
            if manifest:
                found = self.remote.resolve(self.name, str(digest))
                data = found.data if found is not None else b""
            else:
                data = self.remote.fetch_blob(self.name, digest, size)
        self._blobs[digest] = (data, kind)
        return data

    def _read_manifest(self) -> oci.Manifest:
        assert self.manifest is not None
        return self.manifest

    def read_documents(self) -> None:
        """The config, and the chunk manifests where the server has them."""
        manifest = self._read_manifest()
        size = min(manifest.config.size, oci.MAX_DOCUMENT_SIZE)
        config = oci.parse_config(self._read_small(manifest.config.digest, size))
        if len(config.diff_ids) != len(manifest.layers):
            raise FormatError(
                f"image {self.image.digest.short} has {len(manifest.layers)} layers"
                f" and {len(config.diff_ids)} diff_ids"
            )
        artifact = self._find_artifact()
        for blob, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
            self.wants.append(self._want(blob, diff_id, artifact))

    def _find_artifact(self) -> oci.Manifest | None:
        """The chunks artifact of the image. A broken one only means a plain pull."""
        if self.artifact is not None:
            return self.artifact
        kind = oci.CHUNKS_ARTIFACT
        for entry in self.remote.fetch_referrers(self.name, self.image.digest, kind):
            size = min(entry.size, oci.MAX_DOCUMENT_SIZE)
            try:
                found = oci.parse_manifest(
                    self._read_small(entry.digest, size, True, ARTIFACT_KIND)
                )
            except _REFUSED as exc:
                _log.warning("chunks artifact %s is refused: %s", entry.digest, exc.message)
                continue
            if found.subject is not None and found.subject.digest == self.image.digest:
                return found
        return None

    def _want(
        self, blob: oci.Descriptor, diff_id: Digest, artifact: oci.Manifest | None
    ) -> LayerWant:
        parts = {
            part.media_type: part
            for part in (artifact.layers if artifact else ())
            if part.annotations.get(oci.ANNOTATION_LAYER) == str(diff_id)
        }
        listed = parts.get(oci.CHUNK_MANIFEST)
        if listed is None:
            return LayerWant(blob, diff_id)
        try:
            raw = self._read_small(listed.digest, listed.size, kind=CHUNK_MANIFEST_KIND)
            manifest = parse_chunk_manifest(raw)
            check_manifest(manifest, diff_id)
        except _REFUSED as exc:
            _log.warning("chunk manifest %s is refused: %s", listed.digest, exc.message)
            self._blobs.pop(listed.digest, None)
            return LayerWant(blob, diff_id)
        return LayerWant(blob, diff_id, manifest, parts.get(oci.FORM_ZSTD))

    def make_plan(self) -> None:
        ids = {
            chunk.id
            for want in self.wants
            if want.chunk_manifest
            for chunk in want.chunk_manifest.chunks
        }
        self.plan = plan_pull(self.wants, self.store.has(ids))

    # --- bytes -------------------------------------------------------------------------------

    def fetch(self) -> None:
        """Fetch what the plan says; each part is durable in the store before the next."""
        if self.progress is not None:
            total = sum(chunk.size for layer in self.plan.layers for chunk in layer.chunks)
            total += sum(la.want.blob.size for la in self.plan.layers if la.method == "blob")
            self.progress.total(total)
        chunks: list[Chunk] = []
        for index, layer in enumerate(self.plan.layers):
            if layer.method == "form":
                chunks += self._fetch_form(layer)
            elif layer.method == "chunks":
                chunks += layer.chunks
            elif layer.method == "blob":
                self.wants[index] = self._fetch_plain(layer.want)
        for batch in batch_chunks(chunks, BATCH_COUNT, BATCH_SIZE):
            self._fetch_batch(batch)

    def _fetch_form(self, layer: LayerPlan) -> list[Chunk]:
        """The whole form; returns the chunks that are still to be fetched (all, if it is bad)."""
        want = layer.want
        assert want.form is not None and want.chunk_manifest is not None
        try:
            raw = self.remote.fetch_blob(self.name, want.form.digest, want.form.size)
            form = memoryview(unpack_form(raw, want.chunk_manifest.form_size))
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

    def _fetch_batch(self, batch: list[Chunk]) -> None:
        """Many chunks by one request; a cut answer is asked again for its rest."""
        left = batch
        bad: list[Chunk] = []
        for _ in range(MAX_ROUNDS):
            done: set[Digest] = set()
            failures: list[RemoteError | FormatError] = []
            self.fetched_count += self.store.put_many(self._answers(left, done, bad, failures))
            if not failures:
                break
            if not done:
                raise failures[0]
            _log.info("answer was cut after %d chunks: %s", len(done), failures[0].message)
            wrong = {chunk.id for chunk in bad}
            left = [chunk for chunk in left if chunk.id not in done and chunk.id not in wrong]
            if not left:
                break
        else:
            raise failures[0]
        self._fetch_singly(bad)

    def _answers(
        self,
        chunks: list[Chunk],
        done: set[Digest],
        bad: list[Chunk],
        failures: list[RemoteError | FormatError],
    ) -> Iterator[tuple[Digest, bytes]]:
        """Verified chunks as they come. Ends, with a note in `failures`, when the answer fails."""
        ids, sizes = [chunk.id for chunk in chunks], [chunk.size for chunk in chunks]
        answer = self.remote.fetch_chunks(self.name, ids, sizes)
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
            data = self.remote.fetch_chunk(self.name, chunk.id, chunk.size)
            self.fetched_count += self.store.put_many([(chunk.id, data)])
            self._advance(len(data))

    def _fetch_plain(self, want: LayerWant) -> LayerWant:
        """A layer blob from a server that has no chunks of it; chunked here."""
        blob = want.blob
        raw = self.remote.fetch_blob(self.name, blob.digest, blob.size)
        plain = decompress(raw, blob.media_type, MAX_FORM_SIZE)
        check_digest(plain, want.diff_id, f"layer {want.diff_id.short}")
        role = ROLE_CODES.get(blob.annotations.get(oci.ANNOTATION_ROLE, ""), 0)
        manifest = build_chunk_manifest(plain, RAW, want.diff_id, len(plain), role)
        view = memoryview(plain)
        pairs = ((chunk.id, bytes(view[at : at + chunk.size])) for at, chunk in manifest.spans())
        self.fetched_count += self.store.put_many(pairs)
        self._advance(blob.size)
        data = serialize_chunk_manifest(manifest)
        self._blobs[oci.describe(data, "").digest] = (data, CHUNK_MANIFEST_KIND)
        return LayerWant(blob, want.diff_id, manifest)

    def _advance(self, size: int) -> None:
        if self.progress is not None:
            self.progress.advance(size)

    # --- assembling --------------------------------------------------------------------------

    def assemble(self, want: LayerWant) -> bytes:
        """The plain tar of a layer from the store, verified; damaged chunks are fetched again."""
        kept = self._plains.get(want.diff_id)
        if kept is not None:
            return kept
        manifest = want.chunk_manifest
        assert manifest is not None
        form = b"".join(self._read_chunk(chunk) for chunk in manifest.chunks)
        check_digest(form, manifest.form_digest, f"form of layer {want.diff_id.short}")
        plain = plain_of_form(manifest.transform, form, manifest.plain_size)
        check_digest(plain, manifest.diff_id, f"layer {manifest.diff_id.short}")
        if sum(map(len, self._plains.values())) + len(plain) <= KEEP_SIZE:
            self._plains[want.diff_id] = plain
        return plain

    def _read_chunk(self, chunk: Chunk) -> bytes:
        try:
            return self.store.get(chunk.id)
        except (ChunkDigestError, NotFoundError):
            _log.warning("chunk %s in the store is damaged, fetching it", chunk.id)
            self.store.drop([chunk.id])
            self.refetched.append(chunk.id)
            data = self.remote.fetch_chunk(self.name, chunk.id, chunk.size)
            self.fetched_count += self.store.put_many([(chunk.id, data)])
            return data

    def check_layers(self) -> None:
        """Every layer's tar; one that its chunks do not give after all is pulled plainly."""
        for index, want in enumerate(self.wants):
            try:
                self.assemble(want)
            except (FormatError, IntegrityError) as exc:
                _log.warning("layer %s, pulling it plainly: %s", want.diff_id.short, exc.message)
                if want.chunk_manifest is not None:
                    listed = serialize_chunk_manifest(want.chunk_manifest)
                    self._blobs.pop(sha256_digest(listed), None)
                self.wants[index] = self._fetch_plain(want)
                self.assemble(self.wants[index])

    def commit(self) -> None:
        """Small blobs, then the one commit point."""
        for data, kind in self._blobs.values():
            self.store.put_blob(data, kind)
        self.store.commit_image(str(self.ref), self.top, self._blobs)

    def load_stored(self) -> None:
        """Layers of an image that the store holds, for materialising."""
        manifest = self._read_manifest()
        config = oci.parse_config(self.store.get_blob(manifest.config.digest))
        stored = {}
        for digest in self.store.list_blobs(self.top, CHUNK_MANIFEST_KIND):
            found = parse_chunk_manifest(self.store.get_blob(digest))
            stored[found.diff_id] = found
        for blob, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
            if diff_id not in stored:
                raise NotFoundError(
                    f"store lacks the chunk manifest of layer {diff_id.short}",
                    hint="run 'layerkit verify --repair', then pull again",
                )
            self.wants.append(LayerWant(blob, diff_id, stored[diff_id]))

    # --- materialising -----------------------------------------------------------------------

    def plain_layers(self) -> Iterator[bytes]:
        return (self.assemble(want) for want in self.wants)

    def write_layout(self, layout: Layout) -> None:
        """The image with the digests that it was published with, as an OCI layout."""
        manifest = self._read_manifest()
        config = self._read_small(manifest.config.digest, manifest.config.size)
        raw = self._read_small(self.image.digest, self.image.size, True)
        with layout.batch():
            for want in self.wants:
                layout.put_blob(self._layer_blob(want), want.blob.media_type)
            layout.put_blob(config, manifest.config.media_type)
            layout.put_blob(raw, self.image.media_type)
            layout.commit(self.ref, self.image)

    def _layer_blob(self, want: LayerWant) -> bytes:
        """The published layer blob: made again by its recipe, else fetched."""
        recipe = want.blob.annotations.get(oci.ANNOTATION_COMPRESSION, "")
        if want.blob.media_type == oci.LAYER_TAR:
            recipe = "tar"
        try:
            if recipe:
                data = compress(self.assemble(want), recipe)
                check_digest(data, want.blob.digest, f"layer blob {want.blob.digest.short}")
                return data
        except (FormatError, IntegrityError) as exc:
            _log.warning("%s, fetching it", exc.message)
        return self.remote.fetch_blob(self.name, want.blob.digest, want.blob.size)
