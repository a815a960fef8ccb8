"""An OCI registry as a storage: an index made of its tags and referrers.

Asked for each time: the tags of each repository and what each names. What an image was before its
tag moved on is known from the registry (`WAS_ARTIFACT`, which `publish` puts there) and from what
was seen before; so a server that starts finds the old images, too. An image without a chunks
artifact is asked for referrers each time, the others every REFERRERS_SECONDS. Signatures of an
older cosign are a tag each, and named, too.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Final

from layerkit.digest import Digest
from layerkit.edges.registry import Registry, is_fallback_tag, list_referrers
from layerkit.edges.storage.reading import read_was
from layerkit.errors import FormatError, IntegrityError, NotFoundError
from layerkit.formats.oci import (
    ANNOTATION_REF_NAME,
    ANNOTATION_WAS,
    CHUNKS_ARTIFACT,
    INDEX_TYPES,
    MAX_ITEMS,
    UPDATE_ARTIFACT,
    WAS_ARTIFACT,
    Descriptor,
    Index,
    Manifest,
    parse_index,
    parse_manifest,
    serialize_index,
)
from layerkit.formats.signature import signature_tag

__all__ = ["RegistryOrigin"]

THREAD_COUNT: Final = 8
KEEP_OLD: Final = 8  # images that a tag named before
REFERRERS_SECONDS: Final = 60.0
MAX_DOCUMENT_COUNT: Final = 2048  # manifests that are kept, of
MAX_KEPT_SIZE: Final = 32 << 10  # bytes at most
MAX_KNOWN_COUNT: Final = 20_000  # images whose facts are kept in memory, some 300 bytes each
_log = logging.getLogger(__name__)


class RegistryOrigin:
    """The `Origin` of `repositories`, or of all that the registry lists."""

    def __init__(self, registry: Registry, repositories: Sequence[str] = ()) -> None:
        self.where = f"{registry.transport.base}/{','.join(repositories)}"
        self._registry = registry
        self._repositories = tuple(repositories)
        self._lock = threading.Lock()  # one read_index at a time
        self._homes: dict[Digest, set[str]] = {}  # of referrers: which repositories have them
        self._tops: dict[str, list[Descriptor]] = {}  # by `name:tag`: now, and before
        self._documents: OrderedDict[Digest, bytes] = OrderedDict()
        self._referrers: dict[tuple[str, Digest], tuple[float, list[Descriptor]]] = {}

    def read_index(self) -> bytes:
        with self._lock, ThreadPoolExecutor(THREAD_COUNT) as pool:
            if len(self._referrers) > MAX_KNOWN_COUNT:
                self._referrers.clear()
                self._homes.clear()
                self._tops.clear()
            names = self._repositories or self._registry.list_repositories()
            entries: list[Descriptor] = []
            for name in sorted(names):
                entries += self._read_repository(name, pool)
        return serialize_index(Index(tuple(_bounded(entries))))

    def open(self, name: str, digest: Digest) -> tuple[int, Iterator[bytes]]:
        """From `name`, or from a repository where a referrer was seen: an index names none."""
        names = [name] if name else []
        names += sorted(self._homes.get(digest, set()) - {name})
        held = self._documents.get(digest)
        if held is not None:
            return len(held), iter((held,))
        for home in names:
            size = self._registry.size_of(home, digest)
            if size is not None:
                return size, self._registry.read_parts(home, digest, size)
            try:
                _, raw = self._registry.read_manifest(home, str(digest))
                return len(raw), iter((raw,))
            except NotFoundError:
                continue
        raise NotFoundError(f"blob {digest.short} is not in {self.where}")

    # --- a repository ----------------------------------------------------------------------------

    def _read_repository(self, name: str, pool: ThreadPoolExecutor) -> list[Descriptor]:
        try:
            listed_tags = self._registry.list_tags(name)
        except NotFoundError:
            return []
        tags = [tag for tag in listed_tags if not is_fallback_tag(tag)]
        tags.sort(key=_natural)
        tops = pool.map(lambda tag: self._resolve(name, tag), tags)
        found = {tag: top for tag, top in zip(tags, tops, strict=True) if top is not None}
        for tag, top in found.items():
            seen = self._tops.setdefault(f"{name}:{tag}", [])
            seen[:] = [top, *(old for old in seen if old.digest != top.digest)][: KEEP_OLD + 1]
        olds = pool.map(lambda tag: self._find_olds(name, tag), found)
        entries: list[Descriptor] = []
        for tag, old in zip(found, olds, strict=True):
            was = {ANNOTATION_WAS: f"{name}:{tag}"}
            entries += [replace(top, annotations=was) for top in reversed(old)]
        entries += [
            replace(top, annotations={ANNOTATION_REF_NAME: f"{name}:{tag}"})
            for tag, top in found.items()
        ]
        images = {image.digest for top in entries for image in self._images(name, top)}
        signed = sorted({signature_tag(image) for image in images} & set(listed_tags))
        signatures = zip(
            signed, pool.map(lambda tag: self._resolve(name, tag), signed), strict=True
        )
        entries += [
            replace(top, annotations={ANNOTATION_REF_NAME: f"{name}:{tag}"})
            for tag, top in signatures
            if top is not None
        ]
        listed = pool.map(lambda image: self._list_referrers(name, image), sorted(images))
        named = {image.digest for top in found.values() for image in self._images(name, top)}
        referrers = {
            entry.digest: entry
            for image, group in zip(sorted(images), listed, strict=True)
            for entry in group
            if image in named or entry.artifact_type != UPDATE_ARTIFACT  # who goes to an old one?
        }
        for digest in referrers:
            self._homes.setdefault(digest, set()).add(name)
        return entries + [referrers[digest] for digest in sorted(referrers)]

    def _resolve(self, name: str, ref: str) -> Descriptor | None:
        """What a tag or digest names, if it is an image that can be read."""
        try:
            top = self._registry.resolve(name, ref)
            if top is not None:
                self._read_document(name, top)
        except (NotFoundError, FormatError, IntegrityError) as exc:
            _log.debug("%s of %s is no image: %s", ref, name, exc.message)
            return None
        return top

    def _read_document(self, name: str, entry: Descriptor) -> Manifest | Index:
        """A manifest or index; read once, and kept for who asks for it next."""
        raw = self._documents.get(entry.digest)
        if raw is None:
            _, raw = self._registry.read_manifest(name, str(entry.digest))
            if len(raw) <= MAX_KEPT_SIZE:
                self._documents[entry.digest] = raw
                while len(self._documents) > MAX_DOCUMENT_COUNT:
                    self._documents.popitem(last=False)
        return parse_index(raw) if entry.media_type in INDEX_TYPES else parse_manifest(raw)

    def _images(self, name: str, top: Descriptor) -> Iterable[Descriptor]:
        """An image, and those of an index."""
        document = self._read_document(name, top)
        return (top, *document.manifests) if isinstance(document, Index) else (top,)

    def _find_olds(self, name: str, tag: str) -> list[Descriptor]:
        """What a tag named before, the newest first: by what was seen, then by what it says."""
        seen = self._tops[f"{name}:{tag}"]
        found = {top.digest: top for top in seen}
        last = seen[-1]
        while len(found) <= KEEP_OLD:
            digest = self._read_was(name, f"{name}:{tag}", last.digest)
            if digest is None or digest in found:
                break
            old = self._resolve(name, str(digest))
            if old is None:
                break
            found[digest] = last = old
            seen.append(old)
        return list(found.values())[1:]

    def _read_was(self, name: str, text: str, digest: Digest) -> Digest | None:
        return read_was(self._list_referrers(name, digest, kinds=(WAS_ARTIFACT,)), text)

    def _list_referrers(
        self, name: str, digest: Digest, kinds: Sequence[str] = ()
    ) -> list[Descriptor]:
        """Referrers of an image: of these kinds, or all but those that only we read."""
        key = (name, digest)
        asked, found = self._referrers.get(key, (0.0, []))
        is_whole = any(entry.artifact_type == CHUNKS_ARTIFACT for entry in found)
        age = time.monotonic() - asked
        if not asked or age > (REFERRERS_SECONDS if is_whole else 0.5):
            try:
                found = list_referrers(self._registry, name, digest)
                found = [entry for entry in found if self._refers(name, entry, digest)]
            except FormatError as exc:
                _log.warning("referrers of %s in %s: %s", digest.short, name, exc.message)
                found = []
            self._referrers[key] = (time.monotonic(), found)
        return [
            entry if kinds else replace(entry, annotations={})  # those could name it
            for entry in found
            if (entry.artifact_type in kinds if kinds else entry.artifact_type != WAS_ARTIFACT)
        ]

    def _refers(self, name: str, entry: Descriptor, subject: Digest) -> bool:
        """Is a listed referrer one? Lists are written by anybody who may push."""
        try:
            document = self._read_document(name, entry)
        except (NotFoundError, FormatError, IntegrityError) as exc:
            _log.debug("referrer %s of %s: %s", entry.digest.short, name, exc.message)
            return False
        is_image = isinstance(document, Manifest)
        return is_image and document.subject is not None and document.subject.digest == subject


def _natural(tag: str) -> list[tuple[int, str]]:
    """A key that puts v10 behind v9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", tag)]


def _bounded(entries: list[Descriptor]) -> list[Descriptor]:
    """As many as an index may list: named ones first to stay, in their order."""
    if len(entries) <= MAX_ITEMS:
        return entries
    _log.warning("%d entries are more than an index may list, %d", len(entries), MAX_ITEMS)
    ranked = sorted(range(len(entries)), key=lambda at: ANNOTATION_WAS in entries[at].annotations)
    return [entries[at] for at in sorted(ranked[:MAX_ITEMS])]
