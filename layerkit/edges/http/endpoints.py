"""What each path answers: requests to calls of a `Source`. No sockets, no headers but what matters.

Two surfaces (docs/design.md "Server surface"): the pull part of the OCI distribution spec, so that
an ordinary engine can pull plainly, and chunks, forms and updates. Nothing is served but through a
repository that holds it and that the caller may pull; what may not be seen is answered exactly as
what is not there. Calls of the source run in threads: updates, which may wait for a delta, in
threads of their own.
"""

from __future__ import annotations

import asyncio
import functools
import math
import re
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from layerkit.digest import Digest
from layerkit.edges.http.answers import IMMUTABLE, REVALIDATE, Answer, body_etag
from layerkit.edges.http.metrics import Metrics
from layerkit.edges.http.source import Source
from layerkit.edges.http.watch import FAR_LOOK_SECONDS, LOOK_SECONDS, Flights, Watcher
from layerkit.errors import FormatError, NotFoundError, UsageError
from layerkit.formats.chunksync import CHANGE_TYPE, MAX_HAVE_SIZE, MAX_PLACES_SIZE, parse_have
from layerkit.formats.formpack import PACKED_TYPE
from layerkit.formats.oci import INDEX, Index, parse_platform, serialize_index, serialize_json
from layerkit.formats.protocol import (
    BATCH_TYPE,
    MAX_REQUEST_SIZE,
    parse_chunk_request,
    serialize_chunk_batch,
)
from layerkit.formats.reference import is_repository, is_tag
from layerkit.formats.tokens import Caller
from layerkit.formats.update import MAX_HAVE_COUNT, UPDATE_TYPE, Share

__all__ = ["Call", "Endpoint", "Endpoints"]

MAX_TAGS: Final = 10_000
MAX_WAIT_SECONDS: Final = 60.0  # of a long poll; balancers cut what is silent for longer
DEFAULT_WITHIN_SECONDS: Final = 10.0  # for an update that is not made yet
THREAD_COUNT: Final = 16
UPDATE_THREAD_COUNT: Final = 48  # each may wait for a delta; the source makes few at once
SMALL_SIZE: Final = 64 << 10  # bytes of a blob that is read whole, and may be kept
JSON: Final = "application/json"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """A request whose caller is known."""

    method: str
    parts: Mapping[str, str]  # of the path
    query: Mapping[str, str]
    caller: Caller
    renew: Callable[[], Caller]  # the caller as the tokens say now
    read_body: Callable[[int], Awaitable[bytes]]  # up to a limit

    @property
    def name(self) -> str:
        name = self.parts["name"]
        if not is_repository(name):
            raise UsageError(f"{name[:120]!r} is not a repository name")
        return name

    @property
    def ref(self) -> str:
        """A tag or a digest."""
        ref = self.parts["ref"]
        if ":" in ref:
            _digest(ref, "sha256")
        elif not is_tag(ref):
            raise UsageError(f"{ref[:140]!r} is not a tag")
        return ref

    def digest(self, algorithm: str = "sha256") -> Digest:
        return _digest(self.parts["digest"], algorithm)

    def seconds(self, key: str, default: float, most: float) -> float:
        text = self.query.get(key, "")
        if not text:
            return default
        try:
            value = float(text) if len(text) < 20 else math.nan
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < 0:
            raise UsageError(f"{key}={text[:20]!r} is not a number of seconds")
        return min(value, most)


Handler = Callable[[Call], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path; its label in the metrics; how it is answered by method."""

    label: str
    pattern: re.Pattern[str]
    handlers: Mapping[str, Handler]


class Endpoints:
    """The table of paths over a source."""

    def __init__(self, source: Source, metrics: Metrics) -> None:
        self._source = source
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(THREAD_COUNT, "serve")
        self._update_pool = ThreadPoolExecutor(UPDATE_THREAD_COUNT, "serve-update")
        self._flights = Flights()
        pause = LOOK_SECONDS if source.has_near_version else FAR_LOOK_SECONDS
        self._watcher = Watcher(lambda: self.in_thread(source.version), pause)
        metrics.waiting.set_function(lambda: self._watcher.waiting_count)
        self.table = self._make_table()

    def _make_table(self) -> tuple[Endpoint, ...]:
        def read(handler: Handler) -> dict[str, Handler]:
            return {"GET": handler, "HEAD": handler}

        v1, v2 = "/v1/(?P<name>.+)", "/v2/(?P<name>.+)"
        listed = f"{v1}/chunk-manifests/(?P<digest>[^/]+)"
        quick = self._quick
        rows: list[tuple[str, str, dict[str, Handler]]] = [
            ("ping", "/v2/?", read(_ping)),
            ("manifests", f"{v2}/manifests/(?P<ref>[^/]+)", read(quick(self._manifest))),
            ("blobs", f"{v2}/blobs/(?P<digest>[^/]+)", read(quick(self._blob))),
            ("referrers", f"{v2}/referrers/(?P<digest>[^/]+)", read(quick(self._referrers))),
            ("tags", f"{v2}/tags/list", read(quick(self._tags))),
            ("updates", f"{v1}/updates/(?P<ref>[^/]+)", read(self._update)),
            ("change", listed, {"POST": self._change}),
            ("listed-chunks", f"{listed}/chunks", {"POST": self._listed_chunks}),
            ("packed-forms", f"{v1}/packed-forms/(?P<digest>[^/]+)", read(quick(self._packed))),
            ("chunk", f"{v1}/chunks/(?P<digest>[^/]+)", read(quick(self._chunk))),
            ("chunks", f"{v1}/chunks", {"POST": self._chunks}),
        ]
        return tuple(Endpoint(label, re.compile(path), table) for label, path, table in rows)

    def find(self, path: str) -> tuple[Endpoint, dict[str, str]] | None:
        for endpoint in self.table:
            match = endpoint.pattern.fullmatch(path)
            if match is not None:
                return endpoint, match.groupdict()
        return None

    def version(self) -> Hashable:
        return self._source.version()

    async def in_thread(self, call: Callable[[], T], *, slow: bool = False) -> T:
        """The result of a call that may block."""
        pool = self._update_pool if slow else self._pool
        return await asyncio.get_running_loop().run_in_executor(pool, call)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._update_pool.shutdown(wait=False, cancel_futures=True)

    def _quick(self, handler: Callable[[Call], Answer]) -> Handler:
        async def run(call: Call) -> Answer:
            return await self.in_thread(functools.partial(handler, call))

        return run

    async def check_ready(self) -> None:
        """Raise StoreError or RemoteError if the storage cannot be read."""
        await self._flights.join("ready", lambda: self.in_thread(self._source.check_ready))

    def stop_waiting(self) -> None:
        """Long polls are answered as if their time were over."""
        self._watcher.stop()

    def _enter(self, call: Call) -> str:
        """The repository's name, if it is here and the caller may know."""
        name = call.name
        _check_seen(call.caller, name, self._source.has_repository(name))
        return name

    # --- as a registry -------------------------------------------------------------------------

    def _manifest(self, call: Call) -> Answer:
        ref, name = call.ref, self._enter(call)
        descriptor, data = self._source.read_manifest(name, ref)
        return Answer(
            data,
            descriptor.media_type,
            etag=str(descriptor.digest),
            cache=IMMUTABLE if ":" in ref else REVALIDATE,
            headers=(("docker-content-digest", str(descriptor.digest)),),
            is_final=True,
        )

    def _blob(self, call: Call) -> Answer:
        digest, name = call.digest(), self._enter(call)
        blob = self._source.open_blob(name, digest)
        body = b"".join(blob.read(0, blob.size)) if blob.size <= SMALL_SIZE else blob
        return Answer(
            body,
            etag=str(digest),
            cache=IMMUTABLE,
            headers=(("docker-content-digest", str(digest)),),
            shares=(Share(blob.role, blob.size, blob.size),),
            is_final=True,
        )

    def _referrers(self, call: Call) -> Answer:
        digest, name = call.digest(), self._enter(call)
        found = self._source.list_referrers(name, digest)
        wanted = call.query.get("artifactType", "")
        headers: tuple[tuple[str, str], ...] = ()
        if wanted:
            found = [entry for entry in found if entry.artifact_type == wanted]
            headers = (("oci-filters-applied", "artifactType"),)
        raw = serialize_index(Index(tuple(found)))
        return Answer(raw, INDEX, etag=body_etag(raw), headers=headers)

    def _tags(self, call: Call) -> Answer:
        raw_count = call.query.get("n", str(MAX_TAGS))
        if not (raw_count.isascii() and raw_count.isdigit() and len(raw_count) < 10):
            raise UsageError(f"n={raw_count[:20]!r} is not a number")
        name = self._enter(call)
        tags, last = sorted(self._source.list_tags(name)), call.query.get("last", "")
        tags = [tag for tag in tags if tag > last] if last else tags
        page = tags[: min(int(raw_count), MAX_TAGS)]
        headers: tuple[tuple[str, str], ...] = ()
        if page and len(page) < len(tags):
            following = f"/v2/{name}/tags/list?n={len(page)}&last={page[-1]}"
            headers = (("link", f'<{following}>; rel="next"'),)
        return Answer(serialize_json({"name": name, "tags": page}), JSON, headers=headers)

    # --- updates -------------------------------------------------------------------------------

    async def _update(self, call: Call) -> Answer:
        """`?from=` digests of images that the node holds, maybe none; `&platform=`; `&within=` and
        `&wait=` seconds. 304 when the reference (still) names the first of them."""
        name, ref = call.name, call.ref
        texts = [text for text in call.query.get("from", "").split(",") if text]
        if len(texts) > MAX_HAVE_COUNT:
            raise UsageError(f"{len(texts)} images in from=, want <= {MAX_HAVE_COUNT}")
        have = tuple(_digest(text, "sha256") for text in texts)
        platform = parse_platform(call.query.get("platform", "linux/amd64"))
        within = call.seconds("within", DEFAULT_WITHIN_SECONDS, DEFAULT_WITHIN_SECONDS)
        wait = call.seconds("wait", 0.0, MAX_WAIT_SECONDS)
        if have and wait:
            if not await self._wait_for_change(call, ref, have[0], wait):
                return _not_changed(have[0])
            call = replace(call, caller=call.renew())
        caller = call.caller
        await self.in_thread(lambda: self._enter(call))
        key = (self._source.version(), name, ref, have, platform, caller, within)
        found = await self._flights.join(
            key,
            lambda: self.in_thread(
                lambda: self._source.read_update(name, ref, have, platform, caller, within),
                slow=True,
            ),
        )
        if have and found.digest == have[0]:
            return _not_changed(have[0], is_final=not wait)
        if found.raw is None:
            raise NotFoundError(f"no update of {name}:{ref[:140]} from these images")
        is_immutable = ":" in ref and found.was_kept
        return Answer(
            found.raw,
            UPDATE_TYPE,
            etag=body_etag(found.raw) if isinstance(found.raw, bytes) else found.etag,
            cache=IMMUTABLE if is_immutable else REVALIDATE,
            headers=(("docker-content-digest", str(found.digest)),),
            shares=found.shares,
            is_final=found.was_kept and not wait,
        )

    async def _wait_for_change(self, call: Call, ref: str, held: Digest, seconds: float) -> bool:
        """Until `ref` names another image than `held`; False when that takes over `seconds`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while True:
            version = await self.in_thread(self._source.version)
            if await self._resolve(version, call, ref) != held:
                return True
            left = end - loop.time()
            if left <= 0 or not await self._watcher.wait(version, left):
                return False

    async def _resolve(self, version: Hashable, call: Call, ref: str) -> Digest | None:
        """What `ref` names, asked once for all who wait for it."""
        name = call.name

        def look() -> tuple[bool, Digest | None]:
            held = self._source.has_repository(name)
            return held, self._source.resolve(name, ref) if held else None

        held, found = await self._flights.join(
            ("resolve", version, name, ref), lambda: self.in_thread(look)
        )
        _check_seen(call.renew(), name, held)
        return found

    # --- chunks, forms, chunk manifests ----------------------------------------------------------

    def _chunk(self, call: Call) -> Answer:
        chunk, name = call.digest("b3"), self._enter(call)
        data = self._source.read_chunk(name, chunk)
        if data is None:
            raise NotFoundError(f"chunk {chunk.short} is not held here")
        return Answer(bytes(data), etag=str(chunk), cache=IMMUTABLE, is_final=True)

    async def _chunks(self, call: Call) -> Answer:
        """Body: ids of chunks."""
        ids = parse_chunk_request(await call.read_body(MAX_REQUEST_SIZE))
        name = await self.in_thread(lambda: self._enter(call))
        chunks = (self._source.read_chunk(name, chunk) for chunk in ids)
        return Answer(serialize_chunk_batch(chunks, len(ids)), BATCH_TYPE)

    def _packed(self, call: Call) -> Answer:
        digest, name = call.digest(), self._enter(call)
        raw = self._source.read_packed(name, digest)
        role = self._source.role_of_chunks(name, digest)
        shares = (Share(role, len(raw), len(raw)),)
        # not named by its own digest: another server may pack better
        return Answer(
            raw, PACKED_TYPE, etag=body_etag(raw), cache=IMMUTABLE, shares=shares, is_final=True
        )

    async def _change(self, call: Call) -> Answer:
        """Body: what the node holds; answer: a chunk manifest as a change of it."""
        have = parse_have(await call.read_body(MAX_HAVE_SIZE))
        digest = call.digest()

        def read() -> bytes:
            return self._source.read_change(self._enter(call), digest, have, call.caller)

        return Answer(await self.in_thread(read), CHANGE_TYPE)

    async def _listed_chunks(self, call: Call) -> Answer:
        """Body: places in the chunk manifest; `?near=` a chunk manifest that the node holds."""
        digest, text = call.digest(), call.query.get("near", "")
        near = _digest(text, "sha256") if text else None
        body = await call.read_body(MAX_PLACES_SIZE)

        def read() -> Iterator[bytes]:
            name = self._enter(call)
            role = self._source.role_of_chunks(name, digest)
            parts = self._source.read_listed(name, digest, body, near, call.caller)
            return self._counted(parts, role)

        return Answer(await self.in_thread(read), BATCH_TYPE)

    def _counted(self, parts: Iterator[bytes], role: str) -> Iterator[bytes]:
        for part in parts:
            self._metrics.count_shares((Share(role, len(part), len(part)),))
            yield part


async def _ping(_: Call) -> Answer:
    headers = (("docker-distribution-api-version", "registry/2.0"),)
    return Answer(b"{}", JSON, headers=headers)


def _check_seen(caller: Caller, name: str, held: bool) -> None:
    """Both are looked at always: what is hidden takes as long as what is not there."""
    allowed = caller.may_pull(name)
    if not (held and allowed):
        raise NotFoundError(f"repository {name} is not held here")


def _not_changed(digest: Digest, is_final: bool = False) -> Answer:
    headers = (("docker-content-digest", str(digest)),)
    return Answer(status=304, headers=headers, is_final=is_final)


def _digest(text: str, algorithm: str) -> Digest:
    try:
        digest = Digest.parse(text)
    except FormatError as exc:
        raise UsageError(f"{text[:80]!r} is not a digest") from exc
    if digest.algorithm != algorithm:
        raise UsageError(f"{digest.short} is not a {algorithm} digest")
    return digest
