"""Two real servers over one layout and one shelf: a delta is made once, whoever is asked."""

from __future__ import annotations

import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from builders import hello_files, noise, publish_image
from commands import serving

pytestmark = pytest.mark.slow


def read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return bytes(answer.read())


def test_a_delta_is_made_once_for_two_servers(tmp_path: Path) -> None:
    body = noise(12_000_000)
    old = publish_image(tmp_path / "layout", "fn:v1", hello_files(body))
    edited = body[:6_000_000] + b"an edit" + body[6_000_000:]
    publish_image(tmp_path / "layout", "fn:v1", hello_files(edited))
    with ExitStack() as stack:
        argv = (tmp_path / "layout", "--made", tmp_path / "made", "--prepare", "0")
        urls = [stack.enter_context(serving(*argv)).url for _ in range(2)]
        asked = [f"{url}/v1/fn/updates/v1?from={old.digest}" for url in urls]
        with ThreadPoolExecutor(2) as pool:
            one, two = pool.map(read, asked)
        texts = [read(f"{url}/metrics").decode() for url in urls]
    assert one == two and len(one) < 10_000
    made = [
        float(count)
        for text in texts
        for count in re.findall(r'layerkit_make_seconds_count\{what="delta"\} (\S+)', text)
    ]
    assert sum(made) == 1, made
