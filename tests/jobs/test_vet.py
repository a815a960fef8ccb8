"""`layerkit vet`: the passes over a real function."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from layerkit.errors import BuildError, NotFoundError, ToolError, UsageError
from layerkit.jobs.init import init
from layerkit.jobs.vet import ANALYZERS, vet

ILL = """package main

import (
\t"context"
\t"net/http"
\t"sync"
\t"time"
)

var mu sync.Mutex

func ill(ctx context.Context, work chan int) {
\t<-work
\t_, _ = http.Get("http://example.com")
\tuse(context.Background())
\tgo func() {
\t\tfor {
\t\t\ttime.Sleep(time.Second)
\t\t}
\t}()
\tmu.Lock()
\tdefer mu.Unlock()
\ttime.Sleep(time.Second)
\t//layerkit:allow lockcall the test's own
\ttime.Sleep(time.Second)
}

func use(context.Context) {}
"""


def test_unknown_analyzers_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not known"):
        vet(tmp_path, env={}, cache=tmp_path, only=["nope"])
    with pytest.raises(UsageError, match="no analyzer is left"):
        vet(tmp_path, env={}, cache=tmp_path, skip=ANALYZERS)


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        vet(tmp_path / "x", env=os.environ, cache=tmp_path)


@pytest.mark.go
def test_without_the_network_it_says_what_is_needed(go_toolchain: Path, tmp_path: Path) -> None:
    init(tmp_path / "fn")
    env = dict(os.environ) | {"GOPROXY": "off", "GOMODCACHE": str(tmp_path / "mod")}
    env |= {"GOCACHE": str(tmp_path / "go"), "GOFLAGS": "-modcacherw"}
    with pytest.raises(ToolError, match="cannot be built") as caught:
        vet(tmp_path / "fn", env=env, cache=tmp_path / "cache")
    assert "GOPROXY" in str(caught.value.hint)
    assert not (tmp_path / "cache").exists()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.go
@pytest.mark.slow  # golang.org/x/tools is fetched and compiled
def test_each_pass_finds_its_own(go_toolchain: Path, tmp_path: Path, cache: Path) -> None:
    init(tmp_path / "fn")
    assert vet(tmp_path / "fn", env=os.environ, cache=cache).findings == ()
    (tmp_path / "fn" / "ill.go").write_text(ILL)
    found = vet(tmp_path / "fn", env=os.environ, cache=cache).findings
    assert [(one.file, one.line, one.analyzer) for one in found] == [
        ("ill.go", 13, "ctxblock"),
        ("ill.go", 14, "ctxcall"),
        ("ill.go", 15, "ctxdrop"),
        ("ill.go", 16, "ctxgo"),
        ("ill.go", 23, "lockcall"),
    ]
    (one,) = vet(tmp_path / "fn", env=os.environ, cache=cache, only=["ctxdrop"]).findings
    assert one.analyzer == "ctxdrop"


@pytest.mark.go
@pytest.mark.slow
def test_what_does_not_compile_is_an_error(go_toolchain: Path, tmp_path: Path, cache: Path) -> None:
    init(tmp_path / "fn")
    (tmp_path / "fn" / "bad.go").write_text("package main\n\nfunc x() { y }\n")
    with pytest.raises(BuildError, match="undefined: y"):
        vet(tmp_path / "fn", env=os.environ, cache=cache)


@pytest.mark.go
@pytest.mark.slow
def test_the_passes_pass_their_own_tests(go_toolchain: Path) -> None:
    folder = Path(__file__).parent.parent.parent / "go-vet"
    env = dict(os.environ) | {"GOFLAGS": "", "CGO_ENABLED": "0"}
    subprocess.run([go_toolchain, "test", "./..."], cwd=folder, env=env, check=True, timeout=600)
