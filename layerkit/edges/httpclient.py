"""The HTTP client under `edges.remote`: one server, connections that are kept, and its patience.

Retries connection errors, 429 and 5xx with growing pauses, longer ones where the server says
Retry-After; a body that is cut goes on by Range. Every answer has a size limit, a deadline for its
head and a least rate for its body (a slow drip or an endless stream ends as an error). Redirects
are not followed. It knows no paths and checks no digests: that is `edges.remote`.

`bytes_moved` counts bodies as they are on the wire, sent and received; `request_count` counts
requests, retries included; `link` is what was measured of the way to the server meanwhile.
Not for sharing between threads.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from layerkit.edges.upstream import Measured, asked_pause, reason_of
from layerkit.errors import (
    FormatError,
    NotFoundError,
    RemoteDeniedError,
    RemoteError,
    RemoteLimitError,
    UnauthorizedError,
    UsageError,
)
from layerkit.formats.protocol import parse_errors
from layerkit.formats.reference import is_loopback

__all__ = ["Answer", "Client", "Tls"]

CONNECT_SECONDS: Final = 10.0
READ_SECONDS: Final = 30.0  # between two reads of one answer
HEAD_FACTOR: Final = 2  # times the read time-out that a whole head may take
LEAST_RATE: Final = 16 << 10  # bytes a second: below this an answer is given up
LEAST_SECONDS: Final = 60.0  # every answer may take this long; and is looked at this often
SLOW_FACTOR: Final = 4  # how far below LEAST_RATE a body may fall in such a stretch
READ_SIZE: Final = 64 << 10
PAUSES: Final = (0.2, 0.8, 3.0)  # seconds before each retry
MAX_PAUSE: Final = 60.0  # seconds that a server may ask to wait
MAX_ERROR_SIZE: Final = 16 << 10
GAIN_SIZE: Final = 16 << 10  # bytes that a cut body must have brought for its tries to begin anew
_log = logging.getLogger(__name__)

_Failures = (urllib3.exceptions.HTTPError, OSError)


@dataclass(frozen=True, slots=True)
class Tls:
    """Whom the client trusts, and what it shows: files in PEM. None: the system's authorities, and
    no certificate. The key may stand in the certificate's file."""

    ca: Path | None = None
    client_cert: Path | None = None
    client_key: Path | None = None

    def options(self) -> dict[str, str]:
        """The same for urllib3. UsageError for a file that is not there."""
        found = {"ca_certs": self.ca, "cert_file": self.client_cert, "key_file": self.client_key}
        for path in found.values():
            if path is not None and not path.is_file():
                raise UsageError(f"{path} does not exist", hint="name a file in PEM")
        return {name: str(path) for name, path in found.items() if path is not None}


@dataclass(slots=True)
class Answer:
    """A status and headers; the body is read once, by `Client.read`."""

    status: int
    headers: Mapping[str, str]
    response: urllib3.BaseHTTPResponse = field(repr=False)

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip()

    def close(self) -> None:
        """Give the connection up, unless the body was read to its end."""
        self.response.close()


class Client:
    """Sends requests to one base URL."""

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        tls: Tls | None = None,
        pauses: Sequence[float] = PAUSES,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
        least_seconds: float = LEAST_SECONDS,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        self.url = _check_url(url)
        self.request_count = 0
        self.bytes_moved = 0
        self.link = Measured()
        self._pauses = tuple(pauses)
        self._sleep = sleep
        self._now = now
        self._least_seconds = least_seconds
        self._read_seconds = read_seconds
        self._headers = {"accept-encoding": "identity", "user-agent": "layerkit"}
        if token:
            self._headers["authorization"] = f"Bearer {_check_token(token, self.url)}"
        options: dict[str, Any] = dict((tls or Tls()).options()) if url[:6] == "https:" else {}
        self._pool = urllib3.PoolManager(retries=False, maxsize=2, **options)
        self._pool.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def close(self) -> None:
        self._pool.clear()

    # --- bodies ------------------------------------------------------------------------------

    def fetch(
        self,
        path: str,
        limit: int,
        headers: Mapping[str, str],
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Answer, bytes]:
        """GET a whole body of at most `limit` bytes. Where it was cut it goes on by Range, or anew
        from a server without ranges."""
        data = bytearray()
        tries = _Tries(self._pauses)
        while True:
            answer = self._ask_rest(path, headers, len(data), "")
            if data and answer.status != 206:
                data.clear()
            try:
                started = self._now()
                for part in self.read(answer, path, limit - len(data)):
                    data += part
                    if progress is not None:
                        progress(len(part))
                self.link.see_body(len(data), self._now() - started, waited=True)
                return answer, bytes(data)
            except _Failures as exc:
                self._pause(path, exc, tries.next_pause(len(data)), len(data))
            finally:
                answer.close()

    def stream(
        self, path: str, limit: int, headers: Mapping[str, str], seconds: float = 0.0
    ) -> tuple[Answer, Iterator[bytes]]:
        """The same in parts as they come. What was handed out cannot be taken back: a server that
        has no ranges, or another body by now, is a RemoteError. `seconds` is added to the time that
        the answer may take to begin."""
        answer = self._ask_rest(path, headers, 0, "", seconds)
        return answer, self._stream(answer, path, limit, headers)

    def _stream(
        self, answer: Answer, path: str, limit: int, headers: Mapping[str, str]
    ) -> Iterator[bytes]:
        etag = answer.headers.get("etag", "")
        total = 0
        tries = _Tries(self._pauses)
        while True:
            try:
                started, before = self._now(), total
                for part in self.read(answer, path, limit - total):
                    total += len(part)
                    yield part
                self.link.see_body(total - before, self._now() - started, waited=False)
                return
            except _Failures as exc:
                self._pause(path, exc, tries.next_pause(total), total)
            finally:
                answer.close()
            answer = self._ask_rest(path, headers, total, etag)
            if total and answer.status != 206:
                answer.close()
                raise RemoteError(f"{self._where(path)}: cannot go on after {total} bytes")

    def _ask_rest(
        self, path: str, headers: Mapping[str, str], start: int, etag: str, seconds: float = 0.0
    ) -> Answer:
        """GET what lies behind the first `start` bytes."""
        asked = dict(headers)
        if start:
            asked["range"] = f"bytes={start}-"
            if etag and not etag.startswith("W/"):
                asked["if-range"] = etag
        answer = self.send("GET", path, asked, seconds=seconds)
        if answer.status == 206 and not _begins_at(answer, start):
            answer.close()
            raise RemoteError(f"{self._where(path)}: another range than {start}- came")
        return answer

    def _pause(self, path: str, exc: Exception, pause: float | None, total: int) -> None:
        """Wait before a body goes on; at the last try its failure is an error."""
        if pause is None:
            raise self.broken(path, exc) from exc
        _log.info("%s was cut after %d bytes, going on", self._where(path), total)
        self._sleep(pause)

    def read(self, answer: Answer, path: str, limit: int) -> Iterator[bytes]:
        """The body in parts, counted; RemoteLimitError when it is too long or too slow. What breaks
        on the way is one of `failures`."""
        declared = answer.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
            raise RemoteLimitError(
                f"{self._where(path)}: declares {declared[:20]} bytes, over {limit}"
            )
        total, marked, looked = 0, 0, self._now()
        deadline = looked + self._least_seconds + limit / LEAST_RATE
        while True:
            asked = self._now()
            part = answer.response.read1(READ_SIZE, decode_content=False)
            now = self._now()
            self.link.waited += now - asked
            if not part:
                return
            total += len(part)
            self.bytes_moved += len(part)
            if total > limit:
                raise RemoteLimitError(f"{self._where(path)}: answer is over {limit} bytes")
            if now - looked > self._least_seconds > 0:
                is_slow = total - marked < (now - looked) * LEAST_RATE / SLOW_FACTOR
                marked, looked = total, now
            else:
                is_slow = False
            if is_slow or now > deadline:
                raise RemoteLimitError(f"{self._where(path)}: answer is too slow")
            yield part

    # --- requests ----------------------------------------------------------------------------

    def send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        seconds: float = 0.0,
    ) -> Answer:
        """Send, retry what may be retried, and turn every other status into an error. `seconds` is
        added to the time that the answer may take to begin."""
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=self._read_seconds + seconds)
        for pause in (*self._pauses, None):
            self.request_count += 1
            self.bytes_moved += len(body or b"")
            try:
                started = self._now()
                response = self._pool.request(
                    method,
                    self.url + path,
                    body=body,
                    headers={**self._headers, **headers},
                    preload_content=False,
                    redirect=False,
                    timeout=timeout,
                )
                _check_framing(response, method)
            except _Failures as exc:
                if pause is None:
                    raise self.broken(path, exc) from exc
                self._sleep(pause)
                continue
            self.link.waited += self._now() - started
            if response.status in (200, 206, 304):
                if path.startswith("/v2/"):  # what stands there; the rest may have to be made
                    self.link.see_head(self._now() - started)
                if response.status == 304 or method == "HEAD":
                    response.drain_conn()
                return Answer(response.status, response.headers, response)
            error = self._status_error(response, path)
            asked = asked_pause(response.headers.get("retry-after", ""))
            if pause is None or not error.retriable or response.status < 429 or asked > MAX_PAUSE:
                raise error
            self._sleep(max(pause, asked))
        raise AssertionError("unreachable")

    def _status_error(
        self, response: urllib3.BaseHTTPResponse, path: str
    ) -> RemoteError | NotFoundError:
        """The error for a status that is no success; the connection is given back."""
        where = self._where(path)
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
        if status == 401:
            return UnauthorizedError(f"{where} wants a token: got status 401", cause=cause)
        if status == 403:
            return RemoteDeniedError(f"{where} refuses access: got status 403", cause=cause)
        if status == 413:
            return RemoteLimitError(f"{where} refuses the size of the request", cause=cause)
        error = RemoteError(f"{where}: got status {status}", cause=cause)
        if status < 500 and status != 429:
            error.retriable = False
        return error

    @property
    def failures(self) -> tuple[type[Exception], ...]:
        """What a connection that breaks while a body is read raises."""
        return _Failures

    def broken(self, path: str, exc: Exception) -> RemoteError:
        if isinstance(exc, urllib3.exceptions.SSLError):
            hint = "name the server's authority with --ca, your certificate with --client-cert"
        else:
            hint = "check that the server runs"
        what = f"cannot fetch {self._where(path)}"
        return RemoteError(what, cause=reason_of(exc), hint=hint)

    def _where(self, path: str) -> str:
        """The address without its query, for errors."""
        return f"{self.url}{path.partition('?')[0]}"


class _HeadDeadline(HTTPConnection):
    """A connection whose answer must have its whole head in time. http.client waits anew for each
    line, and for the answer behind each "100 Continue": both could go on for ever."""

    def getresponse(self) -> Any:
        seconds = self.timeout if isinstance(self.timeout, int | float) else READ_SECONDS
        watch = threading.Timer(HEAD_FACTOR * seconds, self._cut)
        watch.daemon = True
        watch.start()
        try:
            return super().getresponse()
        finally:
            watch.cancel()

    def _cut(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            self.sock.shutdown(socket.SHUT_RDWR)


class _SecureHeadDeadline(_HeadDeadline, HTTPSConnection):
    """The same over TLS."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _HeadDeadline


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureHeadDeadline


@dataclass(slots=True)
class _Tries:
    """How often a body may be cut: the pauses before each further try, anew whenever the last one
    brought something."""

    pauses: tuple[float, ...]
    used: int = 0
    total: int = 0

    def next_pause(self, total: int) -> float | None:
        """Seconds to wait, now that `total` bytes are here; None: no more."""
        if total - self.total >= GAIN_SIZE:
            self.used = 0
        self.total = total
        self.used += 1
        return self.pauses[self.used - 1] if self.used <= len(self.pauses) else None


def _check_framing(response: urllib3.BaseHTTPResponse, method: str) -> None:
    """Raise for a body whose end would be that of the connection: a head that was cut looks so."""
    if method == "HEAD" or response.status not in (200, 206):
        return
    length = response.headers.get("content-length", "")
    chunked = response.headers.get("transfer-encoding", "").lower() == "chunked"
    if not chunked and not (length.isascii() and length.isdigit()):  # cut before its digits
        response.close()
        raise urllib3.exceptions.ProtocolError("the answer does not say how long it is")


def _check_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise UsageError(f"{url[:120]!r} is not a server URL", hint="write http://host:port")
    if parts.username or parts.password:
        raise UsageError("a server URL may not hold a password", hint="use a token")
    return url.rstrip("/")


def _check_token(token: str, url: str) -> str:
    """A token that fits into a header. In clear over a network everybody reads it: say so."""
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError("the token is not one line of printable characters")
    parts = urlsplit(url)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        _log.warning("the token for %s travels in clear: use https", url)
    return token


def _begins_at(answer: Answer, start: int) -> bool:
    """Is it the range that was asked for? A server that does not say so is believed."""
    said = answer.headers.get("content-range", "")
    return not said or said.startswith(f"bytes {start}-")
