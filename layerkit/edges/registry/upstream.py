"""A plain registry as the place that images come from: no server of ours stands there.

What we published beside an image as referrers makes a pull small: a stored update from an image
that the node holds is three requests (tag, referrers, blob). Nothing of that decides what runs. A
list of referrers that is absent, broken or refused has no update in it. Who needs the list for more
than that (signatures) is told of the trouble.
Whether the registry has a referrers API is remembered, so that it is found out once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol, Self
from urllib.parse import urlsplit

from layerkit.digest import Digest
from layerkit.edges.registry.client import Registry
from layerkit.edges.registry.referrers import list_referrers
from layerkit.edges.registry.transport import Transport
from layerkit.edges.upstream import Measured, Resolved, UpdateBody
from layerkit.errors import (
    FormatError,
    LayerkitError,
    NotFoundError,
    RemoteError,
    RemoteLimitError,
)
from layerkit.formats.oci import Descriptor, parse_platform
from layerkit.formats.storedupdate import StoredUpdate, choose_update, find_updates

__all__ = ["Facts", "RegistryUpstream", "open_upstream"]

MAX_READ_SIZE: Final = 4 << 30  # bytes
DOCKER_HUB: Final = "registry-1.docker.io"
_TAG_ONLY: Final = "fallback tag"
_log = logging.getLogger(__name__)


class Facts(Protocol):
    """Small things that are kept; the store has them."""

    def fact(self, name: str) -> str | None: ...
    def put_fact(self, name: str, value: str) -> None: ...


def open_upstream(
    url: str,
    facts: Facts | None = None,
    *,
    config: Path | None = None,
    ca: Path | None = None,
    client_cert: Path | None = None,
    client_key: Path | None = None,
    realms: Collection[str] = (),
) -> RegistryUpstream:
    """The registry at `url`, scheme and host; the rest is `Transport`'s. Raises UsageError."""
    parts = urlsplit(url)
    transport = Transport(
        parts.netloc,
        plain_http=parts.scheme == "http",
        config=config,
        ca=ca,
        client_cert=client_cert,
        client_key=client_key,
        realms=realms,
    )
    return RegistryUpstream(Registry(transport), facts)


class RegistryUpstream:
    """Not for sharing between threads. For one pull, or some: lists of referrers are read once."""

    def __init__(self, registry: Registry, facts: Facts | None = None) -> None:
        self._registry = registry
        self._facts = facts
        self._fact = f"registry/{registry.host}/referrers"
        self._tops: dict[tuple[str, str], Descriptor] = {}  # what tags name
        self._referrers: dict[tuple[str, Digest], list[Descriptor] | LayerkitError] = {}
        if facts is not None and facts.fact(self._fact) == _TAG_ONLY:
            registry.lists_referrers = False

    @property
    def url(self) -> str:
        return self._registry.transport.base

    @property
    def request_count(self) -> int:
        return self._registry.transport.traffic.request_count

    @property
    def bytes_moved(self) -> int:
        return self._registry.transport.traffic.bytes_moved

    @property
    def link(self) -> Measured:
        return self._registry.transport.traffic.link

    @property
    def chunk_server(self) -> None:
        return None

    @property
    def has_layers(self) -> bool:
        return True

    def close(self) -> None:
        self._registry.transport.session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def authorize(self, name: str, tag: str) -> str:
        """The Authorization header that the registry wants for a look at a tag; "" for none."""
        return self._registry.transport.authorize(self._home(name), tag)

    # --- what every image needs ----------------------------------------------------------------

    def resolve(self, name: str, ref: str, known: Digest | None = None) -> Resolved | None:
        """The manifest or index that `ref` (tag or digest) names; None if that is still `known`.
        A tag that was looked at names what it named then."""
        top = self._tops.get((name, ref))
        if top is not None and top.digest == known:
            return None
        wanted = str(top.digest) if top else ref
        found = self._registry.read_change(self._home(name), wanted, known)
        if found is None:
            return None
        item, data = found
        return Resolved(item.digest, item.media_type, data)

    def fetch_blob(
        self, name: str, digest: Digest, size: int, progress: Callable[[int], None] | None = None
    ) -> bytes:
        """A blob of `size` bytes, verified. Memory: the blob, twice for a moment."""
        if size > MAX_READ_SIZE:
            raise RemoteLimitError(f"blob {digest.short} has {size} bytes, over {MAX_READ_SIZE}")
        started = time.monotonic()
        data = b"".join(self.stream_blob(name, digest, size, progress))
        self.link.see_body(len(data), time.monotonic() - started, waited=True)
        return data

    def stream_blob(
        self, name: str, digest: Digest, size: int, progress: Callable[[int], None] | None = None
    ) -> Iterator[bytes]:
        """The same in parts as they come, verified at its end; it goes on where it was cut."""
        for part in self._registry.read_parts(self._home(name), digest, size):
            if progress is not None:
                progress(len(part))
            yield part

    # --- what helps to move fewer bytes --------------------------------------------------------

    def open_update(
        self,
        name: str,
        ref: str,
        have: Sequence[Digest],
        platform: str,
        *,
        within: float | None = None,
        wait: float | None = None,
    ) -> UpdateBody | None:
        """The least stored update to what `ref` names from one of `have`; None if it names the
        first. A registry makes nothing and holds no question: `within` and `wait` say nothing."""
        found = self._find_update(name, ref, have, platform)
        if found is None:
            return None
        top, update = found
        return UpdateBody(self.stream_blob(name, update.blob, update.size), top)

    def measure_update(self, name: str, ref: str, have: Sequence[Digest], platform: str) -> int:
        """Bytes that `open_update` would move; 0 if `ref` still names the first of `have`."""
        found = self._find_update(name, ref, have, platform)
        return 0 if found is None else found[1].size

    def _find_update(
        self, name: str, ref: str, have: Sequence[Digest], platform: str
    ) -> tuple[Digest, StoredUpdate] | None:
        if not have:
            raise NotFoundError(f"{self.url} has no updates for who holds nothing")
        top = Digest.parse(ref) if ":" in ref else self._look(name, ref).digest
        if top == have[0]:
            return None
        listed = self._list_referrers(name, top)
        entries = [] if isinstance(listed, LayerkitError) else find_updates(listed)
        found = choose_update(entries, have, parse_platform(platform))
        if found is None:
            raise NotFoundError(f"{self.url} has no update from an image that is held")
        return top, found

    def _look(self, name: str, tag: str) -> Descriptor:
        """What a tag names now, by one request without a body."""
        found = self._registry.resolve(self._home(name), tag)
        if found is None:
            raise NotFoundError(f"{self.url} has no {name}:{tag}")
        self._tops[name, tag] = found
        return found

    def fetch_referrers(self, name: str, digest: Digest, artifact_type: str) -> list[Descriptor]:
        """Descriptors of the manifests of that type whose subject is `digest`. Raises FormatError,
        NotFoundError, RemoteError where the registry has trouble with its list."""
        found = self._list_referrers(name, digest)
        if isinstance(found, LayerkitError):
            raise found
        return [entry for entry in found if entry.artifact_type == artifact_type]

    def _list_referrers(self, name: str, digest: Digest) -> list[Descriptor] | LayerkitError:
        """All of them by one list, or what is wrong with that: asked once either way."""
        found = self._referrers.get((name, digest))
        if found is None:
            try:
                found = list_referrers(self._registry, self._home(name), digest, strict=True)
                self._remember()
            except (FormatError, NotFoundError, RemoteError) as exc:
                _log.warning("no referrers of %s: %s (%s)", digest.short, exc.message, exc.cause)
                found = exc
            self._referrers[name, digest] = found
        return found

    def _remember(self) -> None:
        if self._facts is None:
            return
        fact = _TAG_ONLY if self._registry.lists_referrers is False else "api"
        if self._facts.fact(self._fact) != fact:
            self._facts.put_fact(self._fact, fact)

    def read_start(self, name: str, digest: Digest, size: int, whole_size: int) -> bytes:
        """The first `size` bytes of a blob of `whole_size`, not verified; all of it where the
        registry knows no ranges."""
        return self._registry.read_start(self._home(name), digest, size, whole_size)

    def read_ranges(
        self, name: str, digest: Digest, ranges: Sequence[tuple[int, int]]
    ) -> Iterator[bytes]:
        """The bytes of each (offset, size) of a blob, not verified. Near ones come with one
        request; where the registry answers with the whole blob, all come from that."""
        return self._registry.read_ranges(self._home(name), digest, ranges)

    def _home(self, name: str) -> str:
        """The repository as the registry knows it: docker's own images lie in `library`."""
        is_short = self._registry.host == DOCKER_HUB and "/" not in name
        return f"library/{name}" if is_short else name
