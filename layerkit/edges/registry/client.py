"""An OCI registry: blobs, ranges, manifests, tags. Spec: OCI distribution-spec 1.1.

What comes in is bounded, and verified where a digest names it. A blob that breaks off goes on where
it was cut; a registry that answers a range with the whole blob is read once, and what was wanted is
cut out of that. Uploads are streamed; what is there already is not sent, what another repository of
the registry has is mounted.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import requests

from layerkit.digest import Digest, check_digest, sha256_digest, verify_stream
from layerkit.edges.registry.traffic import BrokenError
from layerkit.edges.registry.transport import Transport
from layerkit.errors import FormatError, RemoteError, RemoteLimitError
from layerkit.formats.oci import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_BLOB_SIZE,
    MAX_DOCUMENT_SIZE,
    Descriptor,
    parse_index,
    parse_manifest,
)
from layerkit.formats.reference import is_repository, is_tag

__all__ = ["HELD", "MOUNTED", "SENT", "Registry"]

HELD: Final = "held"  # what became of a blob: it was there,
MOUNTED: Final = "mounted"  # it came from another repository of the registry,
SENT: Final = "sent"  # it was sent
PART_SIZE: Final = 256 << 10  # bytes of a blob in memory while it is sent
NEAR: Final = 32 << 10  # bytes between two ranges that are cheaper to read than another request
MAX_CUTS: Final = 5  # times that an answer may break off without any progress
MAX_NAME_COUNT: Final = 100_000  # tags or repositories of one list
MAX_PAGE_SIZE: Final = 4 << 20  # bytes
MAX_PAGES: Final = 1000
TRIED_SIZE: Final = 16 << 10  # bytes of a blob with which uploading by one request is tried out
_ACCEPT: Final = {"Accept": ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))}

Open = Callable[[], BinaryIO]


class Registry:
    """The registry behind a `Transport`. Safe for threads."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.host = transport.host
        self.lists_referrers: bool | None = None  # has it that API? None: not known yet
        self._takes_post: bool | None = None  # a whole blob by one POST? None: not known yet
        self._traffic = transport.traffic

    def ping(self) -> None:
        """Raise RemoteError unless it is there, and lets us in."""
        self._expect(self._get("/v2/"), 200).close()

    # --- names ---------------------------------------------------------------------------------

    def list_repositories(self) -> list[str]:
        """All of them, where the registry tells (`_catalog`)."""
        names = self._read_names("/v2/_catalog?n=1000", "repositories", "")
        return sorted(name for name in names if is_repository(name))

    def list_tags(self, name: str) -> list[str]:
        """All tags of a repository; NotFoundError if there is no such repository."""
        tags = self._read_names(f"/v2/{name}/tags/list?n=1000", "tags", name)
        return sorted(tag for tag in tags if is_tag(tag))

    def _read_names(self, path: str, key: str, scope: str) -> set[str]:
        found: set[str] = set()
        url = f"{self.transport.base}{path}"
        for _ in range(MAX_PAGES):
            answer = self._expect(self.transport.send("GET", url, scope=scope), 200)
            following = answer.links.get("next", {}).get("url", "")
            page = self._parse_names(self._traffic.read(answer, MAX_PAGE_SIZE), key)
            is_new = not found.issuperset(page)
            found |= page
            if len(found) > MAX_NAME_COUNT:
                raise RemoteLimitError(f"{self.host} lists more than {MAX_NAME_COUNT} {key}")
            if not following or not is_new:  # a registry that repeats itself is at its end
                return found
            url = self.transport.locate(url, following)
        return found

    def _parse_names(self, raw: bytes, key: str) -> set[str]:
        try:
            names = json.loads(raw).get(key) or []
            return {name for name in names if isinstance(name, str)}
        except (ValueError, AttributeError, TypeError, RecursionError) as exc:
            raise RemoteError(f"{self.host} does not answer with a list of {key}") from exc

    # --- manifests -----------------------------------------------------------------------------

    def resolve(self, name: str, ref: str) -> Descriptor | None:
        """What a tag or digest names, as the registry says; None if nothing."""
        path = f"/v2/{name}/manifests/{ref}"
        answer = self.transport.send("HEAD", self._url(path), headers=_ACCEPT, scope=name)
        if answer.status_code == 404:
            answer.close()
            return None
        with self._expect(answer, 200):
            digest = answer.headers.get("Docker-Content-Digest", "")
            size = answer.headers.get("Content-Length", "")
            media_type = _media_type(answer)
        is_size = size.isascii() and size.isdigit()
        if not (digest and is_size and media_type in (*MANIFEST_TYPES, *INDEX_TYPES)):
            return self.read_manifest(name, ref)[0]  # an old registry tells only by the bytes
        try:
            return Descriptor(media_type, Digest.parse(digest), int(size[:12]))
        except FormatError as exc:
            raise RemoteError(f"{self.host} names no digest", cause=exc.message) from exc

    def read_manifest(self, name: str, ref: str) -> tuple[Descriptor, bytes]:
        """A manifest or index, as it is stored: of the digest, if `ref` is one."""
        found = self.read_change(name, ref, None)
        assert found is not None
        return found

    def read_change(
        self, name: str, ref: str, known: Digest | None
    ) -> tuple[Descriptor, bytes] | None:
        """The same; None if `ref` still names `known`."""
        path = f"/v2/{name}/manifests/{ref}"
        headers = dict(_ACCEPT)
        if known is not None:
            headers["If-None-Match"] = f'"{known}"'
        answer = self.transport.send("GET", self._url(path), headers=headers, scope=name)
        if answer.status_code == 304 and known is not None:
            answer.close()
            return None
        media_type = _media_type(self._expect(answer, 200))
        said = answer.headers.get("Docker-Content-Digest", "") if ":" not in ref else ref
        raw = self._traffic.read(answer, MAX_DOCUMENT_SIZE)
        if said.startswith("sha256:"):
            check_digest(raw, Digest.parse(said), f"manifest {ref[:19]} of {self.host}")
        media_type = _document_type(raw, media_type)
        return Descriptor(media_type, sha256_digest(raw), len(raw)), raw

    def put_manifest(self, name: str, ref: str, item: Descriptor, raw: bytes) -> bool:
        """Store a manifest under a tag or its digest. Does the registry list it as a referrer of
        its subject by itself?"""
        url = self._url(f"/v2/{name}/manifests/{ref}")
        headers = {"Content-Type": item.media_type}
        answer = self.transport.send("PUT", url, headers=headers, body=lambda: raw, scope=name)
        with self._expect(answer, 201, 200, 202):
            return "OCI-Subject" in answer.headers

    # --- reading blobs -------------------------------------------------------------------------

    def size_of(self, name: str, digest: Digest) -> int | None:
        """The size of a blob, None if it is not there."""
        answer = self.transport.send("HEAD", self._blob_url(name, digest), scope=name)
        if answer.status_code == 404:
            answer.close()
            return None
        with self._expect(answer, 200):
            size = answer.headers.get("Content-Length", "")
        if not (size.isascii() and size.isdigit()) or int(size[:15]) > MAX_BLOB_SIZE:
            raise RemoteError(f"{self.host} does not tell the size of blob {digest.short}")
        return int(size)

    def read_blob(self, name: str, digest: Digest, limit: int) -> bytes:
        """A blob of at most `limit` bytes, verified. Goes on where it is cut."""
        raw = bytearray()
        for part in self._read_on(name, digest, limit):
            raw += part
            if len(raw) > limit:
                raise RemoteLimitError(f"blob {digest.short} of {self.host} is over {limit} bytes")
        check_digest(raw, digest, f"blob {digest.short} of {self.host}")
        return bytes(raw)

    def read_parts(self, name: str, digest: Digest, size: int) -> Iterator[bytes]:
        """A blob of `size` bytes; raises IntegrityError at its end if it is another. Goes on where
        it is cut."""
        parts = self._read_on(name, digest, size)
        return verify_stream(parts, digest, size, f"blob {digest.short} of {self.host}")

    def read_start(self, name: str, digest: Digest, size: int, whole_size: int) -> bytes:
        """The first `size` bytes of a blob of `whole_size`; all of it where the registry answers a
        range with that, so that it is asked once. Not verified. Goes on where it is cut."""
        raw = bytearray()
        for part in self._read_on(name, digest, size, whole_size):
            raw += part
            if len(raw) > whole_size:
                raise RemoteLimitError(f"blob {digest.short} of {self.host} is over {whole_size}")
        return bytes(raw)

    def _read_on(
        self, name: str, digest: Digest, size: int, whole_size: int = 0
    ) -> Iterator[bytes]:
        """The first `size` bytes; all of the blob without `whole_size`, and where a range is
        answered with that."""
        at, cuts, end = 0, 0, size
        while True:
            had = at
            try:
                found = self._open(name, digest, at, end, ranged=at > 0 or end < whole_size)
                if found.is_whole:
                    end = max(size, whole_size)
                skip = at - found.start
                for part in found.parts:
                    if skip < len(part):
                        yield part[skip:]
                        at += len(part) - skip
                    skip = max(0, skip - len(part))
                return
            except BrokenError:
                cuts = 0 if at > had else cuts + 1
                if cuts >= MAX_CUTS:
                    raise

    def read_ranges(
        self, name: str, digest: Digest, ranges: Sequence[tuple[int, int]], near: int = NEAR
    ) -> Iterator[bytes]:
        """The bytes of each (offset, size), which are in order and do not overlap. Ranges that are
        `near` come with one request; from the first answer with the whole blob on, all come from
        that. Not verified: a digest names a whole blob."""
        left, cuts = list(ranges), 0
        while left:
            had, count = len(left), _run_length(left, near)
            end = left[count - 1][0] + left[count - 1][1]
            try:
                found = self._open(name, digest, left[0][0], end, ranged=True)
                wanted = left[:] if found.is_whole else left[:count]
                with contextlib.closing(found.parts):
                    for data in _cut_out(found.parts, found.start, wanted):
                        left.pop(0)
                        yield data
                    if not found.is_whole:
                        next(found.parts, None)  # to its end: the connection stays
            except BrokenError:
                cuts = 0 if len(left) < had else cuts + 1
                if cuts >= MAX_CUTS:
                    raise

    def _open(self, name: str, digest: Digest, start: int, end: int, *, ranged: bool) -> _Opened:
        """Parts of a blob from `start` on, or all of it where the registry knows no ranges."""
        headers = {"Range": f"bytes={start}-{end - 1}"} if ranged else {}
        url = self._blob_url(name, digest)
        answer = self._expect(
            self.transport.send("GET", url, headers=headers, scope=name), 200, 206
        )
        if answer.status_code == 200:
            return _Opened(0, True, self._traffic.stream(answer, MAX_BLOB_SIZE))
        told = answer.headers.get("Content-Range", "")
        if not told.replace(" ", "").lower().startswith(f"bytes{start}-"):
            answer.close()
            raise RemoteError(
                f"{self.host} answers with another range of blob {digest.short}",
                cause=f"got {told[:60]!r}, want bytes {start}-{end - 1}",
            )
        return _Opened(start, False, self._traffic.stream(answer, end - start))

    # --- writing blobs -------------------------------------------------------------------------

    def put_blob(
        self, name: str, item: Descriptor, open_blob: Open, sources: Sequence[str] = ()
    ) -> str:
        """Bring a blob into repository `name`: HELD, MOUNTED from one of `sources`, or SENT."""
        if self.size_of(name, item.digest) is not None:
            return HELD
        for source in sources:
            if source != name and self._mount(name, item.digest, source):
                return MOUNTED
        answer = self.transport.retry(lambda: self._upload(name, item, open_blob))
        self._expect(answer, 201, 204).close()
        return SENT

    def _mount(self, name: str, digest: Digest, source: str) -> bool:
        query = urlencode({"mount": str(digest), "from": source})
        url = self._url(f"/v2/{name}/blobs/uploads/?{query}")
        answer = self.transport.send("POST", url, body=lambda: b"", scope=f"{name} {source}")
        answer.close()
        if answer.status_code == 202:  # it opened an upload instead, which nobody needs
            location = answer.headers.get("Location", "")
            self._cancel(self.transport.locate(url, location), name)
        return answer.status_code == 201

    def _cancel(self, location: str, name: str) -> None:
        """Let go of an upload: a courtesy, whose failure is nobody's concern."""
        try:
            self.transport.send_once("DELETE", location, scope=name).close()
        except RemoteError:
            return

    def _upload(self, name: str, item: Descriptor, open_blob: Open) -> requests.Response:
        """A new upload, whole: one that broke off cannot be trusted to be where we think it is. By
        one request where the registry takes that, which a small blob finds out: who does not
        answers with an upload that is open (spec: "Single POST")."""
        url = self._url(f"/v2/{name}/blobs/uploads/")
        limit = 0 if self._takes_post is False else TRIED_SIZE
        is_whole = self._takes_post or item.size <= limit
        send, headers = self.transport.send_once, {"Content-Type": "application/octet-stream"}
        with open_blob() as file:

            def body() -> _Sized | bytes:
                file.seek(0)
                return _Sized(file, item.size) if item.size else b""

            if is_whole:
                whole_url = f"{url}?{urlencode({'digest': str(item.digest)})}"
                answer = send("POST", whole_url, headers=headers, body=body, scope=name)
                self._takes_post = answer.status_code == 201
            else:
                answer = send("POST", url, body=lambda: b"", scope=name)
            if answer.status_code != 202:
                return answer
            answer.close()
            parts = urlsplit(self.transport.locate(url, answer.headers.get("Location", "")))
            asked = parse_qsl(parts.query, keep_blank_values=True)
            query = urlencode([*asked, ("digest", str(item.digest))])
            where = urlunsplit(parts._replace(query=query))
            return send("PUT", where, headers=headers, body=body, scope=name)

    # --- requests ------------------------------------------------------------------------------

    def _url(self, path: str) -> str:
        return f"{self.transport.base}{path}"

    def _blob_url(self, name: str, digest: Digest) -> str:
        return self._url(f"/v2/{name}/blobs/{quote(str(digest), safe=':')}")

    def _get(self, path: str, scope: str = "") -> requests.Response:
        return self.transport.send("GET", self._url(path), scope=scope)

    def _expect(self, answer: requests.Response, *statuses: int) -> requests.Response:
        if answer.status_code not in statuses:
            raise self.transport.error_of(answer)
        return answer


@dataclass(frozen=True, slots=True)
class _Opened:
    """A running answer: where in the blob it begins, whether it is all of it."""

    start: int
    is_whole: bool
    parts: Generator[bytes, None, None]


class _Sized:
    """A file as a body of known length, which requests streams. In large parts: with `read` it
    would be asked for 16 KiB at a time, and wait as often for a thread that computes."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        while part := self._file.read(PART_SIZE):
            yield part


def _run_length(ranges: Sequence[tuple[int, int]], near: int) -> int:
    """How many of the first ranges one request takes."""
    count = 1
    while count < len(ranges):
        offset, size = ranges[count - 1]
        if ranges[count][0] - (offset + size) > near:
            break
        count += 1
    return count


def _cut_out(parts: Iterator[bytes], at: int, ranges: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """The ranges of a stream whose first byte is at `at`; BrokenError if it ends before them."""
    held = bytearray()  # of the stream, from `at` on
    for offset, size in ranges:
        while at + len(held) < offset + size:
            if at + len(held) < offset:  # nothing before the range is wanted
                at += len(held)
                held.clear()
            part = next(parts, None)
            if part is None:
                raise BrokenError(f"blob ends at {at + len(held)}, want {offset + size} bytes")
            held += part
        yield bytes(held[offset - at : offset - at + size])
        del held[: offset - at + size]
        at = offset + size


def _media_type(answer: requests.Response) -> str:
    return str(answer.headers.get("Content-Type", "")).partition(";")[0].strip().lower()


def _document_type(raw: bytes, media_type: str) -> str:
    """The media type of a document by what it says, for not all registries keep it."""
    if media_type in INDEX_TYPES:
        return parse_index(raw).media_type
    if media_type not in MANIFEST_TYPES:
        with contextlib.suppress(FormatError):
            return parse_index(raw).media_type
    return parse_manifest(raw).media_type
