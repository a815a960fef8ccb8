"""`build --load` and `pull --load`: real engines have the image from an empty store, and run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from docker_engine import Engine

from layerkit.jobs.serve import start

pytestmark = [pytest.mark.docker, pytest.mark.go, pytest.mark.slow]
MAIN = 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("loaded") }\n'
NAMESPACE = "loading"


def layerkit(folder: Path, *argv: object) -> dict[str, object]:
    """The document that a command prints."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER")}
    done = subprocess.run(
        [sys.executable, "-m", "layerkit", *map(str, argv), "--json"],
        cwd=folder, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document: dict[str, object] = json.loads(done.stdout)
    return document


@pytest.fixture
def folder(go_toolchain: Path, tmp_path: Path) -> Path:
    (tmp_path / "go.mod").write_text("module example.com/says\n\ngo 1.24\n")
    (tmp_path / "main.go").write_text(MAIN)
    return tmp_path


def config_of(document: dict[str, object], layout: Path) -> str:
    digest = str(document["digest"]).removeprefix("sha256:")
    manifest = json.loads((layout / "blobs" / "sha256" / digest).read_text())
    return str(manifest["config"]["digest"])


@pytest.mark.parametrize("compression", ["gzip", "zstd", "tar"])
def test_docker_has_what_was_built(engine: Engine, folder: Path, compression: str) -> None:
    address = f"unix://{engine.socket}"
    ref = f"loaded:{compression}"
    built = layerkit(
        folder, "build", ".", "-t", ref, "-o", "layout", "--compression", compression,
        "--load", "--engine-address", address,
    )  # fmt: skip
    try:
        (image,) = json.loads(engine.docker("image", "inspect", ref))
        assert image["Id"] == config_of(built, folder / "layout")
        assert engine.docker("run", "--rm", "--network", "none", ref) == "loaded\n"
        loaded = built["loaded"]
        assert isinstance(loaded, dict)
        assert (loaded["config"], loaded["manifest"]) == (image["Id"], built["digest"])
        # docker's own image store forgets manifests; before 23 it has no zstd
        assert loaded["keeps_manifest"] is False
        assert loaded["unpacked"] is (compression == "zstd")
    finally:
        engine.docker("rmi", ref)


@pytest.mark.parametrize("kind", ["docker", "containerd"])
def test_engines_have_what_was_pulled(engine: Engine, folder: Path, kind: str) -> None:
    socket = engine.socket.parent / "exec" / "containerd" / "containerd.sock"
    built = layerkit(
        folder, "build", ".", "-t", "pulled:v1", "-o", "layout",
        "--platform", "linux/amd64,linux/arm64",
    )  # fmt: skip
    where = ["--engine-address", f"unix://{engine.socket}" if kind == "docker" else socket]
    if kind == "containerd":
        where += ["--namespace", NAMESPACE]
    with start(folder / "layout") as server:
        found = layerkit(
            folder, "pull", "pulled:v1", "--server", server.url, "--store", "store",
            "--platform", "linux/amd64", "--load", "--engine", kind, *where,
        )  # fmt: skip
    assert found["digest"] == built["digest"]
    loaded = found["loaded"]
    assert isinstance(loaded, dict)
    images = built["images"]
    assert isinstance(images, list)
    assert loaded["manifest"] == images[0]["digest"]
    assert loaded["platform"] == "linux/amd64"
    assert loaded["keeps_manifest"] is (kind == "containerd")
    if kind == "docker":
        assert engine.docker("run", "--rm", "--network", "none", "pulled:v1") == "loaded\n"
        engine.docker("rmi", "pulled:v1")
        return
    listed = subprocess.run(
        ["ctr", "-a", socket, "-n", NAMESPACE, "images", "list"], capture_output=True, text=True
    ).stdout
    assert "docker.io/library/pulled:v1" in listed
    assert str(loaded["manifest"]) in listed
    assert sorted(path.name for path in folder.iterdir()) == [
        "go.mod", "layout", "main.go", "store",
    ]  # fmt: skip
