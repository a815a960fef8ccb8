"""`layerkit pull`: bring an image into the store, moving only what the node lacks.

resolve -> documents -> plan (pure) -> fetch -> verify each chunk -> assemble -> verify form digest
and diff_id -> commit -> materialise. What was fetched stays fetched: after a crash or a cut the
next pull goes on. The chunks artifact only says how to move bytes; what is accepted is decided by
the image's own manifest and diff_ids. Memory: one layer's form and plain tar, and plain tars up to
KEEP_SIZE.

`updates` takes all in one answer where the server gives one; else `documents` reads what the
reference names, and `fetching` moves bytes into the store. Here is the order of things, and the way
back from the store to layers.
"""

from __future__ import annotations

import logging
import platform as host
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from layerkit.digest import Digest, check_digest, sha256_digest
from layerkit.edges.disk import Disk
from layerkit.edges.layout import Layout
from layerkit.edges.remote import Remote
from layerkit.edges.rootfs import extract_layers
from layerkit.edges.store import CHUNK_MANIFEST_KIND, Store
from layerkit.errors import FormatError, IntegrityError, NotFoundError
from layerkit.formats import oci
from layerkit.formats.chunkmanifest import parse_chunk_manifest, serialize_chunk_manifest
from layerkit.formats.deflate import compress
from layerkit.formats.plan import LayerPlan, LayerWant, Plan, plan_pull
from layerkit.formats.reference import Reference
from layerkit.formats.updating import NewLayer, plain_of_form
from layerkit.jobs.pull.documents import REFUSED, WantedImage
from layerkit.jobs.pull.fetching import Fetcher, Progress
from layerkit.jobs.pull.updates import measure_update, try_update

__all__ = ["LayerPlan", "LayerWant", "Plan", "PullResult", "host_platform", "plan_pull", "pull"]

KEEP_SIZE: Final = 256 << 20  # bytes of plain tars kept between verifying and materialising
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
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


def host_platform() -> oci.Platform:
    """Linux on this machine's processor."""
    return oci.Platform("linux", _MACHINES.get(host.machine(), host.machine().lower()))


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
    image = WantedImage(ref.tagged, remote, store, platform or host_platform())
    run = _Pull(image, Fetcher(ref.repository, remote, store, progress))
    before = (remote.bytes_moved, remote.request_count)
    planned_size = 0
    with store.session():
        update_size = measure_update(image) if dry_run else None
        if dry_run or not try_update(image, run.fetcher, run.take_made):
            run.forget_layers()
            image.resolve()
        if update_size is not None:
            planned_size = update_size
        elif not image.up_to_date:
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
        image.top,
        image.up_to_date,
        dry_run,
        remote.bytes_moved - before[0],
        remote.request_count - before[1],
        run.fetcher.fetched_count,
        run.plan.held_count,
        planned_size,
        sum(blob.size for blob in image.manifest.layers),
        now() - started,
        tuple(str(chunk) for chunk in run.fetcher.refetched),
    )


@dataclass(slots=True)
class _Pull:
    """The state of one pull."""

    image: WantedImage
    fetcher: Fetcher
    wants: list[LayerWant] = field(default_factory=list)
    plan: Plan = field(default_factory=lambda: Plan((), 0, 0, 0, 0))
    _plains: dict[Digest, bytes] = field(default_factory=dict)

    @property
    def remote(self) -> Remote:
        return self.image.remote

    @property
    def store(self) -> Store:
        return self.image.store

    # --- bytes -------------------------------------------------------------------------------

    def make_plan(self) -> None:
        """Read the documents; decide how each layer comes."""
        self.wants = self.image.read_wants()
        ids = {
            chunk.id
            for want in self.wants
            if want.chunk_manifest
            for chunk in want.chunk_manifest.chunks
        }
        self.plan = plan_pull(self.wants, self.store.has(ids))

    def fetch(self) -> None:
        """Fetch what the plan says; each part is durable in the store before the next."""
        if self.fetcher.progress is not None:
            total = sum(chunk.size for layer in self.plan.layers for chunk in layer.chunks)
            total += sum(la.planned_size for la in self.plan.layers if not la.chunks)
            self.fetcher.progress.total(total)
        for index, layer in enumerate(self.plan.layers):
            if layer.method == "blob":
                self._take_plain(index)
            elif layer.want.chunk_manifest is None:
                self._take_whole(index)
            elif layer.method != "held":
                whole = layer.method == "form"
                chunks = self.fetcher.fetch_form(layer) if whole else list(layer.chunks)
                near = self.image.near.get(layer.want.diff_id, {})
                self.fetcher.fetch_batches(layer.want, chunks, near)

    def _take_whole(self, index: int) -> None:
        """One layer by its form; by its plain blob when the form is not what it should be."""
        want = self.wants[index]
        try:
            made = self.fetcher.fetch_whole(want)
        except REFUSED as exc:
            _log.warning("layer %s, pulling it plainly: %s", want.diff_id.short, exc.message)
            self._take_plain(index)
            return
        self.take_made(made)
        self.wants[index] = replace(want, chunk_manifest=made.chunk_manifest)

    def take_made(self, made: NewLayer) -> None:
        """Keep what a form gave: its chunk manifest for the commit, its tar while it fits."""
        data = made.chunk_manifest_data
        self.image.blobs[sha256_digest(data)] = (data, CHUNK_MANIFEST_KIND)
        self._keep_plain(made.chunk_manifest.diff_id, made.plain)

    def forget_layers(self) -> None:
        """What an update brought, when it was refused after all."""
        self._plains.clear()

    def _keep_plain(self, diff_id: Digest, plain: bytes) -> None:
        if sum(map(len, self._plains.values())) + len(plain) <= KEEP_SIZE:
            self._plains[diff_id] = plain

    def _take_plain(self, index: int) -> None:
        """One layer by its plain blob; its chunk manifest is made here."""
        want = self.wants[index]
        manifest = self.fetcher.fetch_plain(want)
        data = serialize_chunk_manifest(manifest)
        self.image.blobs[sha256_digest(data)] = (data, CHUNK_MANIFEST_KIND)
        self.wants[index] = LayerWant(want.blob, want.diff_id, manifest)

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

    def check_layers(self) -> None:
        """Every layer's tar; one that its chunks do not give after all is pulled plainly."""
        for index, want in enumerate(self.wants):
            try:
                self.assemble(want)
            except (FormatError, IntegrityError) as exc:
                _log.warning("layer %s, pulling it plainly: %s", want.diff_id.short, exc.message)
                if want.chunk_manifest is not None:
                    listed = serialize_chunk_manifest(want.chunk_manifest)
                    self.image.blobs.pop(sha256_digest(listed), None)
                self._take_plain(index)
                self.assemble(self.wants[index])

    def commit(self) -> None:
        """Small blobs, then the one commit point."""
        for data, kind in self.image.blobs.values():
            self.store.put_blob(data, kind)
        self.store.commit_image(str(self.image.ref), self.image.top, self.image.blobs)

    def load_stored(self) -> None:
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

    def plain_layers(self) -> Iterator[bytes]:
        return (self.assemble(want) for want in self.wants)

    def write_layout(self, layout: Layout) -> None:
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
