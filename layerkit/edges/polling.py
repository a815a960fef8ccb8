"""Asks servers whether a reference names another image than before; many at once in one event loop.

A chunk server holds the question until there is news (`GET /v1/<name>/updates/<ref>?wait=`,
docs/design.md "Server surface"), and the news is the update itself: no further request is needed.
Any other registry is asked by `HEAD` of the manifest. A question costs a connection and no thread.
What comes is only a hint to pull, not verified here. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from layerkit.digest import Digest
from layerkit.edges.loopback import speaks_tls
from layerkit.edges.upstream import asked_pause
from layerkit.errors import (
    BusyError,
    FormatError,
    NotFoundError,
    RemoteDeniedError,
    RemoteError,
    UnauthorizedError,
    UsageError,
)
from layerkit.formats.oci import INDEX_TYPES, MANIFEST_TYPES
from layerkit.formats.update import MAX_HAVE_COUNT, UPDATE_TYPE

__all__ = ["Answer", "Poller", "Question"]

CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 30.0  # beyond the time that the server was asked to wait
WITHIN_SECONDS: Final = 0.25  # for a delta that is not made yet; then chunks come instead
MAX_HEAD_SIZE: Final = 16 << 10
MAX_UPDATE_SIZE: Final = 1 << 20  # bytes; a larger one is left to the pull, which streams it


@dataclass(frozen=True, slots=True)
class Question:
    """Does `ref` (a tag) of repository `name` still name the first of `have`?"""

    name: str
    ref: str
    have: tuple[Digest, ...]
    platform: str


@dataclass(frozen=True, slots=True)
class Answer:
    """`changed`: it names another image (`digest`, where the server says, and maybe the update to
    it). `holds`: the server knows long polls; `waited`: it held this one to its end, so that it
    may be asked again at once."""

    changed: bool
    digest: Digest | None = None
    holds: bool = False
    waited: bool = False
    update: bytes = b""


class Poller:
    """One session for all servers; `limit` connections at once. `ca`, `cert` and `key` are PEM
    files: whom to trust (None: the system's authorities), and what to show."""

    def __init__(
        self,
        limit: int,
        ca: Path | None = None,
        cert: Path | None = None,
        key: Path | None = None,
    ) -> None:
        connector = aiohttp.TCPConnector(
            limit=limit, keepalive_timeout=75, ttl_dns_cache=30, ssl=_trust(ca, cert, key)
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers={"user-agent": "layerkit"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            max_line_size=MAX_HEAD_SIZE,
            max_field_size=MAX_HEAD_SIZE,
            trust_env=False,
        )
        self._by_tls: dict[str, str] = {}  # plain URLs of registries that want TLS

    async def close(self) -> None:
        await self._session.close()

    async def wait_for_update(
        self, url: str, token: str, question: Question, wait: float
    ) -> Answer | None:
        """Ask a chunk server, which may hold the question for `wait` seconds. None: it has no long
        poll for that. Raises RemoteError."""
        loop = asyncio.get_running_loop()
        have = ",".join(map(str, question.have[:MAX_HAVE_COUNT]))
        path = (
            f"/v1/{question.name}/updates/{question.ref}?from={have}"
            f"&platform={question.platform}&wait={wait:.0f}&within={WITHIN_SECONDS}"
        )
        started = loop.time()
        status, headers, update = await self._ask("GET", url, path, token, {}, wait)
        if status == 404:
            return None
        waited = status == 304 and loop.time() - started >= 0.5 * wait
        digest = _digest(headers, "docker-content-digest")
        return Answer(status == 200, digest, True, waited, update)

    async def look(self, url: str, token: str, question: Question) -> Answer:
        """Ask any registry what the tag names now; `token` may be a whole Authorization header.
        Goes through the proxy that the environment names. Raises UnauthorizedError where the
        header is refused, BusyError where one is to wait, RemoteError, NotFoundError."""
        accept = {"accept": ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))}
        if question.have:
            accept["if-none-match"] = f'"{question.have[0]}"'
        path = f"/v2/{question.name}/manifests/{question.ref}"
        where = self._by_tls.get(url, url)
        ask = partial(self._ask, "HEAD", path=path, token=token, headers=accept, wait=0.0)
        try:
            status, headers, _ = await ask(where, proxy=_find_proxy(where))
        except (UnauthorizedError, BusyError):
            raise
        except RemoteError:  # a registry on this machine may want TLS, as Transport finds out, too
            if not await asyncio.to_thread(speaks_tls, where):
                raise
            where = self._by_tls[url] = f"https{where.removeprefix('http')}"
            status, headers, _ = await ask(where, proxy=_find_proxy(where))
        if status == 404:
            raise NotFoundError(f"{url}{path} does not exist")
        digest = _digest(headers, "docker-content-digest") or _digest(headers, "etag")
        is_same = status == 304 or (digest is not None and digest in question.have[:1])
        return Answer(not is_same, digest)

    async def _ask(
        self,
        method: str,
        url: str,
        path: str,
        token: str,
        headers: Mapping[str, str],
        wait: float,
        proxy: str | None = None,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers, and a body that is an update and not too large."""
        if token:
            header = token if " " in token else f"Bearer {token}"
            headers = {**headers, "authorization": header}
        where = url + path.partition("?")[0]
        timeout = aiohttp.ClientTimeout(
            total=wait + ANSWER_SECONDS + CONNECT_SECONDS, sock_connect=CONNECT_SECONDS
        )
        try:
            async with self._session.request(
                method,
                url + path,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
                proxy=proxy,
            ) as response:
                status, body = response.status, b""
                if method == "GET" and status == 200:
                    body = await _read_update(response)
        except (aiohttp.ClientError, asyncio.IncompleteReadError, TimeoutError, OSError) as exc:
            raise RemoteError(
                f"cannot ask {where}", cause=(str(exc) or type(exc).__name__)[:300]
            ) from exc
        _check_status(status, response.headers.get("retry-after", ""), where)
        return status, response.headers, body


def _check_status(status: int, pause: str, where: str) -> None:
    if status == 401:
        raise UnauthorizedError(f"{where} wants other credentials: got status 401")
    if status == 403:
        raise RemoteDeniedError(f"{where} refuses access: got status 403")
    if status in (429, 503):
        busy = BusyError(f"{where} is busy: got status {status}")
        busy.seconds = asked_pause(pause.strip())
        raise busy
    if status not in (200, 304, 404):
        raise RemoteError(f"{where}: got status {status}")


def _find_proxy(url: str) -> str | None:
    """The proxy for `url` by the environment's `https_proxy` and its kin; None: none."""
    parts = urlsplit(url)
    if proxy_bypass(parts.netloc):
        return None
    return getproxies().get(parts.scheme)


async def _read_update(response: aiohttp.ClientResponse) -> bytes:
    """The body, if it is an update of at most MAX_UPDATE_SIZE; else the connection is closed."""
    size = response.content_length
    if response.content_type != UPDATE_TYPE or size is None or size > MAX_UPDATE_SIZE:
        response.close()
        return b""
    return await response.content.readexactly(size)


def _trust(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            context.load_cert_chain(cert, key)
    except (ssl.SSLError, OSError) as exc:
        raise UsageError("the certificates cannot be used", cause=str(exc)) from exc
    return context


def _digest(headers: Mapping[str, str], name: str) -> Digest | None:
    """What the server says that the tag names: only a hint."""
    try:
        return Digest.parse(headers.get(name, "").strip('"'))
    except FormatError:
        return None
