"""`layerkit pull`: bring an image into the store, moving only what the node lacks.

choose the way -> an update, or documents -> plan (pure) -> fetch -> verify each chunk -> assemble
-> verify form digest and diff_id -> commit -> materialise. What was fetched stays fetched: after a
crash or a cut the next pull goes on. The chunks artifact only says how to move bytes; what is
accepted is decided by the image's own manifest and diff_ids. Memory: one layer's form and plain
tar, and plain tars up to KEEP_SIZE while they are to be written out.

`documents` reads what the reference names, `updates` takes what one answer brings, `fetching` moves
bytes into the store, `rates` measures, `rebuilding` makes forms of what came plainly; here is the
order of things, and the way back from the store to layers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from layerkit.digest import Digest, check_digest, sha256_digest
from layerkit.edges import held
from layerkit.edges.disk import Disk
from layerkit.edges.layout import Layout
from layerkit.edges.rootfs import Limits, Rights, extract_layers
from layerkit.edges.store import ARTIFACT_KIND, CHUNK_MANIFEST_KIND, Store
from layerkit.edges.upstream import Upstream
from layerkit.errors import (
    FormatError,
    IntegrityError,
    NotFoundError,
    StoreChangedError,
    StoreError,
)
from layerkit.formats import oci
from layerkit.formats.chunkmanifest import (
    RAW,
    parse_chunk_manifest,
    parse_root,
    serialize_chunk_manifest,
)
from layerkit.formats.deflate import compress
from layerkit.formats.plan import (
    BLOB,
    FORM,
    PACKED,
    PLAIN_PART,
    UPDATE,
    LayerPlan,
    LayerWant,
    Plan,
    plan_pull,
    prefers_documents,
    prefers_plain,
    replan,
)
from layerkit.formats.reference import Reference
from layerkit.formats.updating import NewLayer, plain_of_form
from layerkit.jobs.pull.documents import REFUSED, Check, WantedImage, host_platform
from layerkit.jobs.pull.fetching import Fetcher, Progress
from layerkit.jobs.pull.rates import Stopwatch
from layerkit.jobs.pull.rebuilding import rebuild_forms
from layerkit.jobs.pull.sharing import alone
from layerkit.jobs.pull.signatures import make_check
from layerkit.jobs.pull.updates import measure_update, try_update

__all__ = [
    "LayerPlan",
    "LayerWant",
    "Part",
    "Plan",
    "PullResult",
    "host_platform",
    "make_check",
    "plan_pull",
    "pull",
    "rebuild_forms",
]

KEEP_SIZE: Final = 256 << 20  # bytes of plain tars kept between verifying and materialising
DELTA_PART: Final = 0.1  # of the plain bytes: an update that moves more brings layers whole
_log = logging.getLogger(__name__)


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
    plain_count: int = 0  # layers that came as plain blobs: `rebuild_forms` makes their forms


@dataclass(frozen=True, slots=True)
class Part:
    """Which layers to write into a file tree: from `first` up to `end`; `start` is the tree of
    those below `first` (`edges.rootfs.extract_layers`)."""

    first: int
    end: int
    start: Path | None = None


ChoosePart = Callable[[Sequence[Digest]], Part]  # by the diff_ids of all layers


@dataclass(frozen=True, slots=True)
class Output:
    """Where a pulled image is written to, besides the store: an OCI layout, a file tree (of all
    layers, or those that `part` chooses)."""

    layout: Path | None = None
    rootfs: Path | None = None
    part: ChoosePart | None = None
    limits: Limits = field(default_factory=Limits)  # of the file tree
    rights: Rights = field(default_factory=Rights)

    @property
    def is_wanted(self) -> bool:
        return self.layout is not None or self.rootfs is not None


def pull(
    ref: Reference,
    remote: Upstream,
    store: Store,
    *,
    disk: Disk | None = None,
    output: Path | None = None,
    rootfs: Path | None = None,
    part: ChoosePart | None = None,
    limits: Limits | None = None,
    rights: Rights | None = None,
    platform: oci.Platform | None = None,
    dry_run: bool = False,
    fewest_bytes: bool = False,
    progress: Progress | None = None,
    check: Check | None = None,
    now: Callable[[], float] = time.monotonic,
) -> PullResult:
    """Pull `ref`; then write an OCI layout (`output`) and a file tree (`rootfs`) if asked to.
    `limits` and `rights` are those of the file tree. With `fewest_bytes` the time that bytes take
    to unpack does not count. `check` (`make_check`) raises unless what the reference names may be
    used: asked before anything is, also of what is held."""
    started = now()
    image = WantedImage(ref.tagged, remote, store, platform or host_platform(), check=check)
    target = Output(output, rootfs, part, limits or Limits(), rights or Rights())
    before = (remote.bytes_moved, remote.request_count)
    run = _Pull(
        image,
        Fetcher(ref.repository, remote, store, progress),
        Stopwatch(store, remote),
        keeps=target.is_wanted and not dry_run,
        fewest_bytes=fewest_bytes,
    )
    with store.session():
        try:
            planned_size = run.bring(dry_run=dry_run)
            if not dry_run:
                run.write(target, disk or Disk())
        except StoreChangedError as exc:  # evicted or dropped meanwhile, or found damaged
            _log.info("again, from what is here now: %s", exc.message)
            run.begin_anew()
            planned_size = run.bring(dry_run=dry_run)
            if not dry_run:
                run.write(target, disk or Disk())
    return replace(
        run.describe(),
        dry_run=dry_run,
        moved_size=remote.bytes_moved - before[0],
        request_count=remote.request_count - before[1],
        planned_size=planned_size,
        seconds=now() - started,
    )


@dataclass(slots=True)
class _Pull:
    """The state of one pull."""

    image: WantedImage
    fetcher: Fetcher
    watch: Stopwatch
    keeps: bool  # plain tars will be written out
    fewest_bytes: bool
    wants: list[LayerWant] = field(default_factory=list)
    plan: Plan = field(default_factory=lambda: Plan((), 0, 0, 0, 0))
    plain_count: int = 0
    _plains: dict[Digest, bytes] = field(default_factory=dict)
    _verified: set[Digest] = field(default_factory=set)  # diff_ids of layers that came whole

    @property
    def remote(self) -> Upstream:
        return self.image.remote

    @property
    def store(self) -> Store:
        return self.image.store

    def describe(self) -> PullResult:
        """What was done, but for what only the caller knows."""
        image, fetcher = self.image, self.fetcher
        return PullResult(
            str(image.ref),
            image.top,
            image.up_to_date,
            dry_run=False,
            moved_size=0,
            request_count=0,
            fetched_count=fetcher.fetched_count,
            held_count=self.plan.held_count,
            planned_size=0,
            whole_size=sum(blob.size for blob in image.manifest.layers),
            seconds=0.0,
            refetched=tuple(str(chunk) for chunk in fetcher.refetched),
            plain_count=self.plain_count,
        )

    # --- which way ---------------------------------------------------------------------------

    def bring(self, *, dry_run: bool) -> int:
        """Have the image in the store; returns the bytes that were planned, or would move."""
        if dry_run:
            return self._look()
        is_first = not held.list_versions(self.store, self.image.ref)
        with alone(self.store, self.image.ref.repository, is_first=is_first):
            return self._bring()

    def _look(self) -> int:
        """The bytes that would move."""
        image, before = self.image, self.remote.bytes_moved
        way = self._choose_way()
        size = measure_update(image) if way == UPDATE else None
        image.resolve()
        if size is not None:
            return size
        if image.up_to_date:
            return 0
        self._make_plan(plainly=way == BLOB)
        return self.remote.bytes_moved - before + self.plan.planned_size

    def _bring(self) -> int:
        image, before = self.image, self.remote.bytes_moved
        way = self._choose_way()
        if way != UPDATE or not self._try_update():
            self._drop_layers()
            image.resolve()
        if image.up_to_date:
            self.store.touch(image.top)
            return 0
        self._make_plan(plainly=way == BLOB)
        planned_size = self.remote.bytes_moved - before + self.plan.planned_size
        self._make_room()
        self._fetch()
        self._check_layers()
        self._commit()
        self.watch.keep()
        return planned_size

    def _make_room(self) -> None:
        """Evict what was not used for long, if what comes does not fit into the store's quota."""
        size = sum(
            sum(chunk.size for chunk in layer.chunks) or int(layer.want.plain_size)
            for layer in self.plan.layers
            if layer.method != "held"
        )
        if size:
            self.store.make_room(size, held.list_versions(self.store, self.image.ref)[:1])

    def _choose_way(self) -> str:
        """One request for an update, the documents and then layer by layer, or the plain blobs: by
        what the versions held here suggest. Nothing is known of the new one yet."""
        if self.fewest_bytes:
            return UPDATE
        rates = self.watch.rates()
        versions = held.list_versions(self.store, self.image.ref)
        if not versions:
            is_first = not held.list_held(self.store, self.image.ref)
            return "documents" if is_first and prefers_documents(rates) else UPDATE
        size, plain_size = self._measure_code(versions[0])
        return BLOB if size and prefers_plain(rates, size, plain_size) else UPDATE

    def _measure_code(self, top: Digest) -> tuple[int, int]:
        """Bytes of the layers of a held version that a new one will have anew, and their plain
        bytes; zeros where that is not known."""
        blobs = self.store.list_blobs(top, CHUNK_MANIFEST_KIND)
        roots = [parse_root(self.store.get_blob(blob)) for blob in blobs]
        code = [root for root in roots if root.transform != RAW] or roots
        plain_size = sum(root.plain_size for root in code)
        return int(plain_size / PLAIN_PART), plain_size

    # --- bytes -------------------------------------------------------------------------------

    def _try_update(self) -> bool:
        before = self.remote.bytes_moved
        with self.watch.work(UPDATE) as sizes:
            within = None if self.fewest_bytes else self.watch.rates().patience
            done = try_update(self.image, self.fetcher, self._take_made, within)
            sizes += map(len, self._plains.values())
            if self.remote.bytes_moved - before > DELTA_PART * sum(sizes):
                sizes.clear()  # no deltas, but layers whole: not what updates are like
        return done

    def _make_plan(self, *, plainly: bool) -> None:
        """Read the documents; decide how each layer comes."""
        self.wants = self.image.read_wants(plainly=plainly)
        here, ids = set[bytes](), set[bytes]()
        for want in self.wants:
            if want.chunk_manifest is not None:
                which = here if want.diff_id in self._verified else ids
                which.update(want.chunk_manifest.list_raw_ids())
        rates = None if self.fewest_bytes else self.watch.rates()
        self.plan = plan_pull(self.wants, here | self.store.has_raw(ids), rates)

    def _fetch(self) -> None:
        """Fetch what the plan says; each part is durable in the store before the next."""
        if self.fetcher.progress is not None:
            total = sum(chunk.size for layer in self.plan.layers for chunk in layer.chunks)
            total += sum(la.planned_size for la in self.plan.layers if not la.chunks)
            self.fetcher.progress.total(total)
        for index, layer in enumerate(self.plan.layers):
            if layer.method == "held":
                continue
            if not self.fewest_bytes and index:  # what came before has shown more of the line
                layer = replan(layer, self.watch.rates())
            with self.watch.work(layer.method) as sizes:
                self._fetch_layer(index, layer)
                manifest = self.wants[index].chunk_manifest
                sizes.append(manifest.plain_size if manifest is not None else 0)

    def _fetch_layer(self, index: int, layer: LayerPlan) -> None:
        if layer.method == BLOB:
            self._take_plain(index)
        elif layer.want.chunk_manifest is None:
            self._take_whole(index, layer.want)
        else:
            self._take_chunks(index, layer)

    def _take_chunks(self, index: int, layer: LayerPlan) -> None:
        """The chunks of a layer that are missing; its plain blob where they cannot be had."""
        is_whole = layer.method in (FORM, PACKED)
        near = self.image.near.get(layer.want.diff_id, {})
        try:
            chunks = self.fetcher.fetch_form(layer) if is_whole else list(layer.chunks)
            self.fetcher.fetch_batches(layer.want, chunks, near)
        except REFUSED as exc:
            if self.remote.chunk_server is not None:
                raise
            _log.warning("layer %s, plainly: %s", layer.want.diff_id.short, exc.message)
            self._take_plain(index)

    def _take_whole(self, index: int, want: LayerWant) -> None:
        """One layer by its form; by its plain blob when the form is not what it should be."""
        try:
            made = self.fetcher.fetch_whole(want)
        except REFUSED as exc:
            _log.warning("layer %s, pulling it plainly: %s", want.diff_id.short, exc.message)
            self._take_plain(index)
            return
        self._take_made(made)
        self.wants[index] = replace(want, chunk_manifest=made.chunk_manifest)

    def _take_made(self, made: NewLayer) -> None:
        """Keep what a form gave: its chunk manifest for the commit, its tar while it fits."""
        data, diff_id = made.chunk_manifest_data, made.chunk_manifest.diff_id
        self.image.blobs[sha256_digest(data)] = (data, CHUNK_MANIFEST_KIND)
        self.image.layers[diff_id] = made.chunk_manifest
        self._verified.add(diff_id)
        self._keep_plain(diff_id, made.plain)

    def begin_anew(self) -> None:
        """Forget what was read and what came by now."""
        self._drop_layers()
        self.image.forget()

    def _drop_layers(self) -> None:
        """What an update brought, when it was refused after all."""
        self._plains.clear()
        self._verified.clear()
        self.wants.clear()
        self.plain_count = 0

    def _keep_plain(self, diff_id: Digest, plain: bytes) -> None:
        if self.keeps and sum(map(len, self._plains.values())) + len(plain) <= KEEP_SIZE:
            self._plains[diff_id] = plain

    def _take_plain(self, index: int) -> None:
        """One layer by its plain blob; its chunk manifest is made here."""
        want = self.wants[index]
        manifest = self.fetcher.fetch_plain(want)
        data = serialize_chunk_manifest(manifest)
        self.image.blobs[sha256_digest(data)] = (data, CHUNK_MANIFEST_KIND)
        self.wants[index] = LayerWant(want.blob, want.diff_id, manifest)
        self._verified.add(want.diff_id)

    # --- assembling --------------------------------------------------------------------------

    def assemble(self, want: LayerWant) -> bytes:
        """The plain tar of a layer from the store, verified; damaged chunks are fetched again."""
        kept = self._plains.get(want.diff_id)
        if kept is not None:
            return kept
        manifest = want.chunk_manifest
        assert manifest is not None
        form = self.fetcher.read_form(manifest)
        plain = plain_of_form(manifest.transform, form, manifest.plain_size)
        check_digest(plain, manifest.diff_id, f"layer {manifest.diff_id.short}")
        self._keep_plain(want.diff_id, plain)
        return plain

    def _check_layers(self) -> None:
        """Every layer's tar; one that its chunks do not give after all is pulled plainly."""
        for index, want in enumerate(self.wants):
            if want.diff_id in self._verified:
                continue
            try:
                self.assemble(want)
            except (FormatError, IntegrityError) as exc:
                _log.warning("layer %s, pulling it plainly: %s", want.diff_id.short, exc.message)
                if want.chunk_manifest is not None:
                    listed = serialize_chunk_manifest(want.chunk_manifest)
                    self.image.blobs.pop(sha256_digest(listed), None)
                self._take_plain(index)
                self.assemble(self.wants[index])

    def _commit(self) -> None:
        """Small blobs and the image, in one step."""
        image = self.image
        self.plain_count = sum(map(self._is_plain, self.wants)) if image.has_artifact else 0
        if self.plain_count:  # the artifact would promise forms that are not here
            for digest, (_, kind) in list(image.blobs.items()):
                if kind == ARTIFACT_KIND:
                    del image.blobs[digest]
        self.store.commit_image(str(image.ref), image.top, image.blobs, image.blobs)

    def _is_plain(self, want: LayerWant) -> bool:
        """Is the layer here as its tar, though another form may have been published?"""
        manifest = want.chunk_manifest
        if manifest is None or manifest.transform != RAW:
            return False
        if want.listed is None:
            return want.diff_id in self._verified
        return sha256_digest(serialize_chunk_manifest(manifest)) != want.listed.digest

    def _load_stored(self) -> None:
        """Layers of an image that the store holds, for materialising."""
        manifest = self.image.manifest
        config = oci.parse_config(self.store.get_blob(manifest.config.digest))
        stored = {}
        for digest in self.store.list_blobs(self.image.top, CHUNK_MANIFEST_KIND):
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

    def write(self, target: Output, disk: Disk) -> None:
        """Write the image to where it is wanted."""
        if target.is_wanted and not self.wants:
            self._load_stored()
        if target.layout is not None:
            self._write_layout(Layout(target.layout, disk))
        if target.rootfs is not None:
            part = Part(0, len(self.wants))
            if target.part is not None:
                part = target.part([want.diff_id for want in self.wants])
            try:
                self._write_tree(target, target.rootfs, part, disk)
            except (FormatError, StoreError) as exc:
                if part.start is None:
                    raise
                _log.info("the whole tree anew: %s (%s)", exc.message, exc.cause)
                self._write_tree(target, target.rootfs, Part(0, part.end), disk)

    def _write_tree(self, target: Output, path: Path, part: Part, disk: Disk) -> None:
        layers = self._plain_layers(target.limits, part)
        extract_layers(layers, path, disk, target.limits, target.rights, part.start)

    def _plain_layers(self, limits: Limits, part: Part) -> Iterator[bytes]:
        """The layers one after the other; each is let go when it was written."""
        total = 0
        for index, want in enumerate(self.wants[: part.end]):
            assert want.chunk_manifest is not None
            total += want.chunk_manifest.plain_size
            limits.check_size(total)  # before it is put together
            if index >= part.first:
                yield self.assemble(want)
            self._plains.pop(want.diff_id, None)

    def _write_layout(self, layout: Layout) -> None:
        """The image with the digests that it was published with, as an OCI layout."""
        manifest = self.image.manifest
        config = self.image.read_small(manifest.config.digest, manifest.config.size)
        raw = self.image.read_small(self.image.image.digest, self.image.image.size, True)
        with layout.batch():
            for want in self.wants:
                layout.put_blob(self._layer_blob(want), want.blob.media_type)
            layout.put_blob(config, manifest.config.media_type)
            layout.put_blob(raw, self.image.image.media_type)
            layout.commit(self.image.ref, self.image.image)

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
        return self.remote.fetch_blob(self.fetcher.name, want.blob.digest, want.blob.size)
