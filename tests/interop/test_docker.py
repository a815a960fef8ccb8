"""Debian's docker loads what we build, from an empty store, and runs it."""

from __future__ import annotations

import json
import os
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from docker_engine import Engine

from layerkit.edges.layout import Layout, write_docker_archive
from layerkit.formats.oci import Platform
from layerkit.formats.reference import Reference
from layerkit.jobs.build import BuildResult, build

pytestmark = [pytest.mark.docker, pytest.mark.go]
HELLO = Path(__file__).parent.parent.parent / "examples" / "hello"
REF = Reference.parse("hello:v1")
AMD64 = Platform("linux", "amd64")


@pytest.fixture(scope="module")
def loaded(engine: Engine, go_toolchain: Path, tmp_path_factory: pytest.TempPathFactory):
    """(engine, result): examples/hello, built and loaded."""
    folder = tmp_path_factory.mktemp("docker")
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    result = build(HELLO, REF, layout_path=folder / "layout", env=env)
    write_docker_archive(Layout(folder / "layout"), REF, folder / "hello.tar", AMD64)
    assert engine.docker("images", "-q") == "", "the store must be empty"
    said = engine.docker("load", "-i", folder / "hello.tar")
    assert "Loaded image: hello:v1" in said
    return engine, result


def test_docker_has_the_same_config_and_layers(loaded: tuple[Engine, BuildResult]) -> None:
    engine, result = loaded
    (found,) = json.loads(engine.docker("image", "inspect", "hello:v1"))
    assert found["RootFS"]["Layers"] == [str(layer.diff_id) for layer in result.images[0].layers]
    assert found["Config"]["User"] == "65532:65532"
    assert found["Config"]["Labels"]["dev.layerkit.go"] == result.go


def test_the_function_answers(loaded: tuple[Engine, BuildResult]) -> None:
    engine, _ = loaded
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run = ["run", "-d", "--network", "host", "-m", "64m", "--memory-swap", "64m"]
    name = engine.docker(
        *run, "-e", f"PORT={port}", "-e", "HOST=127.0.0.1", "--read-only", "hello:v1"
    ).strip()
    try:
        answer = fetch(f"http://127.0.0.1:{port}/?name=docker", engine, name)
        assert (answer["message"], answer["name"]) == ("hello from layerkit", "docker")
        engine.docker("stop", "-t", "10", name)
        (found,) = json.loads(engine.docker("inspect", name))
        assert found["State"]["ExitCode"] == 0, "SIGTERM drains and ends with 0"
    finally:
        engine.docker("rm", "-f", name)


def fetch(url: str, engine: Engine, name: str) -> dict[str, str]:
    deadline = time.monotonic() + 15
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return dict(json.load(answer))
        except (urllib.error.URLError, ConnectionError):
            if time.monotonic() > deadline:
                pytest.fail(engine.docker("logs", name))
            time.sleep(0.05)
