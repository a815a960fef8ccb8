"""Updates that are kept beside an image: made before a tag moves, found by who asks for it.

`make_updates` makes them with the engine that servers have, in the thread that asks; what it reads
comes from several places, each digest from the first that has it. `put_update` puts one where the
image is, for a referrer of it. Spec: docs/format.md "Stored update".

Memory: two forms and what a delta of them takes, some seven times a binary in all.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from layerkit.digest import Digest
from layerkit.edges.storage.protocol import Shelf, StoredBlob
from layerkit.edges.storage.reading import ImageReader
from layerkit.edges.storage.targets import Document, Target
from layerkit.errors import LayerkitError
from layerkit.formats.oci import (
    ANNOTATION_REF_NAME,
    ANNOTATION_WAS,
    CHUNKS_ARTIFACT,
    EMPTY_BLOB,
    EMPTY_DESCRIPTOR,
    INDEX_TYPES,
    Descriptor,
    Index,
    Platform,
    describe,
    serialize_index,
)
from layerkit.formats.reference import Reference
from layerkit.formats.storedupdate import (
    NOTHING,
    StoredUpdate,
    find_updates,
    make_update_artifact,
)
from layerkit.formats.tokens import Caller
from layerkit.formats.update import UPDATE_TYPE
from layerkit.jobs.updating.catalogue import Catalogue
from layerkit.jobs.updating.forms import Forms
from layerkit.jobs.updating.kept import Kept, NoMeter
from layerkit.jobs.updating.library import Library
from layerkit.jobs.updating.packing import Packing
from layerkit.jobs.updating.sources import Sources
from layerkit.jobs.updating.updates import ANY, MAKE_SECONDS, Updates
from layerkit.jobs.updating.workshop import Workshop

__all__ = [
    "Image",
    "MadeUpdate",
    "find_stored",
    "make_updates",
    "make_whole",
    "put_update",
    "worth_storing",
]

MAX_BLOB_SIZE: Final = 1 << 30  # bytes that are read at once
FORMS_SIZE: Final = 256 << 20  # bytes of decompressed forms: the new one's serve each old one
KEPT_SIZE: Final = 16 << 20  # bytes of deltas in memory: platforms may share layers
MAX_SHARE: Final = 0.7  # of what a plain pull moves; a larger update is not worth its place,
SMALL_SIZE: Final = 64 << 10  # bytes; but for a small one, which saves requests
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Image:
    """What a tag names, or named, and the repository that it is read from."""

    repository: str
    top: Descriptor


@dataclass(frozen=True, slots=True)
class MadeUpdate:
    """The stream of an update from image `old`; `platform` None: both are for one only.
    `lacking_size`: bytes of the blobs of the layers that a node lacks; `left_out`: those of these
    layers that it does not bring."""

    old: Digest
    platform: Platform | None
    raw: bytes
    lacking_size: int
    left_out: tuple[Descriptor, ...] = ()


def worth_storing(size: int, lacking_size: int) -> bool:
    """Is an update of `size` bytes worth its place beside the image?"""
    return size <= max(SMALL_SIZE, MAX_SHARE * lacking_size)


def find_stored(reader: ImageReader, image: Image) -> list[StoredUpdate]:
    """The stored updates to an image that are there already."""
    return find_updates(reader.list_referrers(image.repository, image.top.digest))


def make_updates(
    readers: Sequence[ImageReader],
    new: Image,
    olds: Iterable[Image],
    known: Collection[StoredUpdate] = (),
    *,
    warn: Callable[[str], None],
    all_: bool = False,
    only: Collection[Platform] = (),
    unworthy: set[str] | None = None,
) -> Iterator[MadeUpdate]:
    """The updates to `new` from each of `olds`, for each of its platforms (of `only` those, if any
    is named), but for those `known`, and (unless `all_`) those that are not worth it. What cannot
    be made is told to `warn`, and left out. Raises what `readers` raise for the new image itself.
    `unworthy` names updates that were found not to be worth it: they are not made again, and such
    as are found now are added, for who makes updates to this image another time.
    0.7 s for an edit of a 6 MB binary.
    """
    unworthy = set() if unworthy is None else unworthy
    wanted = [old for old in _without_doubles(olds) if old.top.digest != new.top.digest]
    if not wanted:
        return
    catalogue = Catalogue(_Joined(Sources(readers), new, wanted))
    updates = _make_engine(catalogue)
    made = {(one.old, one.platform) for one in known}
    for old in wanted:
        for platform in _platforms(catalogue, new, only):
            name = f"{old.top.digest} {platform or ''}".strip()
            if (old.top.digest, platform) in made or name in unworthy:
                continue
            made_one = _make(updates, new, old.top.digest, platform, warn)
            if made_one is None:
                continue
            if all_ or _is_worth(made_one, old):
                yield made_one[0]
            else:
                unworthy.add(name)


def make_whole(
    readers: Sequence[ImageReader],
    new: Image,
    *,
    warn: Callable[[str], None],
    only: Collection[Platform] = (),
) -> Iterator[MadeUpdate]:
    """What brings `new` to who holds nothing, for each of its platforms: updates from NOTHING."""
    catalogue = Catalogue(_Joined(Sources(readers), new, ()))
    updates = _make_engine(catalogue)
    for platform in _platforms(catalogue, new, only):
        made = _make(updates, new, NOTHING, platform, warn)
        if made is not None:
            yield made[0]


def _is_worth(made: tuple[MadeUpdate, Digest | None], old: Image) -> bool:
    update, start = made
    return start == old.top.digest and worth_storing(len(update.raw), update.lacking_size)


def _make(
    updates: Updates,
    new: Image,
    old: Digest,
    platform: Platform | None,
    warn: Callable[[str], None],
) -> tuple[MadeUpdate, Digest | None] | None:
    """One of them, and the image whose documents it builds on; None, and told, where it cannot be
    made."""
    what = "no update from " + (old.short if old != NOTHING else "nothing")
    what += f" for {platform}" * bool(platform)
    caller = Caller("", ("*",), ())  # who publishes may read what he names
    have = [old] if old != NOTHING else []
    try:
        found = updates.answer(
            new.repository, new.top.digest, have, caller, platform or ANY, MAKE_SECONDS
        )
    except LayerkitError as exc:
        warn(f"{what}: {exc.message}")
        return None
    except Exception as exc:  # an image that we fail at must be pushed nevertheless
        _log.exception("%s", what)
        warn(f"{what}: {exc!r}")
        return None
    if found.stream is None or not found.is_final:
        warn(f"{what}: some of it cannot be read")
        return None
    made = MadeUpdate(old, platform, found.stream.join(), found.lacking_size, found.left_out)
    return made, found.old


def put_update(target: Target, ref: Reference, top: Descriptor, made: MadeUpdate) -> Document:
    """Put the blob of a stored update where image `top` is or will be. Returns the manifest that
    refers with it, as an index of a layout lists it: to be put when the image is there."""
    blob = describe(made.raw, UPDATE_TYPE)
    entry, raw = make_update_artifact(top, made.old, made.platform, blob)
    target.put_blob(ref, EMPTY_DESCRIPTOR, lambda: io.BytesIO(EMPTY_BLOB), ())
    target.put_blob(ref, blob, lambda: io.BytesIO(made.raw), ())
    return replace(entry, annotations={}, artifact_type=""), raw


def _without_doubles(images: Iterable[Image]) -> list[Image]:
    found: dict[Digest, Image] = {}
    for image in images:
        found.setdefault(image.top.digest, image)
    return list(found.values())


def _make_engine(catalogue: Catalogue) -> Updates:
    forms = Forms(catalogue, FORMS_SIZE)
    workshop = Workshop()
    deltas = Kept("delta", KEPT_SIZE, workshop, NoMeter())
    packing = Packing(catalogue, forms, Kept("packed", 0, workshop, NoMeter()))
    return Updates(Library(catalogue, forms, packing, deltas, is_aside=True))


def _platforms(
    catalogue: Catalogue, image: Image, only: Collection[Platform] = ()
) -> list[Platform | None]:
    if image.top.media_type not in INDEX_TYPES:
        return [None]
    found = catalogue.list_platforms(image.top.digest)
    return [one for one in found if not only or one in only]


class _Joined:
    """A `Storage` of these images alone."""

    made: Shelf | None = None
    has_near_version = True

    def __init__(self, sources: Sources, new: Image, olds: Sequence[Image]) -> None:
        self._sources = sources
        entries = [_entry(old, {ANNOTATION_WAS: f"{old.repository}:old"}) for old in reversed(olds)]
        entries.append(_entry(new, {ANNOTATION_REF_NAME: f"{new.repository}:new"}))
        self._homes: dict[Digest, str] = {}
        referrers: dict[Digest, Descriptor] = {}
        self._manifests = {image.top.digest for image in (*olds, new)}
        for image in (*olds, new):
            for found in self._find_artifacts(image):
                self._homes.setdefault(found.digest, image.repository)
                referrers.setdefault(found.digest, replace(found, annotations={}))
        self._manifests.update(referrers)
        self._index = serialize_index(Index((*entries, *referrers.values())))

    def version(self) -> Hashable:
        return ""

    def read_index(self) -> bytes:
        return self._index

    def check_ready(self) -> None: ...

    def read_blob(self, name: str, digest: Digest, limit: int) -> bytes:
        """`name` is "" for a referrer."""
        name = name or self._homes.get(digest, "")
        if digest in self._manifests:
            return self._sources.read_manifest(name, digest)
        return self._sources.read(name, digest, limit)

    def open_blob(self, name: str, digest: Digest) -> StoredBlob:
        raw = self.read_blob(name, digest, MAX_BLOB_SIZE)
        return StoredBlob(len(raw), None, lambda at, size: iter((raw[at : at + size],)))

    def _find_artifacts(self, image: Image) -> list[Descriptor]:
        """Of an old image that cannot be read, none."""
        found, name = list[Descriptor](), image.repository
        with contextlib.suppress(LayerkitError):
            for one in self._sources.list_images(name, image.top):
                self._manifests.add(one.digest)
                found += self._sources.list_referrers(name, one.digest, CHUNKS_ARTIFACT)
        return found


def _entry(image: Image, annotations: dict[str, str]) -> Descriptor:
    top = image.top
    return Descriptor(top.media_type, top.digest, top.size, annotations)
