"""The peers: what each existing tool moves so that a node with `old` gets `new`. One function each.

A function returns the bytes that travel, its own metadata included, and the seconds to make and to
apply them. A tool that is not on the machine raises `Missing` with the reason. Settings are the
best that the tool's own documentation names for size.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import bsdiff4
import zstandard
from pyfastcdc import FastCDC

WORK = Path(__file__).resolve().parent / "work"


class Missing(Exception):
    """The tool is not there; the text says why, and becomes the row's text."""


@dataclass(frozen=True)
class Moved:
    size: int
    make_s: float = 0.0
    apply_s: float = 0.0


Peer = Callable[[bytes, bytes], Moved]


def whole_gzip(old: bytes, new: bytes) -> Moved:
    del old
    start = time.perf_counter()
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    packed = packer.compress(new) + packer.flush()
    middle = time.perf_counter()
    assert zlib.decompress(packed, 31) == new
    return Moved(len(packed), middle - start, time.perf_counter() - middle)


def whole_zstd(old: bytes, new: bytes) -> Moved:
    del old
    start = time.perf_counter()
    packed = zstandard.ZstdCompressor(level=19).compress(new)
    middle = time.perf_counter()
    assert zstandard.ZstdDecompressor().decompress(packed) == new
    return Moved(len(packed), middle - start, time.perf_counter() - middle)


def _raw_chunks(old: bytes, new: bytes, average: int) -> Moved:
    """Missing chunks as one zstd -19 frame, and a 32-byte id for every chunk of the new file."""
    start = time.perf_counter()
    cutter = FastCDC(avg_size=average, min_size=average // 4, max_size=average * 8)
    held = {bytes(chunk.data) for chunk in cutter.cut_buf(old)}
    chunks = [bytes(chunk.data) for chunk in cutter.cut_buf(new)]
    missing = b"".join(dict.fromkeys(chunk for chunk in chunks if chunk not in held))
    packed = zstandard.ZstdCompressor(level=19).compress(missing)
    return Moved(len(packed) + 32 * len(chunks), time.perf_counter() - start)


def chunks_1k(old: bytes, new: bytes) -> Moved:
    return _raw_chunks(old, new, 1024)


def chunks_4k(old: bytes, new: bytes) -> Moved:
    return _raw_chunks(old, new, 4096)


def zstd_patch(old: bytes, new: bytes) -> Moved:
    """`zstd -19 --patch-from --long`: the old file as a raw dictionary inside the window."""
    start = time.perf_counter()
    raw = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    log = min(31, (len(old) + len(new)).bit_length())
    parameters = zstandard.ZstdCompressionParameters.from_level(
        19, window_log=log, enable_ldm=True, source_size=len(new), dict_size=len(old)
    )
    packed = zstandard.ZstdCompressor(dict_data=raw, compression_params=parameters).compress(new)
    middle = time.perf_counter()
    unpacker = zstandard.ZstdDecompressor(dict_data=raw, max_window_size=1 << 31)
    assert unpacker.decompress(packed) == new
    return Moved(len(packed), middle - start, time.perf_counter() - middle)


def bsdiff(old: bytes, new: bytes) -> Moved:
    start = time.perf_counter()
    patch = bsdiff4.diff(old, new)
    middle = time.perf_counter()
    assert bsdiff4.patch(old, patch) == new
    return Moved(len(patch), middle - start, time.perf_counter() - middle)


def hdiff(old: bytes, new: bytes) -> Moved:
    """The smaller of LZMA2 and zstd behind it, both at their best level."""
    try:
        import hdiffpatch
    except ImportError as exc:
        raise Missing("the wheel `hdiffpatch` is not installed") from exc
    found = []
    for coder in (hdiffpatch.Lzma2Config(9, window=24), hdiffpatch.ZStdConfig(22, window=24)):
        start = time.perf_counter()
        patch = hdiffpatch.diff(old, new, compression=coder, validate=False)
        middle = time.perf_counter()
        assert hdiffpatch.apply(old, patch) == new
        found.append(Moved(len(patch), middle - start, time.perf_counter() - middle))
    return min(found, key=lambda moved: moved.size)


def _tool(name: str, how: str) -> str:
    path = shutil.which(name, path=f"{WORK / 'gobin'}{os.pathsep}{os.environ.get('PATH', '')}")
    if path is None:
        raise Missing(f"`{name}` is not installed ({how})")
    return path


def _run(*argv: object, cwd: Path | None = None) -> float:
    start = time.perf_counter()
    done = subprocess.run([str(arg) for arg in argv], cwd=cwd, capture_output=True, check=False)
    if done.returncode:
        tail = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise Missing(f"`{Path(str(argv[0])).name}` ended with {done.returncode}: {tail}")
    return time.perf_counter() - start


def _files(folder: Path, old: bytes, new: bytes) -> tuple[Path, Path]:
    (folder / "old").write_bytes(old)
    (folder / "new").write_bytes(new)
    return folder / "old", folder / "new"


def xdelta(old: bytes, new: bytes) -> Moved:
    tool = _tool("xdelta3", "apt-get install xdelta3")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        a, b = _files(folder, old, new)
        window = max(1 << 19, 1 << len(old).bit_length())
        made = _run(tool, "-9", "-S", "lzma", "-B", window, "-e", "-s", a, b, folder / "delta")
        applied = _run(tool, "-B", window, "-d", "-s", a, folder / "delta", folder / "back")
        assert (folder / "back").read_bytes() == new
        return Moved((folder / "delta").stat().st_size, made, applied)


def ostree(old: bytes, new: bytes) -> Moved:
    tool = _tool("ostree", "apt-get install ostree")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repo = f"--repo={folder / 'repo'}"
        _run(tool, repo, "init", "--mode=archive")
        commits = []
        for data in (old, new):
            tree = folder / "tree"
            tree.mkdir(exist_ok=True)
            (tree / "fn").unlink(missing_ok=True)
            (tree / "fn").write_bytes(data)
            argv = [tool, repo, "commit", "-b", "fn", "-s", "fn", "--timestamp=@1", str(tree)]
            done = subprocess.run(argv, capture_output=True, check=True, text=True)
            commits.append(done.stdout.strip())
        delta = folder / "delta"
        options = ["--inline", "--min-fallback-size=0", "--max-chunk-size=1024"]
        made = _run(
            tool, repo, "static-delta", "generate", *options,
            f"--filename={delta}", f"--from={commits[0]}", f"--to={commits[1]}",
        )  # fmt: skip
        other = f"--repo={folder / 'other'}"
        _run(tool, other, "init", "--mode=bare-user-only")
        _run(tool, other, "pull-local", folder / "repo", commits[0])
        applied = _run(tool, other, "static-delta", "apply-offline", delta)
        return Moved(delta.stat().st_size, made, applied)


def desync(old: bytes, new: bytes) -> Moved:
    """Average 8 KiB, its index included."""
    tool = _tool("desync", "its Go module's checksum could not be looked up")
    return _store(lambda store, index, file: _run(
        tool, "make", "-n", 1, "-s", store, "-m", "2:8:32", index, file
    ), old, new)  # fmt: skip


def casync(old: bytes, new: bytes) -> Moved:
    """Average 8 KiB, its index included."""
    tool = _tool("casync", "apt-get install casync")
    return _store(lambda store, index, file: _run(
        tool, "make", f"--store={store}", "--chunk-size=8192", index, file
    ), old, new)  # fmt: skip


def _store(make: Callable[[Path, Path, Path], float], old: bytes, new: bytes) -> Moved:
    """Chunk files that `new` adds to a store which holds `old`, and the index of `new`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = folder / "store"
        store.mkdir()
        a, b = _files(folder, old, new)
        make(store, folder / "old.caibx", a)
        held = {path.name for path in store.rglob("*.cacnk")}
        made = make(store, folder / "new.caibx", b)
        missing = [p.stat().st_size for p in store.rglob("*.cacnk") if p.name not in held]
        return Moved(sum(missing) + (folder / "new.caibx").stat().st_size, made)


PEERS: dict[str, Peer] = {
    "whole, gzip -6": whole_gzip,
    "whole, zstd -19": whole_zstd,
    "FastCDC 4 KiB, raw bytes": chunks_4k,
    "FastCDC 1 KiB, raw bytes": chunks_1k,
    "desync 2:8:32": desync,
    "casync 8K": casync,
    "xdelta3 -9 -S lzma": xdelta,
    "zstd -19 --patch-from": zstd_patch,
    "ostree static-delta": ostree,
    "bsdiff4": bsdiff,
    "hdiffpatch": hdiff,
}
QUICK = ["whole, zstd -19", "FastCDC 1 KiB, raw bytes", "zstd -19 --patch-from", "hdiffpatch"]
RELEASE = ["ostree static-delta", "bsdiff4", "hdiffpatch"]


def measure(name: str, old: bytes, new: bytes) -> dict[str, object]:
    """What `name` moves, from the cache if it did this pair before; or why it is missing."""
    key = hashlib.sha256(name.encode())
    for data in (old, new):
        key.update(hashlib.sha256(data).digest())
    path = WORK / "peers" / f"{key.hexdigest()[:32]}.json"
    if path.exists():
        cached: dict[str, object] = json.loads(path.read_text())
        return cached
    try:
        found: dict[str, object] = asdict(PEERS[name](old, new))
    except Missing as exc:
        return {"missing": str(exc)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return found
