"""A docker engine over TCP that asks for a certificate: found and spoken to as docker's command
does it, by variables and by a context."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from builders import hello_files, publish_image
from commands import layerkit
from docker_engine import Engine

from layerkit.edges.engine import open_engine
from layerkit.edges.layout import Layout
from layerkit.edges.loading import ImageLoader
from layerkit.edges.tools import Tools
from layerkit.formats.oci import parse_platform
from layerkit.formats.reference import Reference

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.usefixtures("emptied")]
REF = "overtls:v1"


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    publish_image(tmp_path / "layout", REF, hello_files(b"#!/bin/sh\n"))
    return tmp_path / "layout"


def context(home: Path, engine: Engine, name: str) -> None:
    """As `docker context create` writes it."""
    key = hashlib.sha256(name.encode()).hexdigest()
    docker = {"Host": engine.tls_address, "SkipTLSVerify": False}
    meta = {"Name": name, "Metadata": {}, "Endpoints": {"docker": docker}}
    at = home / ".docker" / "contexts"
    (at / "meta" / key).mkdir(parents=True)
    (at / "meta" / key / "meta.json").write_text(json.dumps(meta))
    (at / "tls" / key / "docker").mkdir(parents=True)
    for file in ("ca.pem", "cert.pem", "key.pem"):
        shutil.copy(engine.keys / file, at / "tls" / key / "docker" / file)


def say(home: Path, document: dict[str, str]) -> None:
    (home / ".docker").mkdir(exist_ok=True)
    (home / ".docker" / "config.json").write_text(json.dumps(document))


@pytest.fixture(params=["variables", "current context", "named context"])
def environment(request: pytest.FixtureRequest, engine: Engine, tmp_path: Path) -> dict[str, str]:
    """What makes docker's command use the engine, in the three ways that it knows."""
    home = tmp_path / "home"
    home.mkdir()
    if request.param == "variables":
        return {
            "HOME": str(home),
            "DOCKER_HOST": engine.tls_address,
            "DOCKER_TLS_VERIFY": "1",
            "DOCKER_CERT_PATH": str(engine.keys),
        }
    context(home, engine, "far")
    say(home, {"currentContext": "far"} if request.param == "current context" else {})
    named = {"DOCKER_CONTEXT": "far"} if request.param == "named context" else {}
    return {"HOME": str(home), **named}


def test_the_engine_is_loaded_and_read(
    engine: Engine, layout: Path, environment: dict[str, str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ref = Reference.parse(REF)
    loader = ImageLoader(Layout(layout), ref, parse_platform("linux/amd64"), tmp_path)
    loader.load(open_engine("docker", Tools(os.environ)))
    (image,) = json.loads(engine.docker("image", "inspect", REF))
    assert image["RepoTags"] == [REF]
    said = layerkit("split", f"docker-daemon:{REF}", "-t", "overtls:cut", "-o", tmp_path / "cut")
    assert said.startswith("overtls@sha256:")


def test_without_keys_it_is_an_error(engine: Engine, tmp_path: Path) -> None:
    facts = {"HOME": str(tmp_path), "DOCKER_HOST": engine.tls_address}
    argv = ("split", f"docker-daemon:{REF}", "-t", "overtls:cut", "-o", tmp_path / "cut")
    layerkit(*argv, status=8, **facts)
    layerkit(*argv, status=8, DOCKER_TLS_VERIFY="1", **facts)
    missing = layerkit(*argv, status=2, HOME=str(tmp_path), DOCKER_CONTEXT="nowhere")
    assert "docker has no context nowhere" in missing
