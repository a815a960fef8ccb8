"""Client of one chunk server (or of any registry, for the plain part).

Retries connection errors, 429 and 5xx with growing pauses; a blob goes on where it was cut. Every
answer has a size limit and a deadline (a slow drip or an endless stream ends as an error), and is
verified where it enters. Redirects are not followed. `bytes_moved` counts bodies as they are on the
wire, sent and received; `request_count` counts requests, retries included.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import urllib3

from layerkit.digest import Digest, check_digest, sha256_digest
from layerkit.errors import (
    FormatError,
    IntegrityError,
    NotFoundError,
    RemoteDeniedError,
    RemoteError,
    RemoteLimitError,
    UsageError,
)
from layerkit.formats.chunksync import CHANGE_TYPE, PLACES_TYPE, Have, serialize_have
from layerkit.formats.formpack import PACKED_TYPE
from layerkit.formats.oci import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_DOCUMENT_SIZE,
    Descriptor,
    parse_index,
)
from layerkit.formats.protocol import (
    BATCH_TYPE,
    ID_LIST_TYPE,
    parse_chunk_batch,
    parse_errors,
    serialize_chunk_request,
)
from layerkit.formats.update import MAX_HAVE_COUNT, MAX_UPDATE_SIZE, UPDATE_TYPE

__all__ = ["Remote", "Resolved"]

CONNECT_SECONDS: Final = 10.0
READ_SECONDS: Final = 30.0  # between two reads of one answer
LEAST_RATE: Final = 16 << 10  # bytes a second: below this an answer is given up
LEAST_SECONDS: Final = 60.0  # every answer may take this long
READ_SIZE: Final = 64 << 10
PAUSES: Final = (0.2, 0.8, 3.0)  # seconds before each retry
MAX_ERROR_SIZE: Final = 16 << 10
BATCH_OVERHEAD: Final = 64 << 10  # bytes: a frame of chunks that do not compress, and its header
_log = logging.getLogger(__name__)

_Failures = (urllib3.exceptions.HTTPError, OSError)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A manifest or index as it came: its digest is verified, its text is not parsed yet."""

    digest: Digest
    media_type: str
    data: bytes


class Remote:
    """Fetches from one base URL. Not for sharing between threads."""

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        pauses: Sequence[float] = PAUSES,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
        least_seconds: float = LEAST_SECONDS,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise UsageError(f"{url[:120]!r} is not a server URL", hint="write http://host:port")
        if parts.username or parts.password:
            raise UsageError("a server URL may not hold a password")
        self.url = url.rstrip("/")
        self.request_count = 0
        self.bytes_moved = 0
        self._pauses = tuple(pauses)
        self._sleep = sleep
        self._now = now
        self._least_seconds = least_seconds
        self._headers = {"accept-encoding": "identity", "user-agent": "layerkit"}
        if token:
            self._headers["authorization"] = f"Bearer {token}"
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=read_seconds),
            retries=False,
            maxsize=2,
        )

    def close(self) -> None:
        self._pool.clear()

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what can be fetched -----------------------------------------------------------------

    def resolve(self, name: str, ref: str, known: Digest | None = None) -> Resolved | None:
        """The manifest or index that `ref` (tag or digest) names; None if that is still `known`."""
        headers = {"accept": ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))}
        if known is not None:
            headers["if-none-match"] = f'"{known}"'
        path = f"/v2/{name}/manifests/{ref}"
        status, answer_headers, data = self._fetch(path, MAX_DOCUMENT_SIZE, headers)
        if status == 304:
            if known is None:
                raise RemoteError(f"{self.url}{path}: got status 304 for an unknown manifest")
            return None
        media_type = answer_headers.get("content-type", "").partition(";")[0].strip()
        if media_type not in (*INDEX_TYPES, *MANIFEST_TYPES):
            raise RemoteError(f"{self.url}{path}: got {media_type[:80]!r}, want a manifest")
        digest = sha256_digest(data)
        declared = str(Digest.parse(ref)) if ":" in ref else ""
        declared = declared or answer_headers.get("docker-content-digest", "")
        if declared and declared != str(digest):
            raise IntegrityError(
                f"manifest {name}:{ref[:80]} does not match its digest",
                got=str(digest),
                want=declared[:80],
            )
        return Resolved(digest, media_type, data)

    def fetch_update(
        self, name: str, ref: str, have: Sequence[Digest], platform: str
    ) -> bytes | None:
        """The update stream to what `ref` names from one of the images in `have`; None if `ref`
        still names the first. NotFoundError when the server has no such update."""
        path = _update_path(name, ref, have, platform)
        status, headers, data = self._fetch(path, MAX_UPDATE_SIZE, {})
        if status == 304:
            return None
        if headers.get("content-type", "").partition(";")[0].strip() != UPDATE_TYPE:
            raise NotFoundError(f"{self.url} does not speak updates")
        return data

    def measure_update(self, name: str, ref: str, have: Sequence[Digest], platform: str) -> int:
        """Bytes that `fetch_update` would move; 0 if `ref` still names the first of `have`."""
        response = self._request("HEAD", _update_path(name, ref, have, platform), {})
        response.release_conn()
        if response.status == 304:
            return 0
        length = response.headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            raise NotFoundError(f"{self.url} does not say how long the update is")
        return int(length[:18])

    def fetch_blob(
        self, name: str, digest: Digest, size: int, progress: Callable[[int], None] | None = None
    ) -> bytes:
        """A blob of `size` bytes, verified. Memory: the blob."""
        path = f"/v2/{name}/blobs/{digest}"
        _, _, data = self._fetch(path, size, {}, progress=progress)
        if len(data) != size:
            raise IntegrityError(
                f"blob {digest.short} is shorter than declared",
                got=f"{len(data)} bytes",
                want=f"{size} bytes",
            )
        check_digest(data, digest, f"blob {digest.short} from {self.url}")
        return data

    def fetch_packed(self, name: str, form: Digest, limit: int) -> bytes:
        """The packed form of form blob `form`, of at most `limit` bytes, not verified."""
        _, headers, data = self._fetch(f"/v1/{name}/packed-forms/{form}", limit, {})
        if headers.get("content-type", "") != PACKED_TYPE:
            raise NotFoundError(f"{self.url} has no packed forms")
        return data

    def fetch_referrers(self, name: str, digest: Digest, artifact_type: str) -> list[Descriptor]:
        """Descriptors of the manifests of that type whose subject is `digest`."""
        try:
            path = f"/v2/{name}/referrers/{digest}?artifactType={artifact_type}"
            _, _, data = self._fetch(path, MAX_DOCUMENT_SIZE, {})
        except NotFoundError:  # a registry from before OCI 1.1
            return []
        found = parse_index(data).manifests
        return [entry for entry in found if entry.artifact_type == artifact_type]

    def fetch_change(self, name: str, digest: Digest, have: Have, limit: int) -> bytes:
        """Chunk manifest `digest` as a change of what the node holds (`formats.chunksync`), of at
        most `limit` bytes. NotFoundError when the server has no such thing."""
        path = f"/v1/{name}/chunk-manifests/{digest}"
        response = self._request("POST", path, {}, serialize_have(have))
        try:
            if response.headers.get("content-type", "") != CHANGE_TYPE:
                raise NotFoundError(f"{self.url} has no changes of chunk manifests")
            return b"".join(self._read(response, path, limit))
        except _Failures as exc:
            raise self._broken(path, exc) from exc
        finally:
            response.close()

    def fetch_chunk(self, name: str, chunk: Digest, size: int) -> bytes:
        """One chunk, verified."""
        _, _, data = self._fetch(f"/v1/{name}/chunks/{chunk}", size, {})
        check_digest(data, chunk, f"chunk {chunk.short} from {self.url}")
        return data

    def fetch_chunks(
        self, name: str, ids: Sequence[Digest], sizes: Sequence[int]
    ) -> Iterator[bytes | None]:
        """Chunks in the order of `ids`, as they come, NOT verified; None where one is missing.

        Retried only until the answer begins: what has come is kept by the caller, who asks again
        for the rest.
        """
        path = f"/v1/{name}/chunks"
        return self._fetch_batch(path, serialize_chunk_request(ids), ID_LIST_TYPE, sizes, b"")

    def fetch_listed(
        self,
        name: str,
        digest: Digest,
        places: bytes,
        sizes: Sequence[int],
        near: tuple[Digest, bytes] | None,
    ) -> Iterator[bytes | None]:
        """The same for chunks at `places` of chunk manifest `digest`; `near` is one that the node
        holds, and the bytes that both sides know by it (`chunksync.gone_chunks`)."""
        path = f"/v1/{name}/chunk-manifests/{digest}/chunks"
        query = f"?near={near[0]}" if near is not None else ""
        known = near[1] if near is not None else b""
        return self._fetch_batch(path + query, places, PLACES_TYPE, sizes, known)

    def _fetch_batch(
        self, path: str, body: bytes, body_type: str, sizes: Sequence[int], dictionary: bytes
    ) -> Iterator[bytes | None]:
        headers = {"content-type": body_type, "accept": BATCH_TYPE}
        limit = sum(sizes) + 11 * len(sizes) + BATCH_OVERHEAD
        response = self._request("POST", path, headers, body)
        try:
            media_type = response.headers.get("content-type", "")
            if media_type != BATCH_TYPE:
                raise RemoteError(f"{self.url}{path}: got {media_type[:80]!r}, want {BATCH_TYPE}")
            parts = self._read(response, path, limit)
            what = f"answer of {self.url}{path.partition('?')[0]}"
            yield from parse_chunk_batch(parts, sizes, what, dictionary)
        except _Failures as exc:
            raise self._broken(path, exc) from exc
        finally:
            response.close()

    # --- how it is fetched -------------------------------------------------------------------

    def _fetch(
        self,
        path: str,
        limit: int,
        headers: Mapping[str, str],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """GET a whole body of at most `limit` bytes, going on by Range where it was cut."""
        data = bytearray()
        for pause in (*self._pauses, None):
            asked = dict(headers)
            if data:
                asked["range"] = f"bytes={len(data)}-"
            response = self._request("GET", path, asked)
            if data and response.status != 206:
                data.clear()
            try:
                for part in self._read(response, path, limit - len(data)):
                    data += part
                    if progress is not None:
                        progress(len(part))
                return response.status, response.headers, bytes(data)
            except _Failures as exc:
                if pause is None:
                    raise self._broken(path, exc) from exc
                _log.info("%s%s was cut after %d bytes, going on", self.url, path, len(data))
                self._sleep(pause)
            finally:
                response.release_conn()
                response.close()
        raise AssertionError("unreachable")

    def _request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> urllib3.BaseHTTPResponse:
        """Send, retry what may be retried, and turn every other status into an error."""
        for pause in (*self._pauses, None):
            self.request_count += 1
            self.bytes_moved += len(body or b"")
            try:
                response = self._pool.request(
                    method,
                    self.url + path,
                    body=body,
                    headers={**self._headers, **headers},
                    preload_content=False,
                    redirect=False,
                )
            except _Failures as exc:
                if pause is None:
                    raise self._broken(path, exc) from exc
                self._sleep(pause)
                continue
            if response.status in (200, 206, 304):
                return response
            error = self._status_error(response, path)
            if pause is None or not error.retriable or response.status < 429:
                raise error
            self._sleep(pause)
        raise AssertionError("unreachable")

    def _read(self, response: urllib3.BaseHTTPResponse, path: str, limit: int) -> Iterator[bytes]:
        """The body in parts, counted; RemoteLimitError when it is too long or too slow."""
        declared = response.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
            raise RemoteLimitError(
                f"{self.url}{path}: declares {declared[:20]} bytes, over {limit}"
            )
        deadline = self._now() + self._least_seconds + limit / LEAST_RATE
        total = 0
        while part := response.read1(READ_SIZE, decode_content=False):
            total += len(part)
            self.bytes_moved += len(part)
            if total > limit:
                raise RemoteLimitError(f"{self.url}{path}: answer is over {limit} bytes")
            if self._now() > deadline:
                raise RemoteLimitError(f"{self.url}{path}: answer is too slow")
            yield part

    def _status_error(
        self, response: urllib3.BaseHTTPResponse, path: str
    ) -> RemoteError | NotFoundError:
        """The error for a status that is no success; the connection is given back."""
        where = f"{self.url}{path.partition('?')[0]}"
        try:
            raw = response.read(MAX_ERROR_SIZE, decode_content=False)
            self.bytes_moved += len(raw)
            problems = parse_errors(raw)
            cause = "; ".join(f"{problem.message} [{problem.code}]" for problem in problems)
        except (FormatError, *_Failures):
            cause = ""
        finally:
            response.close()
        status = response.status
        if status == 404:
            return NotFoundError(f"{where} does not exist", cause=cause)
        if status in (401, 403):
            return RemoteDeniedError(f"{where} refuses access: got status {status}", cause=cause)
        if status == 413:
            return RemoteLimitError(f"{where} refuses the size of the request", cause=cause)
        error = RemoteError(f"{where}: got status {status}", cause=cause)
        if status < 500 and status != 429:
            error.retriable = False
        return error

    def _broken(self, path: str, exc: Exception) -> RemoteError:
        where = f"{self.url}{path.partition('?')[0]}"
        return RemoteError(
            f"cannot fetch {where}", cause=str(exc)[:300], hint="check that the server runs"
        )


def _update_path(name: str, ref: str, have: Sequence[Digest], platform: str) -> str:
    held = ",".join(map(str, have[:MAX_HAVE_COUNT]))
    return f"/v1/{name}/updates/{ref}?from={held}&platform={platform}"
