"""Real registries behind proxies with habits, and with a token server: push, pull, pull anew."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builders import hello_files, noise, publish_image
from commands import layerkit
from middlemen import Proxy, TokenServer
from registry_servers import (
    COLLECTS,
    REFERRERS,
    certify,
    empty_registry,
    find_tool,
    free_port,
    running,
    write_config,
)

pytestmark = pytest.mark.slow
SIZE = 1_200_000  # bytes that do not compress


def publish(layout: Path, text: bytes) -> str:
    """An image of SIZE and some; its digest."""
    files = hello_files(noise(SIZE // 2) + text + noise(SIZE // 2, 2))
    return str(publish_image(layout, "fn:v1", files, packs=True).digest)


def push(layout: Path, host: str, *options: str) -> None:
    layerkit("push", "fn:v1", "--from", layout, "--to", f"http://{host}", *options)


def pull(host: str, store: Path, *options: str, **environment: str) -> dict[str, Any]:
    said = layerkit("pull", f"{host}/fn:v1", "--store", store, "--json", *options, **environment)
    found: dict[str, Any] = json.loads(said)
    return found


@pytest.fixture(params=[*COLLECTS, REFERRERS[0]])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with empty_registry(request.param, tmp_path / "registry") as made:
        yield made


@pytest.mark.parametrize("habit", ["whole", "busy", "cut"])
def test_a_proxy_with_a_habit(host: str, habit: str, tmp_path: Path) -> None:
    """Each way to pull: all of it, all of it with few bytes (ranges), and an update."""
    with Proxy(host, "busy" if habit == "busy" else "none").serving() as proxy:
        publish(tmp_path / "layout", b"one")
        push(tmp_path / "layout", proxy.host)
        assert all(seconds >= 0.9 for seconds in proxy.waited)
        assert len(proxy.waited) == (3 if habit == "busy" else 0)
    moved: dict[str, int] = {}
    for kind in ("none", habit):
        with Proxy(host, kind).serving() as proxy:
            first = pull(proxy.host, tmp_path / f"store-{kind}", "--fewest-bytes")
            assert first["moved_size"] > 1_000_000
            moved[kind] = proxy.blob_size
            assert (proxy.faults > 0) is (kind in ("busy", "cut"))
    # a cut answer goes on where it was; nothing is fetched twice where a part is answered whole
    assert moved[habit] < 1.1 * moved["none"]
    digest = publish(tmp_path / "layout", b"two")
    push(tmp_path / "layout", host)
    with Proxy(host, habit).serving() as proxy:
        store = tmp_path / f"store-{habit}"
        # by another address: a registry is named in the reference, images are shared all the same
        found = pull(proxy.host, store, "--fewest-bytes")
        assert found["digest"] == digest
        assert found["moved_size"] < 0.1 * first["moved_size"]
    layerkit("verify", "--store", store)


@pytest.mark.parametrize("habit", ["whole", "cut"])
def test_chunks_through_a_proxy_with_a_habit(host: str, habit: str, tmp_path: Path) -> None:
    """No update leads from what the node has, so ranges are read where that is less."""
    with Proxy(host, "none").serving() as proxy:
        publish(tmp_path / "layout", b"one")
        push(tmp_path / "layout", proxy.host)
        pull(proxy.host, tmp_path / "store", "--fewest-bytes")
    digest = publish(tmp_path / "layout", b"two")
    push(tmp_path / "layout", host, "--deltas", "0")
    with Proxy(host, habit).serving() as proxy:
        found = pull(proxy.host, tmp_path / "store", "--fewest-bytes")
        assert found["digest"] == digest
        assert proxy.ranges > 0
        # a part that comes whole is taken as the whole that it is, and asked for once
        assert proxy.blob_size < (1.2 if habit == "whole" else 0.25) * SIZE
    layerkit("verify", "--store", tmp_path / "store")


def config_of(folder: Path, host: str, login: str) -> dict[str, str]:
    folder.mkdir()
    auth = base64.b64encode(login.encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    return {"DOCKER_CONFIG": str(folder)}


@pytest.mark.parametrize("kind", COLLECTS)
def test_a_token_server(kind: str, tmp_path: Path) -> None:
    """Tokens for push and for pull; no login, a wrong one; a token server on another host."""
    tool, port, folder = find_tool(kind), free_port(), tmp_path / "registry"
    folder.mkdir()
    publish(tmp_path / "layout", b"one")
    host = f"127.0.0.1:{port}"
    good = config_of(tmp_path / "good", host, "me:secret")
    wrong = config_of(tmp_path / "wrong", host, "me:wrong")
    with TokenServer(*certify(tmp_path), login="me:secret").serving() as tokens:
        config = write_config(folder, port, auth=tokens.auth_config())
        argv: tuple[str | Path, ...] = ("push", "fn:v1", "--from", tmp_path / "layout")
        argv = (*argv, "--to", f"http://{host}")
        with running([tool, "serve", str(config)], port, folder):
            for environment in (wrong, {"DOCKER_CONFIG": str(tmp_path)}):
                said = layerkit(*argv, status=6, **environment)
                assert "refuses access [DENIED]" in said and "docker login" in said
            layerkit(*argv, **good)
            assert pull(host, tmp_path / "store", **good)["moved_size"] > 1_000_000
            scopes = {scope for scope, allowed in tokens.asked if allowed}
            assert any("pull,push" in scope for scope in scopes)
            assert any(scope.endswith(":pull") for scope in scopes)
        tokens.shown.clear()
        config = write_config(folder, port, auth=tokens.auth_config("localhost"))
        pulled = ("pull", f"{host}/fn:v1", "--store", tmp_path / "next")
        with running([tool, "serve", str(config)], port, folder):
            assert "--token-realm localhost" in layerkit(*pulled, status=6, **good)
            assert tokens.shown == []
            layerkit(*pulled, "--token-realm", "localhost", **good)
            assert len(tokens.shown) >= 1
