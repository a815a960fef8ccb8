"""Go programs for tests, built once and kept by the digest of what went into them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
KEPT = ROOT / ".pytest_cache" / "go-builds"
NEEDS_GO = (1, 24)
BUILD_TIMEOUT = 600.0  # seconds: a release that was never used compiles its library first

STRIPPED = "-s -w -buildid="
SYMBOLS_ONLY = "-w -buildid="
UNSTRIPPED = "-buildid="

SMALL = {
    "go.mod": "module example.com/small\n\ngo 1.20\n",
    "main.go": (
        'package main\n\nimport "os"\n\ntype greeter struct{ name string }\n\n'
        'func (g greeter) greet() string { return "hello, " + g.name }\n\n'
        "func main() {\n\tvar g interface{ greet() string } = greeter{os.Args[0]}\n"
        "\tdefer func() { recover() }()\n\tprintln(g.greet())\n}\n"
    ),
}


def find_go() -> Path:
    """A Go new enough: on PATH, or beside the interpreter. Skips, and says why, without one."""
    beside = Path(sys.executable).parent / "go"
    for found in (shutil.which("go"), str(beside) if beside.exists() else None):
        if found is None:
            continue
        said = subprocess.run(
            [found, "version"], capture_output=True, text=True, check=False
        ).stdout
        release = re.search(r"\bgo(\d+)\.(\d+)", said)
        if release and (int(release[1]), int(release[2])) >= NEEDS_GO:
            return Path(found)
    pytest.skip(f"no Go {NEEDS_GO[0]}.{NEEDS_GO[1]} or newer on PATH or in .venv")


def sources_of(folder: Path) -> dict[str, str]:
    """The files of a program, by name."""
    return {
        p.name: p.read_text()
        for p in sorted(folder.iterdir())
        if p.suffix in (".go", ".mod", ".sum")
    }


def _environment(release: str, arch: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("GO", "CGO"))}
    keep = ("GOPROXY", "GOSUMDB", "GOMODCACHE", "GOCACHE", "GOPATH", "GONOSUMDB", "GOINSECURE")
    env |= {k: os.environ[k] for k in keep if k in os.environ}
    return env | {
        "CGO_ENABLED": "0", "GOOS": "linux", "GOARCH": arch, "GOFLAGS": "",
        "GOTOOLCHAIN": release or "local",
    }  # fmt: skip


def cached_releases(go: Path) -> list[str]:
    """Other releases of Go that are on this machine already, the newest last."""
    cache = subprocess.run([go, "env", "GOMODCACHE"], capture_output=True, text=True, check=True)
    folder = Path(cache.stdout.strip()) / "golang.org"
    names = [
        p.name.split("-")[1].removesuffix(".linux")
        for p in folder.glob("toolchain@v0.0.1-go*.linux-amd64")
    ]
    return sorted((n for n in names if _numbers(n)), key=_numbers)


def _numbers(release: str) -> list[int]:
    """1, 26, 8 of go1.26.8; nothing of a release candidate."""
    parts = release.removeprefix("go").split(".")
    return [int(part) for part in parts] if all(part.isdigit() for part in parts) else []


LAST_PATCH = {20: 14, 21: 13, 22: 12, 23: 12, 24: 9, 25: 4, 26: 0, 27: 1}


def release_of(go: Path, minor: int) -> str:
    """A release go1.MINOR: this one, one that is here already, or one that can be fetched."""
    here = [r for r in (*cached_releases(go), local_release(go)) if _numbers(r)[1:2] == [minor]]
    return here[-1] if here else f"go1.{minor}.{LAST_PATCH[minor]}"


def local_release(go: Path) -> str:
    """What `go version` says, such as go1.26.8."""
    said = subprocess.run(
        [go, "env", "GOVERSION"], capture_output=True, text=True, check=True,
        env=_environment("", "amd64"),
    )  # fmt: skip
    return said.stdout.strip()


def build_go(
    go: Path,
    sources: dict[str, str],
    ldflags: str = STRIPPED,
    *,
    release: str = "",
    arch: str = "amd64",
    flags: Sequence[str] = ("-trimpath",),
    settings: Mapping[str, str] | None = None,
    needs_modules: bool = False,
) -> bytes:
    """The binary; `settings` such as GOAMD64. Skips the test when the release cannot be had, or
    modules of others, if it `needs_modules`."""
    argv = [str(go), "build", *flags, "-buildvcs=false", f"-ldflags={ldflags}"]
    extra = dict(settings or {})
    what = repr((sorted(sources.items()), argv[1:], release or local_release(go), arch))
    what += repr(sorted(extra.items())) if extra else ""
    kept = KEPT / hashlib.sha256(what.encode()).hexdigest()
    if kept.exists():
        return kept.read_bytes()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "function"
        folder.mkdir()
        for path, text in sources.items():
            (folder / path).write_text(text)
        done = subprocess.run(
            [*argv, "-o", f"{name}/binary", "."], cwd=folder, capture_output=True, text=True,
            env=_environment(release, arch) | extra, timeout=BUILD_TIMEOUT,
        )  # fmt: skip
        if done.returncode and release and "toolchain" in done.stderr:
            pytest.skip(f"no {release} here: {done.stderr.strip()[-200:]}")
        if done.returncode and needs_modules:
            pytest.skip(f"modules cannot be had: {done.stderr.strip()[-200:]}")
        assert done.returncode == 0, done.stderr
        binary = (Path(name) / "binary").read_bytes()
    KEPT.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(f".{os.getpid()}")
    part.write_bytes(binary)
    part.rename(kept)
    return binary
