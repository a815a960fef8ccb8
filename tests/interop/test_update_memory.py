"""What large updates take of a server's memory: a real process, several nodes at once."""

from __future__ import annotations

import hashlib
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from builders import hello_files, noise, publish_image
from commands import serving

from layerkit.edges.layout import Layout
from layerkit.formats.update import UpdateReader

pytestmark = pytest.mark.slow
BINARY_SIZE = 80_000_000
MAX_GROWTH = 40_000_000  # bytes, of the peak, for four nodes at once: one copy would be 80


def peak(pid: int) -> int:
    """Bytes of resident memory at most, so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def read(url: str) -> tuple[str, int]:
    """SHA-256 and size of an answer, taken in parts."""
    hasher, size = hashlib.sha256(), 0
    with urllib.request.urlopen(url, timeout=120) as answer:
        while part := answer.read(1 << 16):
            hasher.update(part)
            size += len(part)
    return hasher.hexdigest(), size


def test_large_layers_take_no_memory(tmp_path: Path) -> None:
    """Without forms, for the server packs those aside, which takes memory of its own."""
    layout = tmp_path / "layout"
    publish_image(layout, "small:v1", hello_files(noise(1000)))
    files = {"code": {"app": noise(BINARY_SIZE)}}
    top = publish_image(layout, "fn:v1", files, compression="tar", chunks=False)
    argv = (layout, "--prepare", "0", "--cache", tmp_path / "cache")
    with serving(*argv) as (url, pid):
        read(f"{url}/v1/small/updates/v1")

        before = peak(pid)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(read, [f"{url}/v1/fn/updates/v1"] * 4))
        growth = peak(pid) - before
        with urllib.request.urlopen(f"{url}/v1/fn/updates/v1") as answer:
            raw = answer.read()
            etag = answer.headers["etag"]
        ranged = urllib.request.Request(
            f"{url}/v1/fn/updates/v1", headers={"Range": "bytes=1000-", "If-Range": etag}
        )
        with urllib.request.urlopen(ranged) as answer:
            assert answer.status == 206 and answer.read() == raw[1000:]
    assert set(answers) == {(hashlib.sha256(raw).hexdigest(), len(raw))}
    reader = UpdateReader([raw])
    documents = reader.read_documents(None)
    assert documents.top == Layout(layout).read_blob(top.digest)
    assert sum(len(part) for _, part in reader.read_parts()) > BINARY_SIZE
    assert before < 400_000_000
    assert growth < MAX_GROWTH
