"""Updates as a server makes them: for each layer that a node lacks, the fewest bytes that can be
had now.

A delta is made once for all who ask, within the time that the node is ready to wait and the budget
that it has; a packed form is never waited for. What is not there goes as chunks or as the form, in
the same answer, and the answer then is not to be kept: the next one may be smaller.

An answer has at most ANSWER_SIZE bytes of parts; those that are stored are read as they are sent
(`streams`). A layer that does not fit is left out:
the node fetches its form or blob, which can be cut, cached and resumed anywhere.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from layerkit.digest import Digest
from layerkit.edges.storage import StoredBlob
from layerkit.errors import (
    FormatError,
    IntegrityError,
    LayerkitError,
)
from layerkit.formats import delta
from layerkit.formats.chunkmanifest import ChunkManifest, parse_chunk_manifest
from layerkit.formats.oci import Descriptor, Platform
from layerkit.formats.tokens import Caller
from layerkit.formats.update import (
    BLOB,
    DELTA,
    FORM,
    PACKED,
    Documents,
    Entry,
    Share,
    check_documents,
    serialize_head,
)
from layerkit.formats.updateparts import make_chunk_parts
from layerkit.formats.updating import (
    ImageLayer,
    LayerRoute,
    Pair,
    Place,
    Route,
    choose_route,
    estimate_chunks,
    layers_of,
)
from layerkit.jobs.updating.library import Library
from layerkit.jobs.updating.streams import Piece, UpdateStream

__all__ = ["ANY", "MAKE_SECONDS", "Update", "Updates", "count_shares"]

MAKE_SECONDS: Final = 3600.0  # for who makes an update in its own thread: nothing runs on
ANY: Final = Platform("any", "any")  # for images that are no index: not looked at
ANSWER_SIZE: Final = 96 << 20  # bytes of parts
MAX_ROUTE_COUNT: Final = 1024  # kept; each holds the documents of two images
CERTAIN_SIZE: Final = 4 << 10  # bytes of a part below which no less is looked for
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Update:
    """What was made for who asked; `stream` is None where the image has documents that no update
    can carry. `old`: the image that it starts from, if any. `lacking_size`: of the blobs of the
    layers that a node lacks; `left_out`: those of these layers that it does not bring. Not
    `is_final`: asked again, there may be a smaller one."""

    stream: UpdateStream | None
    old: Digest | None
    shares: tuple[Share, ...]
    lacking_size: int
    is_final: bool
    left_out: tuple[Descriptor, ...] = ()


@dataclass(frozen=True, slots=True)
class _Option:
    """A way to send a layer in one part."""

    size: int
    kind: int
    read: Callable[[], bytes | StoredBlob]
    digest: str = ""  # of what is stored


@dataclass(frozen=True, slots=True)
class _Known:
    """A route, and the documents of both its ends."""

    route: Route
    new: Documents
    old_top: Digest | None
    old: Documents | None


class Updates:
    """Makes updates out of a library. Safe for threads."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._routes: dict[Hashable, _Known | None] = {}
        self._routes_of: Hashable = None

    def answer(
        self,
        name: str,
        top: Digest,
        have: Sequence[Digest],
        caller: Caller,
        platform: Platform,
        within: float,
    ) -> Update:
        """The update to image `top` of repository `name` for who holds the images `have`, of
        whichever repositories; none where the image has documents that no update can carry. Who
        waits for nothing (`within` 0) has a quick line, and gets no packed forms."""
        holders = [(old, self._library.find_holder(name, old, caller)) for old in have]
        images = [(old, holder) for old, holder in holders if holder is not None]
        images.sort(key=lambda image: image[1] != name)  # its own first, each as it was named
        known, is_sure = self._find_route(name, top, platform, tuple(images))
        if known is None:
            return Update(None, None, (), 0, is_sure)
        wanted = _Wanted(self._library, name, known, caller, is_sure, is_quick=within <= 0)
        wanted.make_parts(time.monotonic() + within)
        pieces = tuple(wanted.pieces)
        table = [piece.entry for piece in pieces]
        stream = UpdateStream(serialize_head(known.new, table, known.old_top, known.old), pieces)
        lacking = [one.layer for one in known.route.lacking]
        brought = {entry.layer for entry in table}
        return Update(
            stream,
            known.old_top,
            wanted.shares(stream.size),
            sum(layer.blob.size for layer in lacking),
            wanted.is_final,
            tuple(layer.blob for layer in lacking if layer.index not in brought),
        )

    def _find_route(
        self, name: str, top: Digest, platform: Platform, images: tuple[tuple[Digest, str], ...]
    ) -> tuple[_Known | None, bool]:
        """From which images and forms an update starts, and whether all could be read for that.
        Kept, for it takes 5 ms an image, and nodes ask again with what others have asked with."""
        version, key = self._library.version(), (name, top, platform, images)
        with self._lock:
            if self._routes_of != version:
                self._routes_of, self._routes = version, {}
            if key in self._routes:
                return self._routes[key], True
        reading = _Reading(self._library)
        found = _choose_route(reading, name, top, platform, images)
        with self._lock:
            if self._routes_of == version and not reading.failed:
                if len(self._routes) >= MAX_ROUTE_COUNT:
                    self._routes.clear()
                self._routes[key] = found
        return found, not reading.failed


class _Reading:
    """Reads for a route: what cannot be read is as if it were absent, and noted."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self.failed = False

    def documents(self, name: str, top: Digest, platform: Platform) -> Documents | None:
        """None for what is no image, too, or one whose documents no update can carry."""
        try:
            found = self._library.find_documents(name, top, platform)
            if found is not None:
                check_documents(found)
                layers_of(found)
        except (FormatError, IntegrityError) as exc:
            _log.info("no updates from or to %s of %s: %s", top.short, name, exc.message)
            return None
        except LayerkitError as exc:
            self._note(exc)
            return None
        return found

    def places(self, listed: Descriptor) -> Mapping[bytes, Place]:
        try:
            return self._library.places_of(listed)
        except LayerkitError as exc:
            self._note(exc)
            return {}

    def _note(self, exc: LayerkitError) -> None:
        _log.warning("an update goes without: %s", exc.message)
        self.failed = True


def _choose_route(
    reading: _Reading,
    name: str,
    top: Digest,
    platform: Platform,
    images: Sequence[tuple[Digest, str]],
) -> _Known | None:
    """None for an image that no update can bring."""
    new = reading.documents(name, top, platform)
    if new is None:
        return None
    named = [
        (old, holder == name, documents)
        for old, holder in images
        if (documents := reading.documents(holder, old, platform)) is not None
    ]
    own_count = sum(is_own for _, is_own, _ in named)
    olds = [documents for _, _, documents in named]
    route = choose_route(olds, own_count, new, reading.places)
    if route.image is None:
        return _Known(route, new, None, None)
    return _Known(route, new, named[route.image][0], olds[route.image])


class _Wanted:
    """One answer as it is made."""

    def __init__(
        self,
        library: Library,
        name: str,
        known: _Known,
        caller: Caller,
        is_final: bool,
        is_quick: bool = False,
    ) -> None:
        self._is_quick = is_quick  # the line: a packed form would cost more than it saves
        self.pieces: list[Piece] = []
        self.is_final = is_final  # False: asked again, there may be a smaller one
        self._library = library
        self._name = name
        self._known = known
        self._caller = caller
        self._held = list(known.route.held)  # whose chunks the node has by now
        self._left = ANSWER_SIZE

    def make_parts(self, deadline: float) -> None:
        """All layers that the node lacks, in their order. One whose bytes cannot be read here is
        left out: the node finds out the plain way."""
        deltas = self._make_deltas(deadline)
        for lacking in self._known.route.lacking:
            layer = lacking.layer
            try:
                if layer.pair is None:
                    pieces = self._take(layer.index, self._stored(layer.blob, BLOB))
                else:
                    pieces = self._choose_parts(lacking, layer.pair, deltas.get(layer.index))
            except LayerkitError as exc:
                _log.warning("layer %s is in no update: %s", layer.blob.digest.short, exc.message)
                self.is_final = False
                continue
            self.pieces += pieces
            self._left -= sum(piece.entry.size for piece in pieces)
            if pieces and layer.pair is not None:
                self._held.append(layer.pair)

    def shares(self, size: int) -> tuple[Share, ...]:
        """See `count_shares`."""
        sizes = [(piece.entry.layer, piece.entry.size) for piece in self.pieces]
        return count_shares(self._known.route.layers, sizes, size)

    # --- one layer ---------------------------------------------------------------------------

    def _choose_parts(self, lacking: LayerRoute, pair: Pair, made: bytes | None) -> list[Piece]:
        """The least of the form, its packed form and the delta; or the missing chunks, if these
        are less."""
        layer, form = lacking.layer, pair[1]
        options = [
            self._stored(form, FORM) if layer.has_form_blob else self._stored(layer.blob, BLOB)
        ]
        if self._is_quick:
            pass
        elif layer.packed is not None:
            options.append(self._stored(layer.packed, PACKED))
        elif packed := self._library.find_packed(form.digest):
            options.append(_Option(len(packed), PACKED, lambda: packed))
        if made is not None:
            options.append(_Option(len(made), DELTA, lambda: made))
        best = min(options, key=lambda option: (option.size, option.kind))
        if best.kind == FORM and not self._is_quick and self._library.is_packing(form):
            self.is_final = False
        if best.size > CERTAIN_SIZE and self._estimate(pair) < best.size:
            chunks = self._make_chunks(lacking, pair)
            if sum(piece.entry.size for piece in chunks) < min(best.size, self._left + 1):
                return chunks
        return self._take(layer.index, best)

    def _take(self, index: int, option: _Option) -> list[Piece]:
        """Nothing, if it does not fit."""
        if option.size > self._left:
            return []
        entry = Entry(index, option.kind, option.size)
        return [Piece(entry, option.read(), option.digest)]

    def _stored(self, blob: Descriptor, kind: int) -> _Option:
        read = partial(self._library.open_layer, self._name, blob)
        return _Option(blob.size, kind, read, str(blob.digest))

    def _estimate(self, pair: Pair) -> int:
        return estimate_chunks(pair, self._held_ids(), self._library.places_of)

    def _held_ids(self) -> set[bytes]:
        """Of the chunks that the node has by now; without those of lists that cannot be read."""
        found: set[bytes] = set()
        for listed, _ in self._held:
            with contextlib.suppress(LayerkitError):
                found |= self._library.places_of(listed).keys()
        return found

    def _make_chunks(self, lacking: LayerRoute, pair: Pair) -> list[Piece]:
        near = {old: (listed, form) for listed, form in lacking.near if (old := listed.digest)}

        def read_old(old: Digest) -> tuple[ChunkManifest, bytes]:
            listed, form = near[old]
            manifest = parse_chunk_manifest(self._library.read_list(listed))
            return manifest, self._library.form_of(listed, form)

        lists = {listed.digest: self._library.read_list(listed) for listed, _ in lacking.near}
        new, form = self._library.read_list(pair[0]), self._library.form_of(*pair)
        held = self._held_ids()
        parts = make_chunk_parts(lacking.layer.index, new, form, lists, held, read_old)
        return [Piece(Entry(part.layer, part.kind, len(part.data)), part.data) for part in parts]

    # --- deltas ------------------------------------------------------------------------------

    def _make_deltas(self, deadline: float) -> dict[int, bytes]:
        """Deltas by layer, made side by side: those that are there before the deadline."""
        jobs = [
            (one.layer.index, one.layer.pair, one.olds)
            for one in self._known.route.lacking
            if one.layer.pair is not None
            and one.olds is not None
            and (one.olds or one.layer.pair[1].size > CERTAIN_SIZE)
        ]
        for _, new, olds in jobs[1:]:
            with contextlib.suppress(LayerkitError):
                self._make_delta(new, olds, 0)
        made = {}
        for index, new, olds in jobs:
            try:
                found = self._make_delta(new, olds, max(0.0, deadline - time.monotonic()))
            except LayerkitError as exc:
                _log.info("no delta of form %s yet: %s", new[1].digest.short, exc.message)
                self.is_final = False
                found = self._find_kept(new, olds)
            if found is not None:
                made[index] = found
        return made

    def _make_delta(self, new: Pair, olds: Sequence[Pair], seconds: float) -> bytes | None:
        """None where there is no delta that is less than the form."""
        library = self._library

        def make() -> bytes | None:
            try:
                raw = delta.diff([library.form_of(*old) for old in olds], library.form_of(*new))
            except FormatError as exc:  # over the limits of deltas
                _log.info("no delta of form %s: %s", new[1].digest.short, exc.message)
                return None
            return raw if len(raw) < new[1].size else None

        size = self._measure((new, *olds))
        return library.make_soon(_key(new, olds), make, seconds, self._caller, size)

    def _find_kept(self, new: Pair, olds: Sequence[Pair]) -> bytes | None:
        """The least delta against one of these alone that is kept: such are made in advance."""
        found = []
        for old in olds:
            with contextlib.suppress(LayerkitError):
                found.append(self._library.find_made(_key(new, [old])) or b"")
        return min(filter(None, found), key=len, default=None)

    def _measure(self, pairs: Sequence[Pair]) -> int:
        """Bytes of these forms."""
        places = (self._library.places_of(listed) for listed, _ in pairs)
        return sum(size for one in places for _, size in one.values())


def count_shares(
    layers: Sequence[ImageLayer], sizes: Iterable[tuple[int, int]], size: int
) -> tuple[Share, ...]:
    """What of an update of `size` bytes is of layers of each role, against their blobs, those of
    layers that the node holds included; and the documents, of no role. `sizes`: parts, each with
    the layer that it is of."""
    sent: dict[str, int] = {}
    whole: dict[str, int] = {}
    for at, part_size in sizes:
        role = layers[at].role if at < len(layers) else ""
        sent[role] = sent.get(role, 0) + part_size
    for layer in layers:
        whole[layer.role] = whole.get(layer.role, 0) + layer.blob.size
    documents = Share("", size - sum(sent.values()), 0)
    return (*(Share(role, sent.get(role, 0), whole[role]) for role in sorted(whole)), documents)


def _key(new: Pair, olds: Sequence[Pair]) -> str:
    """The name of a delta for all servers over a storage."""
    names = ",".join(str(form.digest) for _, form in olds)
    return f"delta/1/{names}/{new[1].digest}"
