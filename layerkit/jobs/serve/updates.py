"""Updates for nodes: from which images and forms one starts, and its one stream."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from layerkit.digest import Digest
from layerkit.edges.http.source import UpdateAnswer
from layerkit.formats.oci import Platform
from layerkit.formats.tokens import Caller
from layerkit.formats.update import serialize_update
from layerkit.formats.updating import Documents, Olds, choose_olds, make_update
from layerkit.jobs.serve.library import Library

__all__ = ["Updates"]

MAX_ROUTE_COUNT: Final = 1024  # kept; each holds the documents of two images


@dataclass(frozen=True, slots=True)
class _Route:
    """The old forms of an update, the image whose documents the new ones are written against."""

    olds: Olds
    old_top: Digest
    old: Documents
    new: Documents


class Updates:
    """Made once for all who ask at the same time, and kept while they fit. Safe for threads."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._lock = threading.Lock()
        self._routes_of: Hashable = None
        self._routes: dict[Hashable, _Route | None] = {}

    def answer(
        self,
        name: str,
        top: Digest,
        have: Sequence[Digest],
        caller: Caller,
        platform: Platform,
        within: float,
    ) -> UpdateAnswer:
        """The update of repository `name` to `top` from images of `have`, in whichever repositories
        they are; without bytes if there is none. NotFoundError while it is not made within `within`
        seconds."""
        own = [(old, name) for old in have if self._library.find_documents(name, old, platform)]
        own_digests = {old for old, _ in own}
        others = [
            (old, other)
            for old in have
            if old not in own_digests
            and (other := self._library.find_holder(old, caller)) is not None
        ]
        route = self._find_route(name, top, platform, own, others)
        if route is None:
            return UpdateAnswer(top, None, (), False)
        forms = ",".join(str(form.digest) for _, old in route.olds.layers for _, form in old)
        raw = self._library.make_soon(
            f"update/0/{route.old_top}/{top}/{platform}/{forms}",
            partial(self._make_update, route),
            within,
            caller,
        )
        return UpdateAnswer(top, raw, (), raw is not None)

    def _find_route(
        self,
        name: str,
        top: Digest,
        platform: Platform,
        own: Sequence[tuple[Digest, str]],
        others: Sequence[tuple[Digest, str]],
    ) -> _Route | None:
        """From which images and forms an update starts, if there is one. Kept, for it takes 5 ms an
        image, and nodes ask again with what others have asked with."""
        key = (name, top, platform, *own, None, *others)
        version = self._library.version()
        with self._lock:
            if self._routes_of != version:
                self._routes_of, self._routes = version, {}
            if key in self._routes:
                return self._routes[key]
        route = None
        new = self._library.find_documents(name, top, platform)
        if new is not None and new.artifact:
            known: list[tuple[Digest, Documents]] = []
            own_count = 0
            for at, (old, holder) in enumerate((*own, *others)):
                documents = self._library.find_documents(holder, old, platform)
                if documents is not None and documents.artifact:
                    known.append((old, documents))
                    own_count += at < len(own)
            olds = choose_olds([old for _, old in known], own_count, new, self._library.places_of)
            if olds is not None:
                route = _Route(olds, *known[olds.image], new)
        with self._lock:
            if self._routes_of == version:
                if len(self._routes) >= MAX_ROUTE_COUNT:
                    self._routes.clear()
                self._routes[key] = route
        return route

    def _make_update(self, route: _Route) -> bytes | None:
        made = make_update(route.olds, route.new, self._library.form_of)
        if made is None:
            return None
        return serialize_update(made, route.old_top, route.old.as_list())
