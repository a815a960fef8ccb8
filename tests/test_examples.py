"""The examples as a user has them: built, run, asked, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerkit.edges.disk import Disk
from layerkit.edges.goruntime import offer_runtime
from layerkit.jobs.init import add_runtime

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_example_requires_the_module_as_it_is_now(tmp_path: Path) -> None:
    for name in ("go.mod", "go.sum"):
        shutil.copy(EXAMPLES / "feed" / name, tmp_path)
    add_runtime(tmp_path)
    for name in ("go.mod", "go.sum"):
        want = (EXAMPLES / "feed" / name).read_text()
        assert (tmp_path / name).read_text() == want, "run 'make docs'"


@pytest.fixture(scope="module")
def feed(go_toolchain: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the feed example, with a small table."""
    folder = tmp_path_factory.mktemp("feed")
    offer = offer_runtime(Disk(), folder, EXAMPLES / "feed", {"GOPROXY": "off"})
    env = dict(os.environ) | {"CGO_ENABLED": "0", "GOFLAGS": ""} | dict(offer.environment)
    argv = [go_toolchain, "build", *offer.flags, "-o", folder / "feed", "."]
    subprocess.run(argv, cwd=EXAMPLES / "feed", env=env, check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {"PORT": str(port), "HOST": "127.0.0.1", "FEED_ROWS": "20000"}
    process = subprocess.Popen([folder / "feed"], env=settings)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(2000):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/readyz"):
                break
            time.sleep(0.01)
        yield url
    finally:
        process.terminate()
        status = process.wait(30)
    assert status == 0


def ask(url: str) -> object:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


@pytest.mark.go
def test_feed_ranks_the_same_for_the_same_user(feed: str) -> None:
    first, again = ask(f"{feed}/feed?user=7&n=5"), ask(f"{feed}/feed?user=7&n=5")
    assert isinstance(first, list)
    assert len(first) == 5
    assert first == again != ask(f"{feed}/feed?user=8&n=5")
    scores = [one["score"] for one in first]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.go
@pytest.mark.parametrize("query", ["", "?user=x", "?user=1&n=0", "?user=1&n=101"])
def test_feed_refuses_nonsense(feed: str, query: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(f"{feed}/feed{query}")
    assert caught.value.code == 400


@pytest.mark.go
def test_feed_shows_how_it_does(feed: str) -> None:
    ask(f"{feed}/feed?user=1")
    page = ask(f"{feed}/debug/layerkit")
    assert isinstance(page, dict)
    assert page["handlers"]["feed"]["requests"] >= 1
