"""A hook's paths: who is heard, what is answered, what is refused before it costs anything."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import urllib3

from layerkit.edges.hookapi import HookSurface
from layerkit.edges.http import (
    Gate,
    Limits,
    Metrics,
    RunningServer,
    SecretGate,
    ServerApp,
    start_server,
)
from layerkit.errors import BusyError, StoreError
from layerkit.formats.notifications import MAX_NOTIFICATION_SIZE, Pushed

SECRET = "the-secret-of-a-registry"
HTTP = urllib3.PoolManager(retries=False)


class FakeWork:
    def __init__(self) -> None:
        self.taken: list[Pushed] = []
        self.error: Exception | None = None

    def take_in(self, pushed: Sequence[Pushed]) -> int:
        self.check_ready()
        self.taken += pushed
        return len(pushed)

    def check_ready(self) -> None:
        if self.error is not None:
            raise self.error

    def describe(self) -> Mapping[str, Any]:
        return {"queue": {"waiting": len(self.taken)}}


@pytest.fixture
def work() -> FakeWork:
    return FakeWork()


def serving(work: FakeWork, gate: Gate | SecretGate) -> RunningServer:
    metrics = Metrics()
    return start_server(ServerApp(HookSurface(work), metrics=metrics, gate=gate, limits=Limits()))


@pytest.fixture
def url(work: FakeWork) -> Iterator[str]:
    with serving(work, SecretGate(SECRET)) as running:
        yield running.url


def event(name: str = "team/fn", tag: str = "v1") -> bytes:
    target = {"repository": name, "tag": tag, "digest": "sha256:" + "0" * 64}
    return json.dumps({"events": [{"action": "push", "target": target}]}).encode()


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def ask(
    url: str, method: str, body: bytes | None = None, said: str = f"Bearer {SECRET}"
) -> urllib3.BaseHTTPResponse:
    headers = {"authorization": said} if said else {}
    return HTTP.request(method, url, body=body, headers=headers)


@pytest.mark.parametrize("said", [f"Bearer {SECRET}", f"bearer {SECRET}", basic("any", SECRET)])
def test_a_notification_is_answered_once_it_is_taken(url: str, work: FakeWork, said: str) -> None:
    answer = ask(f"{url}/events", "POST", event(), said)
    assert answer.status == 202 and answer.json() == {"taken": 1}
    assert work.taken == [Pushed("team/fn", "v1")]


@pytest.mark.parametrize(
    "said",
    [
        "",
        "Bearer",
        "Bearer wrong",
        f"Bearer {SECRET}x",
        f"Digest {SECRET}",
        basic(SECRET, ""),
        "Basic !",
        "Bearer " + "x" * 5000,
    ],
)
def test_who_does_not_know_the_secret_is_not_heard(url: str, work: FakeWork, said: str) -> None:
    for method, path in (("POST", "/events"), ("GET", "/"), ("GET", "/metrics")):
        answer = ask(f"{url}{path}", method, event() if method == "POST" else None, said)
        assert answer.status == 401 and SECRET.encode() not in answer.data
    assert work.taken == []


def test_balancers_need_no_secret(url: str) -> None:
    assert [ask(f"{url}{path}", "GET", said="").status for path in ("/healthz", "/readyz")] == [
        200,
        200,
    ]


def test_without_a_secret_everyone_is_heard(work: FakeWork) -> None:
    with serving(work, Gate(None)) as running:
        assert ask(f"{running.url}/events", "POST", event(), "").status == 202


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"[]", 400), (b"x" * (MAX_NOTIFICATION_SIZE + 1), 413), (b'{"events":[]}', 202)],
)
def test_bodies(url: str, work: FakeWork, body: bytes, status: int) -> None:
    assert ask(f"{url}/events", "POST", body).status == status
    assert work.taken == []


@pytest.mark.parametrize(
    ("error", "status"),
    [(BusyError("the queue is full", cause="10"), 429), (StoreError("the disk is broken"), 500)],
)
def test_what_cannot_be_kept_is_not_taken(
    url: str, work: FakeWork, error: Exception, status: int
) -> None:
    work.error = error
    answer = ask(f"{url}/events", "POST", event())
    assert answer.status == status
    assert answer.headers.get("retry-after") == ("10" if status == 429 else None)
    assert ask(f"{url}/readyz", "GET").status == 503


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/events", 405), ("POST", "/", 405), ("GET", "/v2/", 404), ("GET", "/x", 404)],
)
def test_nothing_else_is_there(url: str, method: str, path: str, status: int) -> None:
    assert ask(f"{url}{path}", method).status == status


def test_the_state_of_the_work(url: str) -> None:
    ask(f"{url}/events", "POST", event())
    assert ask(f"{url}/", "GET").json() == {"queue": {"waiting": 1}}
    assert b"layerkit_http_requests_total" in ask(f"{url}/metrics", "GET").data
