"""The page at `/` in a real browser: what it shows, empty and full, light and dark, small and wide.

Needs chromium on PATH. LAYERKIT_TEST_SCREENSHOTS=DIR keeps the pictures.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "edges"))
from memory_source import MemorySource
from serving import Served, serving

from layerkit.formats.update import Share

Browse = Callable[..., str]


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Runs the browser with some options and returns what it prints."""
    found = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
    )
    if not found:
        pytest.skip("no chromium on PATH")

    def run(url: str, *options: str, timeout: int = 60) -> str:
        argv = [found, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        argv += ["--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}"]
        done = subprocess.run(
            [*argv, *options, url], capture_output=True, text=True, timeout=timeout, check=True
        )
        return done.stdout

    return run


@pytest.fixture
def full() -> MemorySource:
    source = MemorySource()
    for name in ("team/checkout", "team/<b>images</b>"):
        old = source.tag(name, "v1", b'{"v":1}')
        source.tag(name, "v2", b'{"v":2}')
        source.tag(name, "v3-a-rather-long-tag.2026-11-25", b'{"v":3}')
        source.update(name, "v2", old, bytes(566))
        source.update(name, "v3-a-rather-long-tag.2026-11-25", old, bytes(151_000))
    return source


def count_some(served: Served) -> None:
    shares = [Share("base", 0, 1_200_000_000), Share("deps", 81_000, 4_100_000)]
    served.app.metrics.count_shares([*shares, Share("code", 1_210_000, 3_812_000)])


def texts(dom: str) -> str:
    plain = re.sub(r"(?s)<style>.*?</style>|<[^>]+>", " ", dom)
    return re.sub(r"\s+", " ", html.unescape(plain))


def read_png(path: Path) -> tuple[int, int, set[bytes]]:
    """Width, height, and the colours of the first and the middle rows' first pixels."""
    raw = path.read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, kind = struct.unpack(">IIBB", raw[16:26])
    assert depth == 8
    at, data = 8, b""
    while at < len(raw):
        size, name = struct.unpack(">I4s", raw[at : at + 8])
        data += raw[at + 8 : at + 8 + size] if name == b"IDAT" else b""
        at += size + 12
    pixels = zlib.decompress(data)
    count = {2: 3, 6: 4}[kind]
    return width, height, {pixels[1 : 1 + count][:3]}


def keep(picture: Path, name: str) -> None:
    folder = os.environ.get("LAYERKIT_TEST_SCREENSHOTS")
    if folder:
        shutil.copy(picture, Path(folder) / f"{name}.png")


def test_the_page_says_what_is_served(browse: Browse, full: MemorySource) -> None:
    with serving(full) as served:
        count_some(served)
        dom = browse(served.url, "--dump-dom")
    shown = texts(dom)
    for text in (
        "team/checkout",
        "v2",
        "566 B",
        "151 kB",
        "6.11 MB",
        ">99.9 %",
        "2026-11-24 10:20",
    ):
        assert text in shown, text
    assert "1.29 MB travelled instead of 1.21 GB" in shown
    assert "base 100.0 %" in shown and "deps 98.0 %" in shown and "code 68.3 %" in shown
    assert "team/<b>images</b>" in shown  # a name is text, whatever is in it
    assert "<b>" not in dom and "<script" not in dom
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", dom)


@pytest.mark.slow
def test_an_empty_server_says_what_to_do(browse: Browse, full: MemorySource) -> None:
    with serving(MemorySource()) as served:
        shown = texts(browse(served.url, "--dump-dom"))
    assert "No images yet" in shown and "layerkit build" in shown
    with serving(full) as served:
        assert texts(browse(served.url, "--dump-dom")).count("nothing sent yet") == 3


@pytest.mark.slow
@pytest.mark.parametrize("look", ["light", "dark", "narrow", "empty"])
def test_the_page_can_be_looked_at(
    browse: Browse, full: MemorySource, tmp_path: Path, look: str
) -> None:
    source = MemorySource() if look == "empty" else full
    size = "400,900" if look == "narrow" else "1100,1300"
    options = [f"--screenshot={tmp_path / 'page.png'}", f"--window-size={size}"]
    if look == "dark":
        options.append("--blink-settings=preferredColorScheme=0")
    with serving(source) as served:
        if look != "empty":
            count_some(served)
        browse(served.url, *options)
    width, height, corner = read_png(tmp_path / "page.png")
    keep(tmp_path / "page.png", look)
    assert f"{width},{height}" == size
    dark = all(value < 64 for value in next(iter(corner)))
    assert dark == (look == "dark")
