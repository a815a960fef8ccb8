"""A bucket of any S3-compatible store: an OCI layout under a prefix, by boto3.

`s3://bucket/prefix?endpoint=URL&region=NAME&style=path`: what is not said is boto3's business
(environment, ~/.aws, the machine's role), and so are credentials. Keys: `oci-layout`, `index.json`,
`blobs/sha256/<hex>`, and `made/<name>` for what servers make (`claims/<name>`: is being made).

Write order as in a layout: blobs, then `index.json`, the one commit point. It is replaced only if
it still is what was read (If-Match), so no publisher undoes another's work. A store that does not
know conditions is noticed (the marker's own condition is tried first) and refused, for two
publishers at once would lose an image in silence.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, BinaryIO, Final
from urllib.parse import parse_qsl, urlsplit

import boto3
import botocore.config
import botocore.exceptions

from layerkit.digest import Digest
from layerkit.edges.layout import add_to_index
from layerkit.errors import (
    FormatError,
    NotFoundError,
    RemoteDeniedError,
    RemoteError,
    RemoteLimitError,
    UsageError,
)
from layerkit.formats.oci import (
    LAYOUT_MARKER,
    MAX_DOCUMENT_SIZE,
    Descriptor,
    Index,
    parse_index,
    serialize_index,
)
from layerkit.formats.shelf import (
    MAX_ENTRY_SIZE,
    name_entry,
    parse_entry,
    serialize_entry,
)

__all__ = ["Bucket", "BucketOrigin", "BucketShelf"]

CONNECT_SECONDS: Final = 10
READ_SECONDS: Final = 60
PART_SIZE: Final = 1 << 20
ATTEMPTS: Final = 20  # to replace index.json while others do, too
PAUSE: Final = 0.05  # seconds, before the first of them; grows, and jitters
MADE_SIZE: Final = 10 << 30  # bytes of what servers made
SWEEP_COUNT: Final = 64  # puts between two looks at how much that is
THREAD_COUNT: Final = 16
MULTIPART_SIZE: Final = 1 << 30  # bytes: larger blobs go in parts; one put takes 5 GiB at most
_GONE: Final = ("404", "NoSuchKey", "NotFound")
_CHANGED: Final = ("412", "409", "PreconditionFailed", "ConditionalRequestConflict")
_log = logging.getLogger(__name__)


class _ChangedError(RemoteError):
    """A condition did not hold: somebody else wrote meanwhile."""


class Bucket:
    """Objects under the prefix of an s3: URL. Safe for threads."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        facts = dict(parse_qsl(parts.query))
        known = {"endpoint", "region", "style"}
        if parts.scheme != "s3" or not parts.netloc or set(facts) - known:
            raise UsageError(
                f"{url[:120]!r} is not a bucket",
                hint="write s3://bucket/prefix, with ?endpoint=URL&region=NAME&style=path",
            )
        prefix = parts.path.strip("/")
        self.where = f"s3://{parts.netloc}/{prefix}"
        self._bucket = parts.netloc
        self._prefix = f"{prefix}/" if prefix else ""
        style = {"addressing_style": facts["style"]} if "style" in facts else {}
        config = botocore.config.Config(
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            retries={"mode": "standard", "max_attempts": 5},
            max_pool_connections=THREAD_COUNT,
            request_checksum_calculation="when_required",  # others do not know the newer ones
            response_checksum_validation="when_required",
            s3=style,
        )
        with _errors(self.where):
            self._client: Any = boto3.client(
                "s3",
                endpoint_url=facts.get("endpoint"),
                region_name=facts.get("region"),
                config=config,
            )

    def size_of(self, key: str) -> int | None:
        """The size of an object, None if there is none."""
        try:
            with _errors(self._url(key)):
                return int(self._client.head_object(**self._at(key))["ContentLength"])
        except NotFoundError:
            return None

    def read(self, key: str, limit: int) -> tuple[bytes, str]:
        """An object of at most `limit` bytes, and its ETag."""
        with _errors(self._url(key)):
            answer = self._client.get_object(**self._at(key))
            with contextlib.closing(answer["Body"]) as body:
                data = body.read(limit + 1)
        if len(data) > limit:
            raise RemoteLimitError(f"{self._url(key)} is over {limit} bytes")
        return data, answer["ETag"]

    def read_changed(self, key: str, limit: int, etag: str) -> tuple[bytes, str] | None:
        """The same, None while it still is the one with `etag`."""
        with _errors(self._url(key)):
            if etag and self._client.head_object(**self._at(key))["ETag"] == etag:
                return None
        return self.read(key, limit)

    def open(self, key: str) -> tuple[int, Iterator[bytes]]:
        """The size of an object, and its parts."""
        with _errors(self._url(key)):
            answer = self._client.get_object(**self._at(key))

        def parts() -> Iterator[bytes]:
            with _errors(self._url(key)), contextlib.closing(answer["Body"]) as body:
                yield from body.iter_chunks(PART_SIZE)

        return int(answer["ContentLength"]), parts()

    def write(self, key: str, data: bytes, condition: Mapping[str, str] | None = None) -> str:
        """Put an object; returns its ETag. `_ChangedError` if `condition` does not hold."""
        with _errors(self._url(key)):
            answer = self._client.put_object(Body=data, **self._at(key), **(condition or {}))
        return str(answer["ETag"])

    def write_file(self, key: str, file: BinaryIO, size: int, digest: Digest) -> None:
        """Put a blob, streamed; the store checks its SHA-256 where it goes in one piece."""
        with _errors(self._url(key)):
            if size > MULTIPART_SIZE:
                self._client.upload_fileobj(file, self._bucket, self._prefix + key)
                return
            checksum = base64.b64encode(digest.raw).decode()
            self._client.put_object(
                Body=file, ContentLength=size, ChecksumSHA256=checksum, **self._at(key)
            )

    def remove(self, key: str) -> None:
        with _errors(self._url(key)):
            self._client.delete_object(**self._at(key))

    def list_objects(self, prefix: str) -> Iterator[tuple[float, str, int]]:
        """When it was written, key and size of each object under a prefix."""
        with _errors(self._url(prefix)):
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for item in page.get("Contents", ()):
                    key = item["Key"].removeprefix(self._prefix)
                    yield item["LastModified"].timestamp(), key, item["Size"]

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    def _url(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}"


class BucketOrigin:
    """The images of a bucket: an `Origin` to read from, and what publishes to it."""

    def __init__(self, bucket: Bucket) -> None:
        self.where = bucket.where
        self._bucket = bucket
        self._last: tuple[bytes, str] = (b"", "")
        self._documents: dict[Digest, bytes | None] = {}  # listed manifests that were read

    def read_index(self) -> bytes:
        found = self._bucket.read_changed("index.json", MAX_DOCUMENT_SIZE, self._last[1])
        if found is not None:
            self._last = found
        return self._last[0]

    def open(self, name: str, digest: Digest) -> tuple[int, Iterator[bytes]]:
        return self._bucket.open(_blob_key(digest))

    def read_blob(self, digest: Digest, limit: int) -> bytes:
        return self._bucket.read(_blob_key(digest), limit)[0]

    def find_index(self) -> Index:
        """The index as it is now; an empty one where nothing was published yet."""
        return self._read_old()[0]

    def has_blob(self, item: Descriptor) -> bool:
        return self._bucket.size_of(_blob_key(item.digest)) == item.size

    def put_blob(self, item: Descriptor, file: BinaryIO) -> None:
        self._bucket.write_file(_blob_key(item.digest), file, item.size, item.digest)

    def create(self) -> None:
        """Make the marker; raises RemoteError for a store that knows no conditional writes."""
        for _ in range(2):
            try:
                self._bucket.write("oci-layout", LAYOUT_MARKER, {"IfNoneMatch": "*"})
            except _ChangedError:
                return  # it is there, and the store heeds the condition
        raise RemoteError(
            f"{self.where} has no conditional writes",
            cause="it wrote over an object that If-None-Match protects",
            hint="use a store that knows If-Match, or push to a registry",
        )

    def commit(self, name: str, top: Descriptor, referrers: list[Descriptor]) -> None:
        """Make `name` (if any) name `top`, beside what others commit at the same time."""
        for attempt in range(ATTEMPTS):
            old, condition = self._read_old()
            held = self.read_documents(old.manifests)
            new = add_to_index(old, name, top, referrers, partial(_find, held))
            raw = serialize_index(new)
            try:
                if raw != serialize_index(old):
                    self._bucket.write("index.json", raw, condition)
                return
            except _ChangedError:
                time.sleep(PAUSE * (attempt + 1) * random.uniform(0.5, 1.5))
        raise RemoteError(
            f"{self.where}/index.json is changed again and again",
            cause=f"tried {ATTEMPTS} times",
            hint="push again",
        )

    def _read_old(self) -> tuple[Index, dict[str, str]]:
        """The index as it is, and on what condition it may be replaced."""
        try:
            raw, etag = self._bucket.read("index.json", MAX_DOCUMENT_SIZE)
        except NotFoundError:
            return Index(()), {"IfNoneMatch": "*"}
        return parse_index(raw), {"IfMatch": etag}

    def read_documents(self, entries: Sequence[Descriptor]) -> dict[Digest, bytes | None]:
        """Manifests that an index lists, None for one that is not there; each is read once, and
        what nobody lists any more is forgotten."""

        def read(entry: Descriptor) -> bytes | None:
            try:
                return self._bucket.read(_blob_key(entry.digest), MAX_DOCUMENT_SIZE)[0]
            except NotFoundError:
                return None

        known = self._documents
        wanted = [entry for entry in entries if known.get(entry.digest) is None]
        with ThreadPoolExecutor(THREAD_COUNT) as pool:
            found = dict(
                zip((entry.digest for entry in wanted), pool.map(read, wanted), strict=True)
            )
        documents = {e.digest: found.get(e.digest, known.get(e.digest)) for e in entries}
        self._documents = documents
        return documents


class BucketShelf:
    """The `Shelf` under `made/`. The oldest entry goes first: a read leaves no trace in S3."""

    def __init__(self, bucket: Bucket, limit: int = MADE_SIZE) -> None:
        self._bucket = bucket
        self.limit = limit
        self._put_count = 0

    def get(self, key: str) -> bytes | None:
        name = f"made/{name_entry(key)}"
        try:
            raw, _ = self._bucket.read(name, MAX_ENTRY_SIZE + 1024)
            return parse_entry(raw, key)
        except NotFoundError:
            return None
        except FormatError as exc:
            _log.warning("%s is dropped: %s", name, exc.message)
            self._try(lambda: self._bucket.remove(name))
        except RemoteError as exc:
            _log.warning("%s cannot be read: %s (%s)", name, exc.message, exc.cause)
        return None

    def put(self, key: str, data: bytes) -> None:
        raw = serialize_entry(key, data)
        if len(raw) > min(self.limit, MAX_ENTRY_SIZE):
            return
        self._put_count += 1
        if self._put_count % SWEEP_COUNT == 1 or self.limit < MADE_SIZE:
            self._try(lambda: self._make_room(len(raw)))
        self._try(lambda: self._bucket.write(f"made/{name_entry(key)}", raw))

    def claim(self, key: str, seconds: float) -> bool:
        name = f"claims/{name_entry(key)}"
        try:
            self._bucket.write(name, b"", {"IfNoneMatch": "*"})
        except _ChangedError:
            return self._take_over(name, seconds)
        except (RemoteError, NotFoundError) as exc:
            _log.debug("no claims in %s: %s", self._bucket.where, exc.message)
        return True

    def _take_over(self, name: str, seconds: float) -> bool:
        """A claim whose time is out; two who take it over at once both make the thing."""
        try:
            held = [when for when, key, _ in self._bucket.list_objects(name) if key == name]
            if held and time.time() - held[0] < seconds:
                return False
            self._bucket.write(name, b"")
        except (RemoteError, NotFoundError) as exc:
            _log.debug("no claims in %s: %s", self._bucket.where, exc.message)
        return True

    def release(self, key: str) -> None:
        self._try(lambda: self._bucket.remove(f"claims/{name_entry(key)}"))

    def _make_room(self, size: int) -> None:
        found = sorted(self._bucket.list_objects("made/"), reverse=True)
        total = size + sum(size for _, _, size in found)
        while found and total > self.limit:
            _, key, gone = found.pop()
            self._bucket.remove(key)
            total -= gone

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except (RemoteError, NotFoundError) as exc:
            _log.warning("%s: %s (%s)", self._bucket.where, exc.message, exc.cause)


def _find(held: Mapping[Digest, bytes | None], entry: Descriptor) -> bytes | None:
    return held.get(entry.digest)


def _blob_key(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


@contextlib.contextmanager
def _errors(what: str) -> Iterator[None]:
    """Errors of boto3 as ours."""
    try:
        yield
    except botocore.exceptions.ClientError as exc:
        code = str(exc.response.get("Error", {}).get("Code", ""))
        status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code == "NoSuchBucket":
            raise RemoteError(f"the bucket of {what} does not exist", cause=str(exc)) from exc
        if code in _GONE:
            raise NotFoundError(f"{what} does not exist", cause=str(exc)) from exc
        if code in _CHANGED:
            raise _ChangedError(f"{what} was changed by others", cause=str(exc)) from exc
        if status in (401, 403):
            raise RemoteDeniedError(f"access to {what} is refused", cause=str(exc)) from exc
        raise RemoteError(f"{what} failed", cause=str(exc)) from exc
    except botocore.exceptions.NoCredentialsError as exc:
        raise RemoteDeniedError(
            f"no credentials for {what}",
            cause=str(exc),
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        ) from exc
    except (botocore.exceptions.BotoCoreError, ValueError, OSError) as exc:
        raise RemoteError(f"{what} failed", cause=str(exc)) from exc
