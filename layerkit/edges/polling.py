"""Asks servers whether a reference names another image than before; many at once in one event loop.

A chunk server holds the question until there is news (`GET /v1/<name>/updates/<ref>?wait=`, asked
with HEAD: docs/design.md "Server surface"). Any other registry is asked by `HEAD` of the manifest.
A question costs a connection and no thread. What it says is only a hint to pull: nothing is
accepted because of it. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import aiohttp

from layerkit.digest import Digest
from layerkit.errors import FormatError, NotFoundError, RemoteDeniedError, RemoteError
from layerkit.formats.oci import INDEX_TYPES, MANIFEST_TYPES
from layerkit.formats.update import MAX_HAVE_COUNT

__all__ = ["Answer", "Poller", "Question"]

CONNECT_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 30.0  # beyond the time that the server was asked to wait
MAX_HEAD_SIZE: Final = 16 << 10


@dataclass(frozen=True, slots=True)
class Question:
    """Does `ref` (a tag) of repository `name` still name the first of `have`?"""

    name: str
    ref: str
    have: tuple[Digest, ...]
    platform: str


@dataclass(frozen=True, slots=True)
class Answer:
    """`changed`: it names another image (`digest`, where the server says); `waited`: the server
    held the question, so that it may be asked again at once."""

    changed: bool
    digest: Digest | None
    waited: bool


class Poller:
    """One session for all servers; `limit` connections at once."""

    def __init__(self, limit: int) -> None:
        connector = aiohttp.TCPConnector(limit=limit, keepalive_timeout=75, ttl_dns_cache=30)
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers={"user-agent": "layerkit"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            max_line_size=MAX_HEAD_SIZE,
            max_field_size=MAX_HEAD_SIZE,
            trust_env=False,
        )

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
            f"&platform={question.platform}&wait={wait:.0f}&within=0"
        )
        started = loop.time()
        status, headers = await self._ask(url, path, token, {}, wait)
        if status == 404:
            return None
        waited = status == 304 and loop.time() - started >= 0.5 * wait
        return Answer(status == 200, _digest(headers), waited)

    async def look(self, url: str, token: str, question: Question) -> Answer:
        """Ask any registry what the tag names now. Raises RemoteError, NotFoundError."""
        accept = {"accept": ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))}
        if question.have:
            accept["if-none-match"] = f'"{question.have[0]}"'
        path = f"/v2/{question.name}/manifests/{question.ref}"
        status, headers = await self._ask(url, path, token, accept, 0.0)
        if status == 404:
            raise NotFoundError(f"{url}{path} does not exist")
        digest = _digest(headers)
        if status == 304 or (digest is not None and digest in question.have[:1]):
            return Answer(False, digest, False)
        return Answer(True, digest, False)

    async def _ask(
        self, url: str, path: str, token: str, headers: Mapping[str, str], wait: float
    ) -> tuple[int, Mapping[str, str]]:
        if token:
            headers = {**headers, "authorization": f"Bearer {token}"}
        where = url + path.partition("?")[0]
        timeout = aiohttp.ClientTimeout(
            total=wait + ANSWER_SECONDS + CONNECT_SECONDS, sock_connect=CONNECT_SECONDS
        )
        try:
            async with self._session.head(
                url + path, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                status = response.status
                answered = response.headers
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            raise RemoteError(
                f"cannot ask {where}", cause=(str(exc) or type(exc).__name__)[:300]
            ) from exc
        if status in (401, 403):
            raise RemoteDeniedError(f"{where} refuses access: got status {status}")
        if status not in (200, 304, 404):
            raise RemoteError(f"{where}: got status {status}")
        return status, answered


def _digest(headers: Mapping[str, str]) -> Digest | None:
    """What the server says that the tag names: only a hint."""
    names: Sequence[str] = ("docker-content-digest", "etag")
    for name in names:
        try:
            return Digest.parse(headers.get(name, "").strip('"'))
        except FormatError:
            continue
    return None
