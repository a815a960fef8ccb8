"""Where registries tell an agent of pushes: who is heard, and what is taken."""

from __future__ import annotations

import asyncio
import json

import pytest
import urllib3

from layerkit.edges.newsapi import NewsApi
from layerkit.edges.telling import Teller
from layerkit.errors import UsageError
from layerkit.formats.notifications import Pushed

SECRET = "a-secret-for-the-registry"
HTTP = urllib3.PoolManager(retries=False)
EVENT = {"events": [{"action": "push", "target": {"repository": "fn", "tag": "v1"}}]}
BODY = json.dumps(EVENT).encode()


def tell(body: bytes, secret: str, **headers: str) -> tuple[int, list[Pushed]]:
    """Status of the answer, and what was taken."""
    taken: list[Pushed] = []

    def take(pushed: tuple[Pushed, ...]) -> int:
        taken.extend(pushed)
        return len(pushed)

    async def main() -> int:
        api = NewsApi(take, secret)
        try:
            url = await api.listen("127.0.0.1", 0)
            facts = {"body": body, "headers": headers}
            return (await asyncio.to_thread(HTTP.request, "POST", url, **facts)).status
        finally:
            await api.close()

    return asyncio.run(main()), taken


@pytest.mark.parametrize(
    ("secret", "credentials", "status"),
    [
        (SECRET, f"Bearer {SECRET}", 200),
        (SECRET, "Basic cmVnaXN0cnk6YS1zZWNyZXQtZm9yLXRoZS1yZWdpc3RyeQ==", 200),
        (SECRET, f"Bearer {SECRET}x", 401),
        (SECRET, "Bearer", 401),
        (SECRET, "", 401),
        ("", "", 200),
    ],
)
def test_who_knows_the_secret_is_heard(secret: str, credentials: str, status: int) -> None:
    got, taken = tell(BODY, secret, authorization=credentials)
    assert (got, taken) == (status, [Pushed("fn", "v1")] if status == 200 else [])


@pytest.mark.parametrize(
    ("body", "status"), [(b"[]", 400), (b"{}", 400), (b"\xff", 400), (b" " * (2 << 20), 413)]
)
def test_what_is_no_notification_is_refused(body: bytes, status: int) -> None:
    assert tell(body, "") == (status, [])


def test_a_teller_is_heard_by_who_listens() -> None:
    taken: list[Pushed] = []

    async def main() -> int:
        api = NewsApi(lambda pushed: taken.extend(pushed) or len(pushed), SECRET)
        try:
            url = (await api.listen("127.0.0.1", 0)).removesuffix("/events")
            teller = Teller([url, "http://127.0.0.1:1"], SECRET)
            stranger = Teller([url], "another-secret-than-that")
            assert await asyncio.to_thread(stranger.tell, Pushed("fn", "v1")) == 0
            return await asyncio.to_thread(teller.tell, Pushed("fn", "v2"))
        finally:
            await api.close()

    assert asyncio.run(main()) == 1
    assert taken == [Pushed("fn", "v2")]


def test_without_a_secret_only_this_machine_is_listened_to() -> None:
    with pytest.raises(UsageError, match="no secret"):
        asyncio.run(NewsApi(len, "").listen("0.0.0.0", 0))
