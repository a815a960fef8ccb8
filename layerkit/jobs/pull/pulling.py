"""One pull, step by step: which way, bytes, checks, commit, and writing out (`Pull`).

`pull` (the package) says in which order. What is wanted and known of an image is in `documents`,
bytes move in `fetching` and `updates`; the file tree is made in `trees`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from layerkit.digest import Digest, check_digest, sha256_digest
from layerkit.edges import held
from layerkit.edges.disk import Disk
from layerkit.edges.layout import Layout
from layerkit.edges.rootfs import StagedTree
from layerkit.edges.spares import Spares
from layerkit.edges.store import ARTIFACT_KIND, CHUNK_MANIFEST_KIND, Store
from layerkit.edges.upstream import Upstream
from layerkit.errors import (
    FormatError,
    IntegrityError,
    NotFoundError,
    StoreError,
)
from layerkit.formats import oci
from layerkit.formats.chunkmanifest import (
    RAW,
    ChunkManifest,
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
    prefers_unpacked,
    replan,
)
from layerkit.formats.updating import NewLayer, plain_of_form
from layerkit.jobs.pull.documents import REFUSED, WantedImage
from layerkit.jobs.pull.fetching import Fetcher
from layerkit.jobs.pull.rates import Stopwatch
from layerkit.jobs.pull.sharing import alone
from layerkit.jobs.pull.trees import Target, TreeWriter
from layerkit.jobs.pull.updates import measure_update, try_update

__all__ = ["Output", "Pull", "PullResult"]

KEEP_SIZE: Final = 256 << 20  # bytes of plain tars kept between verifying and materialising
FIRST_PATIENCE: Final = 5.0  # seconds: a delta against three other images is made in 0.5 to 3
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
    wants_spare: bool = False  # nothing is made ready for the next version: `make_spare`


@dataclass(frozen=True, slots=True)
class Output:
    """Where a pulled image is written to, besides the store: an OCI layout, a file tree."""

    disk: Disk
    layout: Path | None = None
    tree: Target | None = None

    @property
    def is_wanted(self) -> bool:
        return self.layout is not None or self.tree is not None


def _name_manifest(want: LayerWant) -> Digest | None:
    """The digest of the layer's chunk manifest."""
    if want.chunk_manifest is None:
        return None
    return sha256_digest(serialize_chunk_manifest(want.chunk_manifest))


@dataclass(slots=True)
class Pull:
    """The state of one pull, from `bring` to `write`; `close` in any case."""

    image: WantedImage
    fetcher: Fetcher
    watch: Stopwatch
    output: Output
    fewest_bytes: bool = False
    keeps_version: bool = False
    wants_unpacked: bool = False  # of forms in an update
    is_patient: bool = False  # it waits for what the server has to make
    wants: list[LayerWant] = field(default_factory=list)
    plan: Plan = field(default_factory=lambda: Plan((), 0, 0, 0, 0))
    plain_count: int = 0
    _plains: dict[Digest, bytes] = field(default_factory=dict)
    _verified: set[Digest] = field(default_factory=set)  # diff_ids of layers that came whole
    _plainly: set[Digest] = field(default_factory=set)  # those that came as their blob, by the plan
    _tree: TreeWriter | None = None

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
            wants_spare=self._wants_spare(),
        )

    def _wants_spare(self) -> bool:
        spares, tree = self.fetcher.spares, self.output.tree
        top = self.wants[-1].chunk_manifest if self.wants else None
        if spares is None or top is None:
            return False
        if not spares.has_form(top.form_digest, top.form_size):
            return True
        if tree is None or not tree.can_start or len(self.wants) < 2:
            return False
        return not spares.has([want.diff_id for want in self.wants[:-1]])

    # --- which way ---------------------------------------------------------------------------

    def bring(self, *, dry_run: bool) -> int:
        """Have the image in the store; returns the bytes that were planned, or would move."""
        if dry_run:
            return self._look()
        versions = held.list_versions(self.store, self.image.ref)
        with (
            alone(self.store, self.image.ref.repository, is_first=not versions),
            self._reading(versions[:1]),
        ):
            return self._bring()

    def _reading(self, tops: Sequence[Digest]) -> contextlib.ExitStack:
        """What the new version is made from is not evicted for it."""
        stack = contextlib.ExitStack()
        for top in tops if self.store.quota else ():
            stack.enter_context(self.store.use(top))
        return stack

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
        if self.fewest_bytes or not self.remote.has_layers:
            return UPDATE
        versions = held.list_versions(self.store, self.image.ref)
        if not versions:
            return self._choose_first_way()
        rates = self.watch.rates()
        size, plain_size = self._measure_code(versions[0])
        return BLOB if size and prefers_plain(rates, size, plain_size) else UPDATE

    def _choose_first_way(self) -> str:
        """Of what no version is held. Few bytes come first: forms come unpacked only where the
        line was seen to be so fast that packed ones are slower, and a delta against images of
        other repositories is waited for."""
        self.is_patient = True
        if held.list_held(self.store, self.image.ref):
            return UPDATE
        rates = self.watch.rates()
        if prefers_documents(rates):
            return "documents"
        self.wants_unpacked = prefers_unpacked(rates)
        return UPDATE

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
            if within is not None and self.is_patient:
                within = max(within, FIRST_PATIENCE)
            within = 0.0 if self.wants_unpacked else within
            done = try_update(self.image, self.fetcher, self, within)
            sizes += map(len, self._plains.values())
            if self.remote.bytes_moved - before > DELTA_PART * sum(sizes):
                sizes.clear()  # no deltas, but layers whole: not what updates are like
        return done

    def _make_plan(self, *, plainly: bool) -> None:
        """Read the documents; decide how each layer comes."""
        self.wants = self.image.read_wants(plainly=plainly)
        ids = set[bytes]()
        for want in self.wants:
            if want.chunk_manifest is not None and want.diff_id not in self._verified:
                ids.update(want.chunk_manifest.list_raw_ids())
        rates = None if self.fewest_bytes else self.watch.rates()
        self.plan = plan_pull(self.wants, self.store.has_raw(ids), rates, self._verified)

    def _fetch(self) -> None:
        """Fetch what the plan says; each part is durable in the store before the next."""
        if self.fetcher.progress is not None:
            total = sum(chunk.size for layer in self.plan.layers for chunk in layer.chunks)
            total += sum(la.planned_size for la in self.plan.layers if not la.chunks)
            self.fetcher.progress.total(total)
        self.begin([want.diff_id for want in self.wants])
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
        self.take(made)
        if index + 1 < len(self.wants):
            self.image.keep_begun(made.chunk_manifest)
        self.wants[index] = replace(want, chunk_manifest=made.chunk_manifest)

    def begin(self, diff_ids: Sequence[Digest]) -> None:
        """These are the layers: the file tree is begun, if one is wanted."""
        if self.output.tree is not None and self._tree is None:
            self._tree = TreeWriter(self.output.tree, diff_ids)

    def take(self, made: NewLayer) -> None:
        """Keep what came whole: its chunk manifest for the commit, its tar while it fits."""
        data, diff_id = made.chunk_manifest_data, made.chunk_manifest.diff_id
        self.image.blobs[sha256_digest(data)] = (data, CHUNK_MANIFEST_KIND)
        self.image.layers[diff_id] = made.chunk_manifest
        self._verified.add(diff_id)
        self._keep_plain(diff_id, made.plain)
        self._feed_tree(self._find_kept)

    def begin_anew(self) -> None:
        """Forget what was read and what came by now."""
        self._drop_layers()
        self.image.forget()

    def close(self) -> None:
        """Nothing of a file tree that is not shown stays."""
        if self._tree is not None:
            self._tree.abandon()
            self._tree = None

    def _drop_layers(self) -> None:
        """What an update brought, when it was refused after all."""
        self._plains.clear()
        self._verified.clear()
        self._plainly.clear()
        self.close()
        self.wants.clear()
        self.plain_count = 0

    def _keep_plain(self, diff_id: Digest, plain: bytes) -> None:
        if self.output.is_wanted and sum(map(len, self._plains.values())) + len(plain) <= KEEP_SIZE:
            self._plains[diff_id] = plain

    def _take_plain(self, index: int) -> None:
        """One layer by its plain blob; its chunk manifest is made here."""
        want = self.wants[index]
        made = self.fetcher.fetch_plain(want)
        if want.listed is not None:  # its chunks are not here: the image must not hold it
            self.image.blobs.pop(want.listed.digest, None)
        self.take(made)
        self.fetcher.put_form(made.chunk_manifest, made.form)
        if index + 1 < len(self.wants):
            self.image.keep_begun(made.chunk_manifest)
        self.wants[index] = LayerWant(want.blob, want.diff_id, made.chunk_manifest)
        self._plainly.add(want.diff_id)

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
        """Every layer's tar; one that its chunks do not give after all is pulled plainly. Not read
        again is what a whole image has by the same chunk manifest: that was proven when it came."""
        proven = held.list_proven(self.store, self.image.ref)
        for index, want in enumerate(self.wants):
            if want.diff_id in self._verified or _name_manifest(want) in proven:
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
        others = [str(replace(image.ref, digest=image.top))] if self.keeps_version else []
        self.store.commit_image(str(image.ref), image.top, image.blobs, image.blobs, others)

    def _is_plain(self, want: LayerWant) -> bool:
        """Is the layer here as its tar, though another form may have been published?"""
        manifest = want.chunk_manifest
        if manifest is None or manifest.transform != RAW:
            return False
        if want.listed is None:
            return want.diff_id in self._plainly
        return sha256_digest(serialize_chunk_manifest(manifest)) != want.listed.digest

    def read_stored(self) -> None:
        """Layers of an image that the store holds, for materialising."""
        if self.wants:
            return
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

    def make_spare_form(self, spares: Spares) -> bool:
        """Keep the form of the highest layer in one piece; False if it is there."""
        manifest = self.wants[-1].chunk_manifest if self.wants else None
        if manifest is None or spares.has_form(manifest.form_digest, manifest.form_size):
            return False
        spares.put_form(manifest.form_digest, self.fetcher.read_form(manifest))
        return True

    # --- materialising -----------------------------------------------------------------------

    def write(self) -> None:
        """Write the image to where it is wanted."""
        if not self.output.is_wanted:
            return
        self.read_stored()
        if self.output.layout is not None:
            self._write_layout(Layout(self.output.layout, self.output.disk))
        if self.output.tree is not None:
            self.stage().publish()
            self._tree = None

    def stage(self) -> StagedTree:
        """The file tree, whole and durable beside its place."""
        target, diff_ids = self.output.tree, [want.diff_id for want in self.wants]
        assert target is not None
        self.begin(diff_ids)
        assert self._tree is not None
        try:
            self._feed_tree(self._read_layer)
            return self._tree.finish()
        except (FormatError, StoreError) as exc:
            if not self._tree.has_spare:
                raise
            _log.info("the whole tree anew: %s (%s)", exc.message, exc.cause)
            self._tree.abandon()
            self._tree = TreeWriter(replace(target, spares=None), diff_ids)
            self._feed_tree(self._read_layer)
            return self._tree.finish()

    def _feed_tree(self, find: Callable[[int, Digest], bytes | None]) -> None:
        """Hand the writer what it wants next, as long as `find` has it."""
        tree = self._tree
        while tree is not None and tree.next < tree.end:
            diff_id = tree.diff_ids[tree.next]
            plain = find(tree.next, diff_id)
            if plain is None:
                return
            tree.feed(plain)
            if self.output.layout is None:
                self._plains.pop(diff_id, None)

    def _find_kept(self, _: int, diff_id: Digest) -> bytes | None:
        """A layer that came, or that the store has under the chunk manifest that is known."""
        plain, manifest = self._plains.get(diff_id), self.image.layers.get(diff_id)
        if plain is not None or diff_id in self._verified:
            return plain
        if manifest is None:
            manifest = held.find_layers(self.store, self.image.ref, {diff_id}).get(diff_id)
        if manifest is None or not self._fits(manifest):
            return None
        try:
            form = held.read_form(self.store, manifest)
            plain = plain_of_form(manifest.transform, form, manifest.plain_size)
            check_digest(plain, diff_id, f"layer {diff_id.short}")
        except REFUSED:
            return None  # damaged: `_read_layer` mends it
        return plain

    def _read_layer(self, index: int, _: Digest) -> bytes:
        want = self.wants[index]
        assert want.chunk_manifest is not None
        if not self._fits(want.chunk_manifest):  # before it is put together
            raise FormatError(f"layer {want.diff_id.short} is over the limit of the file tree")
        return self.assemble(want)

    def _fits(self, manifest: ChunkManifest) -> bool:
        tree = self.output.tree
        return tree is not None and manifest.plain_size <= tree.limits.total_size

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
