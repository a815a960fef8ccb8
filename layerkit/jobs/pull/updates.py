"""An update on the node: one request for all that lies between what is held and what is wanted.

Everything in it is checked as if it had come the plain way. A stream whose documents are refused
means that way for all; a layer that is refused, missing or cut off means it for that layer. Each
part is durable in the store before the next is read, so a cut costs one part at most: where the
connection cannot go on, the rest comes chunk by chunk. Memory: one part, and what it makes.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from layerkit.digest import Digest, sha256_digest
from layerkit.edges import held
from layerkit.edges.store import ARTIFACT_KIND, CHUNK_MANIFEST_KIND
from layerkit.errors import IntegrityError, NotFoundError, RemoteError
from layerkit.formats import oci
from layerkit.formats.chunkmanifest import (
    ChunkManifest,
    parse_chunk_manifest,
    serialize_chunk_manifest,
)
from layerkit.formats.plan import LayerWant
from layerkit.formats.update import BLOB, CHUNKS, FORM, LIST, PACKED, Entry, UpdateReader
from layerkit.formats.updateparts import (
    PackedPart,
    read_begun_form,
    read_chunks,
    read_form,
    read_list,
)
from layerkit.formats.updating import (
    ImageLayer,
    NewLayer,
    check_manifest,
    chunker_of,
    layers_of,
)
from layerkit.jobs.pull.documents import REFUSED, WantedImage
from layerkit.jobs.pull.fetching import Fetcher, open_plain

__all__ = ["measure_update", "try_update"]

_log = logging.getLogger(__name__)


class Sink(Protocol):
    """Who gets what an update brings."""

    def begin(self, diff_ids: Sequence[Digest]) -> None:
        """All layers that the image has, before the first of them is taken; again for each."""

    def take(self, made: NewLayer) -> None:
        """A layer that came whole, and is verified."""


def measure_update(image: WantedImage) -> int | None:
    """Bytes of the update that a pull would get; None if it would get none."""
    have = held.list_held(image.store, image.ref)
    try:
        return image.remote.measure_update(
            image.ref.repository, image.ref_text, have, str(image.platform)
        )
    except NotFoundError:
        return None


def try_update(
    image: WantedImage,
    fetcher: Fetcher,
    sink: Sink,
    within: float | None = None,
) -> bool:
    """Ask once for what the images held here, of this repository and of others, lack of the wanted
    one; wait `within` seconds for what the server has to make (None: as long as it likes). `sink`
    gets each layer that came whole. False when there is no such update, or what it says of
    the image is refused: then the pull goes its plain way. What is missing after all is left to the
    plan."""
    if image.ref.digest is not None and image.store.is_complete(image.ref.digest):
        return False
    if image.remote.has_layers and _is_started(image):
        _log.info("going on with %s chunk by chunk", image.ref)
        return False
    have = held.list_held(image.store, image.ref)
    try:
        body = image.remote.open_update(
            image.ref.repository, image.ref_text, have, str(image.platform), within=within
        )
        if body is None:
            _take_first(image, have)
            return True
        reader, layers = _read_documents(image, fetcher.counted(body.parts), have)
        if body.digest not in (None, image.top):
            raise IntegrityError(
                "update of another image", got=str(image.top), want=str(body.digest)
            )
    except REFUSED as exc:
        _log.info("no update: %s", exc.message)
        image.forget()
        return False
    if not image.up_to_date:
        # what it brings takes no less room than on the line; StoreFullError ends the pull
        image.store.make_room(sum(entry.size for entry in reader.table), have[:1])
        taker = _Taker(image, fetcher, sink, have, layers)
        taker.take_parts(reader)
        taker.find_held()
    return True


def _is_started(image: WantedImage) -> bool:
    """Did an earlier pull leave parts of this image? Then an update would bring these again."""
    started = image.store.fact(_started(image))
    if not started:
        return False
    if not image.store.is_complete(Digest.parse(started)):
        image.resolve()
        if str(image.top) == started:
            image.is_begun = True
            return True
        image.forget()
    image.store.put_fact(_started(image), "")
    return False


def _started(image: WantedImage) -> str:
    """The fact that names the image of which a pull has stored parts."""
    return f"started {image.ref}"


def _take_first(image: WantedImage, have: list[Digest]) -> None:
    """The server says that the reference names the first image that was named."""
    if not have or image.ref.digest not in (None, have[0]):
        raise IntegrityError(
            "the server takes another image for the wanted one", want=str(image.ref.digest)
        )
    image.use_top(have[0], image.store.get_blob(have[0]))


def _read_documents(
    image: WantedImage, stream: Iterable[bytes], have: list[Digest]
) -> tuple[UpdateReader, list[ImageLayer]]:
    """The layers by the new documents, which are checked against each other and the reference, and
    kept for the commit. An answer that is cut off before it has them is refused."""
    try:
        reader = UpdateReader(stream)
        old = reader.old
        if old is not None and old not in have:
            raise IntegrityError("update builds on another image", got=str(old))
        olds = None if old is None else held.read_documents(image.store, old, image.platform)
        documents = reader.read_documents(olds)
    except RemoteError as exc:
        raise NotFoundError("the update is cut off", cause=exc.message) from exc
    top = sha256_digest(documents.top)
    if image.ref.digest not in (None, top):
        raise IntegrityError("update of another image", got=str(top), want=str(image.ref.digest))
    for data in (documents.top, documents.manifest, documents.config):
        if data:
            image.blobs[sha256_digest(data)] = (data, "")
    image.use_top(top, documents.top)
    layers = layers_of(documents)
    if documents.artifact:
        artifact = oci.parse_manifest(documents.artifact)
        if artifact.subject is None or artifact.subject.digest != image.image.digest:
            raise IntegrityError("update: chunks artifact of another image")
        image.blobs[sha256_digest(documents.artifact)] = (documents.artifact, ARTIFACT_KIND)
        image.artifact = artifact
    image.has_artifact = bool(documents.artifact)
    return reader, layers


@dataclass(slots=True)
class _Taker:
    """Puts the parts of one update into the store."""

    image: WantedImage
    fetcher: Fetcher
    sink: Sink
    named: list[Digest]  # images
    layers: list[ImageLayer]
    _lists: dict[int, ChunkManifest] = field(default_factory=dict)  # of layers that come in chunks
    _is_marked: bool = False
    _packed: PackedPart | None = None  # of the part that comes
    _near: list[tuple[bytes, ChunkManifest]] = field(default_factory=list)  # what it builds on

    def take_parts(self, reader: UpdateReader) -> None:
        """Part after part; one that is refused takes the rest of its layer with it."""
        if self.fetcher.progress is not None:
            self.fetcher.progress.total(sum(entry.size for entry in reader.table))
        refused: set[int] = set()
        last = reader.table[-1].layer if reader.table else 0
        try:
            for entry, data in reader.read_parts(self._listen):
                if entry.layer in refused:
                    continue
                try:
                    self._take_part(entry, data, entry.layer == last)
                except REFUSED as exc:
                    refused.add(entry.layer)
                    _log.warning("layer %d of the update is refused: %s", entry.layer, exc.message)
        except (*REFUSED, RemoteError) as exc:
            _log.warning("the rest of the update is missing: %s", exc.message)
            self._keep_begun(reader.read_begun())
            return
        if self._is_marked:
            self.image.store.put_fact(_started(self.image), "")

    def _listen(self, entry: Entry) -> Callable[[memoryview], None] | None:
        """Packed forms take longest to unpack: that is done while they come."""
        self._packed = PackedPart(entry.size) if entry.kind == PACKED else None
        return self._packed.hear if self._packed is not None else None

    def _keep_begun(self, begun: tuple[Entry, bytes] | None) -> None:
        """Store the chunks in a part that was cut off: the rest of its layer then comes in chunks,
        now or with the next pull."""
        if begun is None or begun[0].layer >= len(self.layers):
            return
        entry, data = begun
        layer, found = self.layers[entry.layer], list[tuple[Digest, bytes]]()
        with contextlib.suppress(*REFUSED):
            if entry.kind == FORM and layer.chunk_manifest is not None:
                found += read_begun_form(data, chunker_of(layer.chunk_manifest))
            elif entry.kind == CHUNKS and layer.index in self._lists:
                for pair in read_chunks(data, self._lists[layer.index], self._read_old):
                    found.append(pair)  # one by one: they end where the part was cut
        if found:
            self._mark()
            self.fetcher.put_chunks(found)
            self.image.is_begun = True

    def _mark(self) -> None:
        """Note that parts of this image are in the store before it is whole."""
        if not self._is_marked:
            self.image.store.put_fact(_started(self.image), str(self.image.top))
            self._is_marked = True

    def find_held(self) -> None:
        """Layers that the named images have, though under other chunk manifests than the published
        ones, or without any."""
        missing = [
            layer
            for layer in self.layers
            if layer.diff_id not in self.image.layers
            and not (
                layer.chunk_manifest is not None
                and self.image.store.has_blob(layer.chunk_manifest.digest)
            )
        ]
        if missing:
            wanted = {layer.diff_id for layer in missing}
            found = held.find_layers(self.image.store, self.image.ref, wanted)
            for diff_id, manifest in found.items():
                self._keep(diff_id, manifest)

    def _take_part(self, entry: Entry, data: bytes, is_last: bool) -> None:
        if entry.layer >= len(self.layers):
            raise IntegrityError("update: no such layer", got=str(entry.layer))
        layer = self.layers[entry.layer]
        if entry.kind == LIST:
            self._take_list(layer, data)
        elif entry.kind == CHUNKS:
            chunks = read_chunks(data, self._lists[layer.index], self._read_old)
            self.fetcher.put_chunks(chunks)
        elif entry.kind == BLOB:
            made = open_plain(LayerWant(layer.blob, layer.diff_id), data)
            self._begin()
            self.fetcher.put_form(made.chunk_manifest, made.form)
            self._take_made(made, is_last)
        else:
            packed, self._packed = self._packed, None
            self._near.clear()
            form = packed.finish() if packed else read_form(entry.kind, data, self._find_form)
            del packed
            made = self.fetcher.keep_form(
                form,
                layer.blob,
                layer.diff_id,
                layer.chunk_manifest,
                self._near,
                self._begin,
            )
            self._take_made(made, is_last)

    def _begin(self) -> None:
        self.sink.begin([layer.diff_id for layer in self.layers])

    def _take_made(self, made: NewLayer, is_last: bool) -> None:
        self.sink.take(made)
        self._keep(made.chunk_manifest.diff_id, made.chunk_manifest, is_last, made)

    def _take_list(self, layer: ImageLayer, data: bytes) -> None:
        if layer.chunk_manifest is None:
            raise NotFoundError("update: a layer without a chunk manifest comes in chunks")
        raw = read_list(data, layer.chunk_manifest, self._read_list)
        manifest = parse_chunk_manifest(raw)
        check_manifest(manifest, layer.diff_id)
        self._lists[layer.index] = manifest
        self._keep(layer.diff_id, manifest, False)

    def _keep(
        self,
        diff_id: Digest,
        manifest: ChunkManifest,
        is_last: bool = True,
        made: NewLayer | None = None,
    ) -> None:
        """Note how a layer is held. If more is to come, in the store, too: should it not come, the
        next pull finds what there is."""
        data = made.chunk_manifest_data if made else serialize_chunk_manifest(manifest)
        self.image.blobs[sha256_digest(data)] = (data, CHUNK_MANIFEST_KIND)
        self.image.layers[diff_id] = manifest
        if not is_last:
            self._mark()
            self.image.store.put_blob(data, CHUNK_MANIFEST_KIND)

    # --- what is held ------------------------------------------------------------------------

    def _find_form(self, digest: bytes) -> bytes | None:
        manifest = held.find_form(self.image.store, self.named, digest)
        if manifest is None:
            return None
        form = self.fetcher.read_old(manifest)
        self.fetcher.read_ids.update(manifest.list_raw_ids())
        self._near.append((form, manifest))
        return form

    def _read_list(self, digest: Digest) -> bytes:
        if all(
            digest not in self.image.store.list_blobs(top, CHUNK_MANIFEST_KIND)
            for top in self.named
        ):
            raise IntegrityError("update builds on a chunk manifest that is not held")
        return self.image.store.get_blob(digest)

    def _read_old(self, digest: Digest) -> tuple[ChunkManifest, bytes]:
        manifest = parse_chunk_manifest(self._read_list(digest))
        return manifest, held.read_form(self.image.store, manifest)
