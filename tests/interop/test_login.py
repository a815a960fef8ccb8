"""Ordinary tools log in at a server with a token as password, and pull: crane, skopeo, docker."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import hello_files, noise, publish_image
from docker_engine import Engine

from layerkit.edges.disk import Disk
from layerkit.edges.http import Limits, RunningServer, make_server_app, start_server
from layerkit.edges.http.gate import Gate
from layerkit.edges.http.metrics import Metrics
from layerkit.edges.tokens import TokenFile, add_token
from layerkit.jobs.serve import open_layout


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


@pytest.fixture
def token(tokens: Path) -> str:
    return add_token(tokens, "team", ["team/*"], [], day="", disk=Disk())


@pytest.fixture
def server(tmp_path: Path, tokens: Path, token: str) -> Iterator[RunningServer]:
    publish_image(tmp_path / "layout", "team/hello:v1", hello_files(noise(30_000)))
    publish_image(tmp_path / "layout", "secret:v1", hello_files(noise(30_000)))
    source = open_layout(tmp_path / "layout")
    gate = Gate(TokenFile(tokens))
    with start_server(
        make_server_app(source, metrics=Metrics(), gate=gate, limits=Limits())
    ) as running:
        yield running


def run(*argv: str, home: Path, ok: bool = True) -> str:
    environment = {"HOME": str(home), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode == 0) == ok, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def find(name: str) -> str:
    return shutil.which(name) or pytest.skip(f"no {name} on PATH")


def test_crane_logs_in_and_pulls(server: RunningServer, token: str, tmp_path: Path) -> None:
    crane, host = find("crane"), server.url.removeprefix("http://")
    run(crane, "manifest", f"{host}/team/hello:v1", home=tmp_path, ok=False)
    run(crane, "auth", "login", host, "-u", "x", "-p", token, home=tmp_path)
    assert run(crane, "ls", f"{host}/team/hello", home=tmp_path).strip() == "v1"
    run(crane, "pull", f"{host}/team/hello:v1", str(tmp_path / "image.tar"), home=tmp_path)
    hidden = run(crane, "manifest", f"{host}/secret:v1", home=tmp_path, ok=False)
    assert "NOT_FOUND" in hidden


def test_skopeo_logs_in_and_pulls(server: RunningServer, token: str, tmp_path: Path) -> None:
    skopeo, host = find("skopeo"), server.url.removeprefix("http://")
    known = ["--authfile", str(tmp_path / "auth.json"), "--tls-verify=false"]
    run(skopeo, "login", *known, "-u", "x", "-p", "wrong", host, home=tmp_path, ok=False)
    run(skopeo, "login", *known, "-u", "x", "-p", token, host, home=tmp_path)
    source, target = f"docker://{host}/team/hello:v1", f"dir:{tmp_path / 'image'}"
    authfile = ["--authfile", str(tmp_path / "auth.json"), "--src-tls-verify=false"]
    run(skopeo, "--insecure-policy", "copy", *authfile, source, target, home=tmp_path)
    assert (tmp_path / "image/manifest.json").is_file()


@pytest.mark.docker
def test_docker_logs_in_and_pulls(
    server: RunningServer, token: str, engine: Engine, tmp_path: Path
) -> None:
    docker, host = find("docker"), server.url.removeprefix("http://")
    command = [docker, "-H", f"unix://{engine.socket}"]
    run(*command, "pull", f"{host}/team/hello:v1", home=tmp_path, ok=False)
    run(*command, "login", "-u", "x", "-p", "wrong", host, home=tmp_path, ok=False)
    run(*command, "login", "-u", "x", "-p", token, host, home=tmp_path)
    run(*command, "pull", f"{host}/team/hello:v1", home=tmp_path)
    run(*command, "pull", f"{host}/secret:v1", home=tmp_path, ok=False)
