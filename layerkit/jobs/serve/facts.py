"""What the page says of repositories: versions, their sizes by role, prepared updates."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from layerkit.digest import Digest
from layerkit.edges.http.source import RepositoryFacts, UpdateFacts, VersionFacts
from layerkit.errors import FormatError, LayerkitError
from layerkit.formats.chunkmanifest import ROLE_CODES
from layerkit.formats.oci import ANNOTATION_ROLE, Manifest, parse_config
from layerkit.formats.tokens import Caller
from layerkit.jobs.serve.ledger import Ledger, Prepared
from layerkit.jobs.updating.catalogue import Catalogue, Repository

__all__ = ["Facts"]

ANNOTATION_CREATED: Final = "org.opencontainers.image.created"
MAX_VERSION_COUNT: Final = 50  # of a repository on the page, the newest
MAX_CREATED_COUNT: Final = 20_000  # times that are remembered
MAX_READ_COUNT: Final = 500  # configs that are read for one page; the next one shows more


class Facts:
    """Describes what is in `catalogue`. Safe for threads."""

    def __init__(self, catalogue: Catalogue, ledger: Ledger) -> None:
        self._catalogue = catalogue
        self._ledger = ledger
        self._lock = threading.Lock()
        self._created: dict[Digest, str] = {}
        self._reads_left = 0

    def describe(self, caller: Caller) -> tuple[RepositoryFacts, ...]:
        """What the caller may pull, by name."""
        prepared = self._ledger.read()
        with self._lock:
            self._reads_left = MAX_READ_COUNT
        return tuple(
            self._describe(repository, prepared.get(name, []))
            for name, repository in sorted(self._catalogue.view().repositories.items())
            if caller.may_pull(name)
        )

    def _describe(self, repository: Repository, prepared: Iterable[Prepared]) -> RepositoryFacts:
        places = {top: place for place, top in enumerate(repository.versions)}
        named = [pair for pair in repository.tags.items() if pair[1] in places]
        tags = sorted(named, key=lambda pair: (places[pair[1]], pair[0]))
        names = {top: tag for tag, top in reversed(tags)}
        stored = _list_stored(repository, self._catalogue)
        known = {(one.old, one.new): one for one in (*stored, *prepared)}
        held = [one for one in known.values() if one.old in places and one.new in places]
        held.sort(key=lambda one: (places[one.new], places[one.old]))  # the shortest step first
        updates = tuple(
            UpdateFacts(
                names.get(one.old, one.old.short),
                names.get(one.new, one.new.short),
                one.size,
                one.whole_size,
            )
            for one in held
        )
        versions = tuple(
            self._describe_version(repository, tag, top) for tag, top in tags[:MAX_VERSION_COUNT]
        )
        return RepositoryFacts(repository.name, versions, updates)

    def _describe_version(self, repository: Repository, tag: str, top: Digest) -> VersionFacts:
        images = [manifest for _, manifest in self._catalogue.list_images(top)]
        sizes = dict.fromkeys(ROLE_CODES, 0)
        for layer in images[0].layers if images else ():
            role = layer.annotations.get(ANNOTATION_ROLE, "")
            sizes[role] = sizes.get(role, 0) + layer.size
        created = self._find_created(repository, top, images)
        return VersionFacts(
            tag, top, created, tuple((role, size) for role, size in sizes.items() if size)
        )

    def _find_created(self, repository: Repository, top: Digest, images: Sequence[Manifest]) -> str:
        """When the first of these images says that it was made."""
        if not images:
            return ""
        with self._lock:
            if top in self._created:
                return self._created[top]
        created = images[0].annotations.get(ANNOTATION_CREATED, "")
        if not created:
            with self._lock:
                self._reads_left -= 1
                if self._reads_left < 0:
                    return ""
            try:
                raw = self._catalogue.read_document(repository.name, images[0].config.digest)
                created = parse_config(raw).created
            except (LayerkitError, FormatError):
                created = ""  # a page is no place to fail at
        with self._lock:
            if len(self._created) >= MAX_CREATED_COUNT:
                self._created.clear()
            self._created[top] = created
        return created


def _list_stored(repository: Repository, catalogue: Catalogue) -> Iterator[Prepared]:
    """The updates that were published beside images, against all layers of these."""
    for top, found in repository.updates.items():
        images = catalogue.list_images(top)[:1]
        whole = sum(layer.size for _, manifest in images for layer in manifest.layers)
        for one in found:
            yield Prepared(one.old, top, one.size, whole)
