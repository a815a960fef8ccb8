"""Client of one chunk server (or of any registry, for the plain part): what can be fetched from it,
and how each answer is checked where it enters. `edges.httpclient` moves the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Self
from urllib.parse import quote

from layerkit.digest import Digest, check_digest, sha256_digest
from layerkit.edges.httpclient import Client, Tls
from layerkit.edges.upstream import Measured, Resolved, UpdateBody
from layerkit.errors import (
    IntegrityError,
    NotFoundError,
    RemoteDeniedError,
    RemoteError,
    RemoteLimitError,
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
    serialize_chunk_request,
)
from layerkit.formats.update import MAX_HAVE_COUNT, MAX_UPDATE_SIZE, UPDATE_TYPE

__all__ = ["Remote", "Tls"]

BATCH_OVERHEAD: Final = 64 << 10  # bytes: a frame of chunks that do not compress, and its header


class Remote:
    """Fetches from one base URL. Not for sharing between threads. `options` are the client's:
    token, tls, and its patience."""

    def __init__(self, url: str, **options: Any) -> None:
        self._client = Client(url, **options)
        self.url = self._client.url
        self._offered: tuple[str, str, bytes] | None = None

    @property
    def request_count(self) -> int:
        return self._client.request_count

    @property
    def bytes_moved(self) -> int:
        return self._client.bytes_moved

    @property
    def link(self) -> Measured:
        """What was measured of the way to the server."""
        return self._client.link

    @property
    def chunk_server(self) -> Self:
        return self

    @property
    def has_layers(self) -> bool:
        return True

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
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
        answer, data = self._client.fetch(path, MAX_DOCUMENT_SIZE, headers)
        if answer.status == 304:
            if known is None:
                raise RemoteError(f"{self.url}{path}: got status 304 for an unknown manifest")
            return None
        media_type = answer.media_type
        if media_type not in (*INDEX_TYPES, *MANIFEST_TYPES):
            raise RemoteError(f"{self.url}{path}: got {media_type[:80]!r}, want a manifest")
        digest = sha256_digest(data)
        declared = str(Digest.parse(ref)) if ":" in ref else ""
        declared = declared or answer.headers.get("docker-content-digest", "")
        if declared and declared != str(digest):
            raise IntegrityError(
                f"manifest {name}:{ref[:80]} does not match its digest",
                got=str(digest),
                want=declared[:80],
            )
        return Resolved(digest, media_type, data)

    def offer_update(self, name: str, ref: str, raw: bytes) -> None:
        """An update of `name` to `ref` that came another way (an agent's long poll brings it): the
        next `open_update` of these takes it instead of asking, once."""
        self._offered = (name, ref, raw)

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
        """The update stream to what `ref` names from the images in `have` (which may be none); None
        if `ref` still names the first. NotFoundError when the server has no such update.

        Args:
            within: seconds that the node will wait for what is not made yet.
            wait: long poll: seconds that the server may hold the answer while nothing changes.
        """
        if self._offered is not None and self._offered[:2] == (name, ref):
            raw, self._offered = self._offered[2], None
            return UpdateBody(iter((raw,)), None)
        path = _update_path(name, ref, have, platform)
        path += "" if within is None else f"&within={within:.3g}"
        path += "" if wait is None else f"&wait={wait:.3g}"
        try:
            answer, parts = self._client.stream(
                path, MAX_UPDATE_SIZE, {}, (within or 0.0) + (wait or 0.0)
            )
        except RemoteError as exc:
            if exc.retriable or isinstance(exc, RemoteDeniedError | RemoteLimitError):
                raise
            raise NotFoundError(f"{self.url} does not know such updates", cause=exc.cause) from exc
        if answer.status == 304:
            if not have or answer.headers.get("docker-content-digest", "") != str(have[0]):
                raise NotFoundError(f"{self.url} does not say which image is still the newest")
            return None
        if answer.media_type != UPDATE_TYPE:
            answer.close()
            raise NotFoundError(f"{self.url} does not speak updates")
        raw_digest = answer.headers.get("docker-content-digest", "")
        return UpdateBody(parts, Digest.parse(raw_digest) if raw_digest else None)

    def measure_update(self, name: str, ref: str, have: Sequence[Digest], platform: str) -> int:
        """Bytes that `open_update` would move; 0 if `ref` still names the first of `have`."""
        answer = self._client.send("HEAD", _update_path(name, ref, have, platform), {})
        if answer.status == 304:
            return 0
        length = answer.headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            raise NotFoundError(f"{self.url} does not say how long the update is")
        return int(length[:18])

    def fetch_blob(
        self, name: str, digest: Digest, size: int, progress: Callable[[int], None] | None = None
    ) -> bytes:
        """A blob of `size` bytes, verified. Memory: the blob, twice for a moment."""
        path = f"/v2/{name}/blobs/{digest}"
        _, data = self._client.fetch(path, size, {}, progress)
        if len(data) != size:
            raise IntegrityError(
                f"blob {digest.short} is shorter than declared",
                got=f"{len(data)} bytes",
                want=f"{size} bytes",
            )
        check_digest(data, digest, f"blob {digest.short} from {self.url}")
        return data

    def read_start(self, name: str, digest: Digest, size: int, whole_size: int) -> bytes:
        """The first `size` bytes of a blob of `whole_size`, as `read_ranges` reads them."""
        return b"".join(self.read_ranges(name, digest, [(0, min(size, whole_size))]))

    def read_ranges(
        self, name: str, digest: Digest, ranges: Sequence[tuple[int, int]]
    ) -> Iterator[bytes]:
        """The bytes of each (offset, size) of a blob, not verified. NotFoundError when the server
        answers with the whole blob: there are better ways to get that."""
        path = f"/v2/{name}/blobs/{digest}"
        for offset, size in ranges:
            headers = {"range": f"bytes={offset}-{offset + size - 1}"}
            answer = self._client.send("GET", path, headers)
            try:
                said = answer.headers.get("content-range", "")
                if answer.status != 206 or not said.startswith(f"bytes {offset}-"):
                    raise NotFoundError(f"{self.url} has no ranges of blobs")
                yield b"".join(self._client.read(answer, path, size))
            except self._client.failures as exc:
                raise self._client.broken(path, exc) from exc
            finally:
                answer.close()

    def fetch_packed(self, name: str, form: Digest, limit: int) -> bytes:
        """The packed form of form blob `form`, of at most `limit` bytes, not verified."""
        answer, data = self._client.fetch(f"/v1/{name}/packed-forms/{form}", limit, {})
        if answer.media_type != PACKED_TYPE:
            raise NotFoundError(f"{self.url} has no packed forms")
        return data

    def fetch_referrers(self, name: str, digest: Digest, artifact_type: str) -> list[Descriptor]:
        """Descriptors of the manifests of that type whose subject is `digest`."""
        try:
            path = f"/v2/{name}/referrers/{digest}?artifactType={quote(artifact_type)}"
            _, data = self._client.fetch(path, MAX_DOCUMENT_SIZE, {})
        except NotFoundError:  # a registry from before OCI 1.1
            return []
        found = parse_index(data).manifests
        return [entry for entry in found if entry.artifact_type == artifact_type]

    def fetch_change(self, name: str, digest: Digest, have: Have, limit: int) -> bytes:
        """Chunk manifest `digest` as a change of what the node holds (`formats.chunksync`), of at
        most `limit` bytes. NotFoundError when the server has no such thing."""
        path = f"/v1/{name}/chunk-manifests/{digest}"
        answer = self._client.send("POST", path, {}, serialize_have(have))
        try:
            if answer.media_type != CHANGE_TYPE:
                raise NotFoundError(f"{self.url} has no changes of chunk manifests")
            return b"".join(self._client.read(answer, path, limit))
        except self._client.failures as exc:
            raise self._client.broken(path, exc) from exc
        finally:
            answer.close()

    def fetch_chunk(self, name: str, chunk: Digest, size: int) -> bytes:
        """One chunk, verified."""
        _, data = self._client.fetch(f"/v1/{name}/chunks/{chunk}", size, {})
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
        answer = self._client.send("POST", path, headers, body)
        try:
            if answer.media_type != BATCH_TYPE:
                raise RemoteError(
                    f"{self.url}{path}: got {answer.media_type[:80]!r}, want {BATCH_TYPE}"
                )
            parts = self._client.read(answer, path, limit)
            what = f"answer of {self.url}{path.partition('?')[0]}"
            yield from parse_chunk_batch(parts, sizes, what, dictionary)
        except self._client.failures as exc:
            raise self._client.broken(path, exc) from exc
        finally:
            answer.close()


def _update_path(name: str, ref: str, have: Sequence[Digest], platform: str) -> str:
    held = ",".join(map(str, have[:MAX_HAVE_COUNT]))
    return f"/v1/{name}/updates/{ref}?from={held}&platform={platform}"
