"""Images as who makes updates reads them: of a layout, a registry or a bucket.

Not a `Storage`: nothing is kept, and nothing is listed but what is asked for. What is read is not
verified here (jobs/updating does); names are of repositories, which only a registry looks at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from layerkit.digest import Digest
from layerkit.edges.layout import Layout
from layerkit.errors import FormatError, NotFoundError
from layerkit.formats.oci import (
    ANNOTATION_OLD,
    ANNOTATION_REF_NAME,
    ANNOTATION_WAS,
    MANIFEST_TYPES,
    MAX_DOCUMENT_SIZE,
    WAS_ARTIFACT,
    Descriptor,
    Index,
    Manifest,
    parse_manifest,
)
from layerkit.formats.reference import Reference

if TYPE_CHECKING:
    from layerkit.edges.registry import Registry
    from layerkit.edges.storage.bucket import BucketOrigin

__all__ = ["BucketReader", "ImageReader", "LayoutReader", "RegistryReader", "read_was"]


class ImageReader(Protocol):
    """May raise NotFoundError for what is absent, RemoteError and StoreError."""

    def resolve(self, ref: Reference) -> Descriptor | None:
        """What the tag or digest of `ref` names; None if nothing."""

    def find_tops(self, ref: Reference, count: int) -> list[Descriptor]:
        """What the tag of `ref` names, and what it named before, `count` at most, last first."""

    def list_referrers(self, name: str, digest: Digest) -> list[Descriptor]:
        """With their annotations and artifact types."""

    def read_blob(self, name: str, digest: Digest, limit: int) -> bytes:
        """A blob or manifest of at most `limit` bytes."""

    def read_manifest(self, name: str, digest: Digest) -> bytes:
        """The same of what is known to be a manifest or index."""


class LayoutReader:
    """Images of a layout folder; NotFoundError where there is none yet."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def resolve(self, ref: Reference) -> Descriptor | None:
        with contextlib.suppress(NotFoundError):
            return self._layout.resolve(ref)
        return None

    def find_tops(self, ref: Reference, count: int) -> list[Descriptor]:
        with contextlib.suppress(NotFoundError):
            return _tops_of(self._layout.read_index(), ref)[:count]
        return []

    def list_referrers(self, name: str, digest: Digest) -> list[Descriptor]:
        with contextlib.suppress(NotFoundError):
            return self._layout.referrers(digest)
        return []

    def read_blob(self, name: str, digest: Digest, limit: int) -> bytes:
        return self._layout.read_blob(digest, limit)

    def read_manifest(self, name: str, digest: Digest) -> bytes:
        return self._layout.read_blob(digest, MAX_DOCUMENT_SIZE)


class RegistryReader:
    """Images of a registry; what a tag named is told by the artifacts that `publish` left.

    Between `remember` and `forget` what tags name and what refers to an image is asked for once:
    for one push, which sees the registry as it was at its beginning. Safe for threads."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._remembers = False
        self._tops: dict[tuple[str, str], Descriptor | None] = {}
        self._lists: dict[tuple[str, Digest], list[Descriptor]] = {}

    def remember(self) -> None:
        self._remembers = True

    def forget(self) -> None:
        self._remembers = False
        self._tops.clear()
        self._lists.clear()

    def resolve(self, ref: Reference) -> Descriptor | None:
        tagged = ref.tagged
        return self._resolve(ref.repository, str(tagged.digest or tagged.tag))

    def _resolve(self, name: str, ref: str) -> Descriptor | None:
        if (name, ref) in self._tops:
            return self._tops[name, ref]
        top = self._registry.resolve(name, ref)
        if self._remembers:
            self._tops[name, ref] = top
        return top

    def find_tops(self, ref: Reference, count: int) -> list[Descriptor]:
        name, tag = ref.repository, ref.tag
        found: dict[Digest, Descriptor] = {}
        top = self._resolve(name, tag) if tag else None
        while top is not None and top.digest not in found and len(found) < count:
            found[top.digest] = top
            digest = read_was(self.list_referrers(name, top.digest), f"{name}:{tag}")
            top = self._resolve(name, str(digest)) if digest is not None else None
        return list(found.values())

    def list_referrers(self, name: str, digest: Digest) -> list[Descriptor]:
        from layerkit.edges.registry import list_referrers

        found = self._lists.get((name, digest))
        if found is None:
            found = list_referrers(self._registry, name, digest)
            if self._remembers:
                self._lists[name, digest] = found
        return found

    def read_blob(self, name: str, digest: Digest, limit: int) -> bytes:
        try:
            return self._registry.read_blob(name, digest, limit)
        except NotFoundError:
            return self._registry.read_manifest(name, str(digest))[1]

    def read_manifest(self, name: str, digest: Digest) -> bytes:
        return self._registry.read_manifest(name, str(digest))[1]


class BucketReader:
    """Images of a bucket; its index is read once, and the manifests in it when the first referrer
    is asked for."""

    def __init__(self, origin: BucketOrigin) -> None:
        self._origin = origin
        self._known: Index | None = None
        self._referrers: Mapping[Digest, list[Descriptor]] | None = None

    def resolve(self, ref: Reference) -> Descriptor | None:
        tagged = ref.tagged
        if tagged.digest is None:
            return next(iter(_tops_of(self._index(), tagged)), None)
        entries = self._index().manifests
        return next((entry for entry in entries if entry.digest == tagged.digest), None)

    def find_tops(self, ref: Reference, count: int) -> list[Descriptor]:
        return _tops_of(self._index(), ref)[:count]

    def list_referrers(self, name: str, digest: Digest) -> list[Descriptor]:
        if self._referrers is None:
            unnamed = [
                entry
                for entry in self._index().manifests
                if entry.media_type in MANIFEST_TYPES and not _names(entry)
            ]
            self._referrers = _by_subject(unnamed, self._origin.read_documents(unnamed))
        return self._referrers.get(digest, [])

    def read_blob(self, name: str, digest: Digest, limit: int) -> bytes:
        return self._origin.read_blob(digest, limit)

    def read_manifest(self, name: str, digest: Digest) -> bytes:
        return self._origin.read_blob(digest, MAX_DOCUMENT_SIZE)

    def _index(self) -> Index:
        if self._known is None:
            self._known = self._origin.find_index()
        return self._known


def read_was(referrers: Iterable[Descriptor], text: str) -> Digest | None:
    """Which image the name `text` (`repository:tag`) named before the one with these referrers."""
    for entry in referrers:
        is_was = entry.artifact_type == WAS_ARTIFACT
        if is_was and entry.annotations.get(ANNOTATION_WAS) == text:
            with contextlib.suppress(FormatError):
                return Digest.parse(entry.annotations.get(ANNOTATION_OLD, ""))
    return None


def _names(entry: Descriptor) -> str:
    """What the entry of an index is, or was, called."""
    facts = entry.annotations
    return facts.get(ANNOTATION_REF_NAME, "") or facts.get(ANNOTATION_WAS, "")


def _tops_of(index: Index, ref: Reference) -> list[Descriptor]:
    """What the name of `ref` names in an index of a layout, then what it named, the last first."""
    name = str(replace(ref.tagged, digest=None))
    found = [entry for entry in reversed(index.manifests) if _names(entry) in (name, ref.tag)]
    found.sort(key=lambda entry: ANNOTATION_REF_NAME not in entry.annotations)
    return list({entry.digest: entry for entry in found}.values())


def _by_subject(
    entries: Iterable[Descriptor], documents: Mapping[Digest, bytes | None]
) -> dict[Digest, list[Descriptor]]:
    """Entries by what they refer to, as the referrers API has them."""
    found: dict[Digest, list[Descriptor]] = {}
    for entry in entries:
        raw = documents.get(entry.digest)
        with contextlib.suppress(FormatError):
            manifest = parse_manifest(raw) if raw is not None else None
            if isinstance(manifest, Manifest) and manifest.subject is not None:
                kind = manifest.artifact_type or manifest.config.media_type
                facts = dict(manifest.annotations)
                listed = found.setdefault(manifest.subject.digest, [])
                listed.append(replace(entry, artifact_type=kind, annotations=facts))
    return found
