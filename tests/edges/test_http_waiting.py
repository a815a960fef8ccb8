"""Long polls and joined requests: many wait, nothing is asked twice."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from memory_source import MemorySource
from serving import Served, connect, get, serving

from layerkit.digest import Digest
from layerkit.edges.disk import Disk
from layerkit.edges.tokens import add_token, remove_token


@pytest.fixture
def source() -> MemorySource:
    source = MemorySource()
    source.tag("a", "v1", b'{"v":1}')
    source.tag("a", "main", b'{"v":1}')
    return source


@pytest.fixture
def old(source: MemorySource) -> Digest:
    return source.tag("a", "v1", b'{"v":1}')


@pytest.fixture
def served(source: MemorySource) -> Iterator[Served]:
    with serving(source) as found:
        yield found


def publish(source: MemorySource, old: Digest) -> None:
    source.tag("a", "main", b'{"v":2}')
    source.update("a", "main", old, b"update")


def test_a_new_version_ends_the_wait(served: Served, source: MemorySource, old: Digest) -> None:
    threading.Timer(0.3, publish, (source, old)).start()
    begun = time.monotonic()
    answer = get(served, f"/v1/a/updates/main?from={old}&wait=20")
    assert (answer.status, answer.data) == (200, b"update")
    assert 0.2 < time.monotonic() - begun < 15


def test_another_repository_does_not_end_it(
    served: Served, source: MemorySource, old: Digest
) -> None:
    threading.Timer(0.2, source.tag, ("b", "v1")).start()
    begun = time.monotonic()
    assert get(served, f"/v1/a/updates/main?from={old}&wait=1").status == 304
    assert time.monotonic() - begun > 0.9


def test_what_is_there_already_is_not_waited_for(
    served: Served, source: MemorySource, old: Digest
) -> None:
    publish(source, old)
    begun = time.monotonic()
    assert get(served, f"/v1/a/updates/main?from={old}&wait=20").data == b"update"
    assert time.monotonic() - begun < 15


def test_an_unknown_tag_is_not_waited_for(served: Served, old: Digest) -> None:
    begun = time.monotonic()
    assert get(served, f"/v1/a/updates/v9?from={old}&wait=20").status == 404
    assert time.monotonic() - begun < 15


def test_many_wait_without_threads_and_are_woken_by_one_question(
    served: Served, source: MemorySource, old: Digest
) -> None:
    """500 here; the bench does 2,000. Each is a connection, none is a thread."""
    request = f"GET /v1/a/updates/main?from={old}&wait=30 HTTP/1.1\r\nhost: x\r\n\r\n".encode()
    socks = [connect(served) for _ in range(500)]
    try:
        for sock in socks:
            sock.sendall(request)
        end = time.monotonic() + 10
        while served.metric("layerkit_http_waiting") < 500 and time.monotonic() < end:
            time.sleep(0.05)
        assert served.metric("layerkit_http_waiting") == 500
        threads = threading.active_count()
        asked = len(source.calls)
        publish(source, old)
        for sock in socks:
            sock.settimeout(10)
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
        assert threads < 40
        assert len(source.calls) - asked < 20
    finally:
        for sock in socks:
            sock.close()


def test_who_leaves_is_forgotten(served: Served, old: Digest) -> None:
    socks = [connect(served) for _ in range(20)]
    for sock in socks:
        sock.sendall(f"GET /v1/a/updates/main?from={old}&wait=50 HTTP/1.1\r\n\r\n".encode())
    time.sleep(0.5)
    before = served.metric("layerkit_http_in_flight")
    for sock in socks:
        sock.close()
    end = time.monotonic() + 5
    while served.metric("layerkit_http_in_flight") and time.monotonic() < end:
        time.sleep(0.05)
    assert (before, served.metric("layerkit_http_in_flight")) == (20, 0)
    assert served.metric("layerkit_http_requests_total", endpoint="updates", status="499") == 20


def test_a_server_that_ends_lets_go_of_those_who_wait(source: MemorySource, old: Digest) -> None:
    found: list[int] = []
    begun = time.monotonic()
    with serving(source) as served:
        path = f"/v1/a/updates/main?from={old}&wait=50"
        thread = threading.Thread(target=lambda: found.append(get(served, path).status))
        thread.start()
        time.sleep(0.4)
    thread.join(20)
    assert found == [304] and time.monotonic() - begun < 30


def test_a_token_that_was_taken_back_in_the_meantime_gets_nothing(
    source: MemorySource, old: Digest, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    token = add_token(tokens, "node", ["*"], [], day="", disk=Disk())

    def change() -> None:
        remove_token(tokens, "node", Disk())
        publish(source, old)

    with serving(source, tokens) as served:
        threading.Timer(0.4, change).start()
        headers = {"authorization": f"Bearer {token}"}
        assert get(served, f"/v1/a/updates/main?from={old}&wait=20", headers=headers).status == 401


def test_the_same_update_is_made_once_for_all(
    served: Served, source: MemorySource, old: Digest
) -> None:
    publish(source, old)
    source.slow, source.kept = 0.5, False
    with ThreadPoolExecutor(30) as pool:
        path = f"/v1/a/updates/main?from={old}"
        answers = list(pool.map(lambda _: get(served, path).data, range(30)))
    assert answers == [b"update"] * 30
    assert source.calls.count("read_update") < 4


def test_slow_updates_do_not_hold_up_what_is_quick(
    served: Served, source: MemorySource, old: Digest
) -> None:
    publish(source, old)
    source.slow = 3
    with ThreadPoolExecutor(40) as pool:
        for at in range(40):
            pool.submit(get, served, f"/v1/a/updates/main?from={old}&within={at / 10 + 0.1}")
        time.sleep(0.3)
        begun = time.monotonic()
        assert get(served, "/v2/a/tags/list").status == 200
        assert time.monotonic() - begun < 2.5


def test_watchers_see_changes_whatever_they_saw_before() -> None:
    """Who saw an older version than the others is woken at once, and nobody spins."""
    from layerkit.edges.http.watch import Watcher

    async def run() -> list[bool]:
        async def look() -> int:
            return 2

        watcher = Watcher(look)
        return await asyncio.gather(watcher.wait(2, 0.6), watcher.wait(1, 5), watcher.wait(2, 0.6))

    begun = time.monotonic()
    assert asyncio.run(run()) == [False, True, False]
    assert time.monotonic() - begun < 4


def test_500_waiting_nodes_are_one_look_at_a_time() -> None:
    """However many wait, the version is looked at once in each pause."""
    from layerkit.edges.http.watch import FAR_LOOK_SECONDS, LOOK_SECONDS, Watcher

    async def run(count: int, pause: float) -> int:
        looks = 0

        async def look() -> int:
            nonlocal looks
            looks += 1
            return 1

        watcher = Watcher(look, pause)
        await asyncio.gather(*(watcher.wait(1, 0.4) for _ in range(count)))
        return looks

    for pause in (LOOK_SECONDS, FAR_LOOK_SECONDS):
        assert asyncio.run(run(1, pause)) <= 0.4 / pause + 1
        assert 1 <= asyncio.run(run(500, pause)) <= 3 * 0.4 / pause  # a busy machine wakes later


def test_a_version_that_is_far_is_looked_at_less_often(old: Digest) -> None:
    counted = MemorySource()
    counted.tag("a", "main", b'{"v":1}')
    looks: dict[bool, int] = {}
    for near in (True, False):
        counted.has_near_version = near
        seen = 0
        ask = counted.version

        def version(ask: object = ask) -> object:
            nonlocal seen
            seen += 1
            return ask()  # type: ignore[operator]

        counted.version = version  # type: ignore[method-assign,assignment]
        with serving(counted) as served:
            get(served, f"/v1/a/updates/main?from={old}&wait=1")
        counted.version, looks[near] = ask, seen  # type: ignore[method-assign]
    assert looks[False] <= 1 / 0.05 + 10 and looks[True] > looks[False]
