"""Where images are published to: a registry, a bucket, or another layout folder.

A `Target` takes blobs and manifests, many at once, none of which anybody sees; `commit` is what
makes an image visible, and comes last. Not here: what belongs to an image, and the order
(jobs/publish).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

from layerkit.digest import Digest
from layerkit.edges.disk import Disk
from layerkit.edges.layout import Layout
from layerkit.edges.storage.opening import is_bucket, is_registry, open_registry
from layerkit.edges.storage.reading import (
    BucketReader,
    ImageReader,
    LayoutReader,
    RegistryReader,
)
from layerkit.errors import UsageError
from layerkit.formats.oci import (
    ANNOTATION_OLD,
    ANNOTATION_WAS,
    EMPTY_BLOB,
    EMPTY_DESCRIPTOR,
    MANIFEST,
    WAS_ARTIFACT,
    Descriptor,
    Manifest,
    describe,
    parse_manifest,
    serialize_manifest,
)
from layerkit.formats.reference import Reference

if TYPE_CHECKING:
    from layerkit.edges.registry import Registry
    from layerkit.edges.storage.bucket import BucketOrigin

__all__ = ["HELD", "MOUNTED", "SENT", "Document", "Target", "find_target"]

HELD: Final = "held"  # what became of a blob: it was there,
MOUNTED: Final = "mounted"  # it came from another repository of a registry,
SENT: Final = "sent"  # it was sent

LISTER_COUNT: Final = 8  # fallback tags that are written at once

Open = Callable[[], BinaryIO]
Document = tuple[Descriptor, bytes]  # a manifest or index


class Target(Protocol):
    """Safe for threads; `commit` is called once, when all else is there."""

    reader: ImageReader  # what is there
    is_lean: bool  # bytes are sent over a line: forms that can be made are left out

    @property
    def where(self) -> str: ...

    def session(self, ref: Reference) -> AbstractContextManager[None]:
        """Make ready to publish what `ref` names; where the body fails, nothing of it is visible.
        What was there is looked at once, now."""

    def put_blob(self, ref: Reference, item: Descriptor, open_: Open, near: Sequence[str]) -> str:
        """HELD, MOUNTED from one of the repositories `near`, or SENT."""

    def put_manifest(self, ref: Reference, item: Descriptor, raw: bytes) -> None:
        """A manifest or index, by its digest. What it names is there; so is its subject."""

    def make_history(self, ref: Reference, top: Descriptor) -> list[Document]:
        """Manifests that say beside `top`, where nothing else does, what the tag named when the
        session began; what they name is there."""

    def commit(self, ref: Reference, top: Document, referrers: Sequence[Descriptor]) -> None:
        """Make the tag of `ref`, if it has one, name `top`."""


def find_target(
    text: str,
    ref: Reference,
    *,
    disk: Disk | None = None,
    config: Path | None = None,
    ca: Path | None = None,
    realms: Collection[str] = (),
) -> Target:
    """What `text` names: https://registry, s3://bucket/prefix or a folder; with no text the
    registry of `ref`, in the clear only on this machine. Raises UsageError."""
    if not text and not ref.host:
        raise UsageError(
            f"{ref} names no registry",
            hint="write registry.example/name:tag, or say --to https://registry",
        )
    text = text or ref.registry_url
    if is_registry(text):
        return RegistryTarget(open_registry(text, config=config, ca=ca, realms=realms))
    if is_bucket(text):
        return _open_bucket(text)
    if "://" in text or (":" in text and "/" not in text):
        raise UsageError(
            f"{text[:120]!r} is no target",
            hint="name https://registry, s3://bucket/prefix or a layout folder",
        )
    return FolderTarget(Path(text), disk or Disk())


def _open_bucket(url: str) -> BucketTarget:
    try:
        from layerkit.edges.storage.bucket import Bucket, BucketOrigin
    except ModuleNotFoundError as exc:
        raise UsageError(
            f"{url[:120]} needs boto3, which is not installed",
            cause=str(exc),
            hint="run \"pip install 'layerkit[s3]'\"",
        ) from exc
    return BucketTarget(BucketOrigin(Bucket(url)))


class RegistryTarget:
    """Repository `ref.repository` of a registry. Referrers that it does not list by itself are
    listed by us: in a session all of a subject at once, before the tag moves, for each time takes
    half a second (`registry.referrers`); outside of one at once."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._unlisted: dict[tuple[str, Digest], list[Descriptor]] = {}
        self._is_collecting = False
        self._listing = threading.Lock()
        self._lists_by_itself: bool | None = None  # None: not known yet
        self._there: set[tuple[str, Digest]] = set()  # blobs, as this session has seen
        self.reader: ImageReader = (reader := RegistryReader(registry))
        self._reader = reader
        self.is_lean = True

    @property
    def where(self) -> str:
        return self._registry.transport.base

    @contextlib.contextmanager
    def session(self, ref: Reference) -> Iterator[None]:
        self._reader.remember()
        self._is_collecting = True
        try:
            if not ref.tag or self._reader.resolve(replace(ref, digest=None)) is None:
                self._registry.ping()  # it may be no registry at all
            yield
            self._list_referrers()
        finally:
            self._is_collecting = False
            self._unlisted.clear()
            self._there.clear()
            self._reader.forget()

    def put_blob(self, ref: Reference, item: Descriptor, open_: Open, near: Sequence[str]) -> str:
        key = ref.repository, item.digest
        if key in self._there:
            return HELD
        became = self._registry.put_blob(ref.repository, item, open_, near)
        if self._is_collecting:
            self._there.add(key)
        return became

    def put_manifest(self, ref: Reference, item: Descriptor, raw: bytes) -> None:
        """And have it listed as a referrer where the registry does not do that by itself. Where it
        does, one after another: olareg 0.2 reads, adds to and writes its list without a lock, and
        loses what comes at the same time."""
        manifest = parse_manifest(raw) if item.media_type == MANIFEST else None
        subject = manifest.subject if manifest else None
        name = ref.repository
        lists_none = self._registry.lists_referrers is False or self._lists_by_itself is False
        in_turn = subject is not None and not lists_none
        with self._listing if in_turn else contextlib.nullcontext():
            is_listed = self._registry.put_manifest(name, str(item.digest), item, raw)
            if subject is not None:
                self._lists_by_itself = is_listed
        if manifest is not None and subject is not None and not is_listed:
            entry = replace(
                item,
                artifact_type=manifest.artifact_type or manifest.config.media_type,
                annotations=dict(manifest.annotations),
            )
            with self._lock:
                self._unlisted.setdefault((name, subject.digest), []).append(entry)
            if not self._is_collecting:
                self._list_referrers()

    def _list_referrers(self) -> None:
        """Those of each subject in a thread of its own: most of it is waiting."""
        from layerkit.edges.registry import add_fallback

        with self._lock:
            found, self._unlisted = self._unlisted, {}
        if not found:
            return

        def add(key: tuple[str, Digest]) -> None:
            add_fallback(self._registry, *key, found[key])

        with ThreadPoolExecutor(min(len(found), LISTER_COUNT)) as pool:
            list(pool.map(add, found))

    def commit(self, ref: Reference, top: Document, referrers: Sequence[Descriptor]) -> None:
        self._list_referrers()
        old = self._named(ref)
        if ref.tag and (old is None or old.digest != top[0].digest):
            self._registry.put_manifest(ref.repository, ref.tag, *top)

    def _named(self, ref: Reference) -> Descriptor | None:
        """What the tag named when the session began."""
        return self._reader.resolve(replace(ref, digest=None)) if ref.tag else None

    def make_history(self, ref: Reference, top: Descriptor) -> list[Document]:
        """A registry forgets what a tag named, and an update needs to know."""
        old = self._named(ref)
        if old is None or old.digest == top.digest:
            return []
        return [self._make_was(ref, top, old)]

    def put_was(self, ref: Reference, top: Descriptor, old: Descriptor) -> None:
        """Write down beside `top` that the tag of `ref` named `old` before it."""
        self.put_manifest(ref, *self._make_was(ref, top, old))

    def _make_was(self, ref: Reference, top: Descriptor, old: Descriptor) -> Document:
        import io

        was = {
            ANNOTATION_WAS: f"{ref.repository}:{ref.tag}",
            ANNOTATION_OLD: str(old.digest),
        }
        subject = Descriptor(top.media_type, top.digest, top.size)
        raw = serialize_manifest(
            Manifest(EMPTY_DESCRIPTOR, (EMPTY_DESCRIPTOR,), was, WAS_ARTIFACT, subject)
        )
        self.put_blob(ref, EMPTY_DESCRIPTOR, lambda: io.BytesIO(EMPTY_BLOB), ())
        return describe(raw, MANIFEST), raw


class BucketTarget:
    """A layout under a bucket's prefix."""

    def __init__(self, origin: BucketOrigin) -> None:
        self._origin = origin
        self.is_lean = False  # servers read forms there
        self.reader: ImageReader = BucketReader(origin)
        self.where = origin.where

    @contextlib.contextmanager
    def session(self, ref: Reference) -> Iterator[None]:
        self._origin.create()
        yield

    def put_blob(self, ref: Reference, item: Descriptor, open_: Open, near: Sequence[str]) -> str:
        if self._origin.has_blob(item):
            return HELD
        with open_() as file:
            self._origin.put_blob(item, file)
        return SENT

    def put_manifest(self, ref: Reference, item: Descriptor, raw: bytes) -> None:
        import io

        self.put_blob(ref, item, lambda: io.BytesIO(raw), ())

    def make_history(self, ref: Reference, top: Descriptor) -> list[Document]:
        return []  # the index tells

    def commit(self, ref: Reference, top: Document, referrers: Sequence[Descriptor]) -> None:
        name = str(replace(ref, digest=None)) if ref.tag else ""
        self._origin.commit(name, top[0], list(referrers))


class FolderTarget:
    """Another layout folder."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._layout = Layout(path, disk)
        self.is_lean = False
        self.reader: ImageReader = LayoutReader(self._layout)
        self.where = str(path)

    def session(self, ref: Reference) -> AbstractContextManager[None]:
        return self._layout.batch()

    def put_blob(self, ref: Reference, item: Descriptor, open_: Open, near: Sequence[str]) -> str:
        path = self._layout.blob_path(item.digest)
        if path.is_file() and path.stat().st_size == item.size:
            return HELD
        with open_() as file:
            self._layout.put_blob(file.read(), item.media_type)
        return SENT

    def put_manifest(self, ref: Reference, item: Descriptor, raw: bytes) -> None:
        self._layout.put_blob(raw, item.media_type)

    def make_history(self, ref: Reference, top: Descriptor) -> list[Document]:
        return []  # the index tells

    def commit(self, ref: Reference, top: Document, referrers: Sequence[Descriptor]) -> None:
        self._layout.commit(ref, top[0], referrers)
