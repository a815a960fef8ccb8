"""Publish an image of a layout: to a registry, a bucket or another layout.

Order: blobs, then manifests from the bottom up, then what refers to them, updates from what the tag
named included, then the name. A crash before the last step leaves what nobody sees; after it
everything is there, chunk manifests too. Updates are an extra: an image goes without them where
they cannot be made.
What is there is not sent, so a push that failed is run again, and one that is done changes nothing.
Each blob is checked against its digest before it is sent.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import BinaryIO, Final, Protocol

from layerkit.digest import Digest
from layerkit.edges.layout import Layout
from layerkit.edges.storage.reading import LayoutReader
from layerkit.edges.storage.targets import HELD, MOUNTED, SENT, Target
from layerkit.errors import FormatError, IntegrityError, LayerkitError, NotFoundError, StoreError
from layerkit.formats.oci import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_DOCUMENT_SIZE,
    Descriptor,
    parse_index,
    parse_manifest,
)
from layerkit.formats.reference import Reference
from layerkit.jobs.updating.packs import publish_packs
from layerkit.jobs.updating.stored import (
    UPDATE_COUNT,
    Image,
    MadeUpdate,
    find_stored,
    make_updates,
    publish_update,
)

__all__ = ["UPDATE_COUNT", "PushResult", "publish"]

THREAD_COUNT: Final = 4
MAX_SOURCES: Final = 3  # repositories that a blob is tried to be mounted from
_log = logging.getLogger(__name__)


class Progress(Protocol):
    """A running count of bytes."""

    def total(self, size: int) -> None: ...
    def advance(self, size: int) -> None: ...


@dataclass(frozen=True, slots=True)
class PushResult:
    """What a push did. Counts are of blobs, sizes in bytes; manifests are not counted."""

    ref: str  # name@digest
    target: str
    digest: Digest
    platform_count: int
    referrer_count: int
    held_count: int
    mounted_count: int
    sent_count: int
    sent_size: int
    update_count: int  # updates from older images that were made
    update_size: int


@dataclass(slots=True)
class _Content:
    """An image and all that belongs to it; `manifests` from the bottom up."""

    top: Descriptor
    manifests: list[tuple[Descriptor, bytes]] = field(default_factory=list)
    referrers: list[tuple[Descriptor, bytes]] = field(default_factory=list)
    blobs: dict[Digest, Descriptor] = field(default_factory=dict)
    image_count: int = 0


def publish(
    layout: Layout,
    ref: Reference,
    target: Target,
    progress: Progress,
    *,
    update_count: int = UPDATE_COUNT,
    olds: Sequence[Reference] = (),
    warn: Callable[[str], None] = lambda text: None,
) -> PushResult:
    """Push what `ref` names in `layout`, with all its platforms and referrers, and updates to it
    from the last `update_count` images that the tag named in the target, and from `olds`.

    Raises NotFoundError and IntegrityError for what the layout lacks or has damaged, before
    anything is named; RemoteError and its kin as the target fails. What keeps an update from being
    made is told to `warn`.
    """
    ref = ref.tagged
    content = _collect(layout, ref)
    near = _find_repositories(layout, ref, content.blobs)
    size = sum(item.size for item in content.blobs.values())
    progress.total(size)

    def send(item: Descriptor) -> tuple[str, int]:
        sources = near.get(item.digest, ())
        became = target.put_blob(ref, item, lambda: _open_checked(layout, item), sources)
        progress.advance(item.size)
        return became, item.size

    with target.session():
        named = [_find_old(layout, target, old) for old in olds]
        with ThreadPoolExecutor(THREAD_COUNT) as pool:
            done = list(pool.map(send, content.blobs.values()))
        for item, raw in (*content.manifests, *content.referrers):
            target.put_manifest(ref, item, raw)
        beside = _Beside(layout, ref, target, progress, warn)
        found = beside.put(content.top, named, update_count, size)
        target.commit(ref, content.top, [*(item for item, _ in content.referrers), *found])
    return _result(ref, target, content, done, beside.sizes)


def _result(
    ref: Reference,
    target: Target,
    content: _Content,
    done: Sequence[tuple[str, int]],
    update_sizes: Sequence[int],
) -> PushResult:
    counts = {kind: sum(became == kind for became, _ in done) for kind in (HELD, MOUNTED, SENT)}
    return PushResult(
        str(ref.pinned(content.top.digest)),
        target.where,
        content.top.digest,
        content.image_count,
        len(content.referrers),
        counts[HELD],
        counts[MOUNTED],
        counts[SENT],
        sum(size for became, size in done if became == SENT),
        len(update_sizes),
        sum(update_sizes),
    )


def _find_old(layout: Layout, target: Target, ref: Reference) -> Image:
    """An image that nodes have, as the layout or else the target knows it."""
    found = LayoutReader(layout).resolve(ref) or target.reader.resolve(ref)
    if found is None:
        raise NotFoundError(
            f"{ref} is neither in {layout.path} nor in {target.where}",
            hint="name an image that was pushed, by its tag or digest",
        )
    return Image(ref.repository, found)


class _Beside:
    """Makes and publishes what helps nodes, beside an image that is in the target, and not named
    yet: updates from older images, and packs of its chunks."""

    def __init__(
        self,
        layout: Layout,
        ref: Reference,
        target: Target,
        progress: Progress,
        warn: Callable[[str], None],
    ) -> None:
        self._readers = (LayoutReader(layout), target.reader)
        self._ref = ref
        self._target = target
        self._progress = progress
        self._warn = warn
        self.sizes: list[int] = []  # of what was made

    def put(
        self, top: Descriptor, named: Sequence[Image], count: int, size: int
    ) -> list[Descriptor]:
        """The referrers that carry them. An image of `size` bytes counts once more for each old
        one in the progress: it is read again."""
        new, reader = Image(self._ref.repository, top), self._target.reader
        found: list[Descriptor] = []
        try:
            tops = reader.find_tops(self._ref, max(count, 1) + 1)
            before = [Image(new.repository, old) for old in tops if old.digest != top.digest]
            olds = [*named, *before[:count]]
            self._progress.total(size * (1 + len(olds)))
            known = find_stored(reader, new) if olds else []
            made = make_updates(self._readers, new, olds, known, warn=self._warn)
            for one in self._count(made, size):
                found.append(publish_update(self._target, self._ref, top, one))
            last = before[0] if before else None
            for entry in publish_packs(self._readers, self._target, self._ref, new, last):
                found.append(entry)  # one by one: what is there counts if the next one fails
        except LayerkitError as exc:
            self._warn(f"the image goes without some of its updates or packs: {exc.message}")
        except Exception as exc:  # an image that we fail at must be pushed nevertheless
            _log.exception("updates and packs of %s", top.digest.short)
            self._warn(f"the image goes without some of its updates or packs: {exc!r}")
        return found

    def _count(self, made: Iterable[MadeUpdate], size: int) -> Iterable[MadeUpdate]:
        for one in made:
            yield one
            self._progress.advance(size)
            self.sizes.append(len(one.raw))


def _collect(layout: Layout, ref: Reference) -> _Content:
    found = layout.resolve(ref)
    content = _Content(replace(found, annotations={}))
    _add(layout, content, content.top)
    known = {item.digest for item, _ in content.manifests}
    found_new = True
    while found_new:  # a referrer may have referrers: a signature of an SBOM
        found_new = False
        for entry, raw in _unnamed(layout):
            subject = parse_manifest(raw).subject
            if entry.digest in known or subject is None or subject.digest not in known:
                continue
            content.referrers.append((entry, raw))
            _add_blobs(content, raw)
            known.add(entry.digest)
            found_new = True
    return content


def _add(layout: Layout, content: _Content, entry: Descriptor) -> None:
    raw = layout.read_blob(entry, MAX_DOCUMENT_SIZE)
    if entry.media_type in INDEX_TYPES:
        for child in parse_index(raw).manifests:
            if child.media_type not in MANIFEST_TYPES:
                raise FormatError(f"index {entry.digest.short} lists {child.media_type[:80]!r}")
            _add(layout, content, child)
    else:
        content.image_count += 1
        _add_blobs(content, raw)
    content.manifests.append((entry, raw))


def _add_blobs(content: _Content, raw: bytes) -> None:
    manifest = parse_manifest(raw)
    for item in (manifest.config, *manifest.layers):
        content.blobs.setdefault(item.digest, item)


def _unnamed(layout: Layout) -> Iterable[tuple[Descriptor, bytes]]:
    """Manifests that may refer to others."""
    named = {entry.digest for entry in layout.tags().values()}
    for entry in layout.read_index().manifests:
        is_there = entry.media_type in MANIFEST_TYPES and layout.has_blob(entry.digest)
        if is_there and entry.digest not in named:
            yield entry, layout.read_blob(entry, MAX_DOCUMENT_SIZE)


def _find_repositories(
    layout: Layout, ref: Reference, blobs: dict[Digest, Descriptor]
) -> dict[Digest, list[str]]:
    """Other repositories whose images in this layout have the same blobs: a registry that has
    them there need not be sent them."""
    near: dict[Digest, list[str]] = {}
    for name, entry in layout.tags().items():
        repository = Reference.parse(name).repository
        if repository == ref.repository:
            continue
        for image in layout.images(entry):
            for item in layout.read_manifest(image.digest).layers:
                found = near.setdefault(item.digest, [])
                if item.digest in blobs and repository not in found and len(found) < MAX_SOURCES:
                    found.append(repository)
    return near


def _open_checked(layout: Layout, item: Descriptor) -> BinaryIO:
    """A blob of the layout, at its start, once it has proved to be what its digest says."""
    path = layout.blob_path(item.digest)
    try:
        file = path.open("rb")
    except FileNotFoundError as exc:
        raise NotFoundError(f"{path} does not exist", hint="build the image again") from exc
    except OSError as exc:
        raise StoreError(f"cannot read {path}", cause=str(exc.strerror)) from exc
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != item.digest.hex or file.tell() != item.size:
        file.close()
        raise IntegrityError(
            f"blob {item.digest.short} of {layout.path} is damaged",
            cause=f"sha256 {found[:12]}, {path.stat().st_size} bytes, want {item.size}",
            hint="build the image again",
        )
    file.seek(0)
    return file
