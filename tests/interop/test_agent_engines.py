"""The agent hands what it pulled to real engines, also to one that was down; then it runs there."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import AgentProcess, eventually, stopped_at_end
from docker_engine import Engine

from layerkit.digest import Digest
from layerkit.edges.engine import Docker, Handed
from layerkit.edges.layout import Layout
from layerkit.errors import ToolError
from layerkit.formats.reference import Reference
from layerkit.jobs.build import build
from layerkit.jobs.serve import start

pytestmark = [pytest.mark.docker, pytest.mark.go]
MAIN = """package main

import "fmt"

func main() { fmt.Println("%s") }
"""
SAYS = Reference.parse("says:v1")


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return tmp_path / "layout"


def publish(layout: Path, says: str) -> tuple[str, str]:
    """Digests of the image and of its config, which is what Docker names it by."""
    folder = layout.parent / "says"
    folder.mkdir(exist_ok=True)
    (folder / "go.mod").write_text("module example.com/says\n\ngo 1.24\n")
    (folder / "main.go").write_text(MAIN % says)
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    build(folder, SAYS, layout_path=layout, env=env)
    opened = Layout(layout)
    top = opened.resolve(SAYS).digest
    return str(top), str(opened.read_manifest(top).config.digest)


@pytest.fixture
def address(engine: Engine) -> Iterator[str]:
    yield f"unix://{engine.socket}"
    subprocess.run(
        ["docker", "-H", f"unix://{engine.socket}", "rmi", "-f", "says:v1"],
        capture_output=True,
        check=False,
    )


@pytest.mark.slow
def test_docker_and_containerd_run_what_the_agent_pulled(
    go_toolchain: Path, engine: Engine, address: str, layout: Path, tmp_path: Path
) -> None:
    containerd = engine.socket.parent / "exec" / "containerd" / "containerd.sock"
    config = tmp_path / "agent.toml"
    first, first_config = publish(layout, "one")
    with start(layout) as server:
        config.write_text(
            f'servers = ["{server.url}"]\nwatch = ["says:v1"]\nload = ["docker", "containerd"]\n'
            f'docker = "unix://{tmp_path}/down.sock"\ncontainerd = "{containerd}"\n'
            f'containerd_namespace = "layerkit"\nrootfs = "{tmp_path}/root"\nkeep = 1\n'
        )
        with stopped_at_end(AgentProcess(tmp_path, "--config", config)) as agent:
            agent.start()
            found = agent.wait_for("says:v1", first)  # docker is down: the pull stands
            assert found["versions"][0]["engines"] == ["containerd"]
            engines = {one["kind"]: one for one in agent.ask("GET", "/v1/status")["engines"]}
            assert engines["docker"]["last_error"]["code"] == "TOOL_FAILED"
            assert engines["containerd"]["last_error"] is None

            (tmp_path / "down.sock").symlink_to(engine.socket)  # it comes up, and gets it
            eventually(lambda: "docker" in agent.name("says:v1")["versions"][0]["engines"], 40)
            assert engine.docker("run", "--rm", "--network", "none", "says:v1") == "one\n"
            (image,) = json.loads(engine.docker("image", "inspect", "says:v1"))
            assert image["Id"] == first_config

            second, second_config = publish(layout, "two")
            agent.wait_for("says:v1", second)
            assert engine.docker("run", "--rm", "--network", "none", "says:v1") == "two\n"
            eventually(lambda: len(agent.name("says:v1")["versions"]) == 1)
            listed = engine.docker("images", "-q", "--no-trunc", "-a").split()
            assert second_config in listed
            assert first_config not in listed  # what the agent does not keep, docker need not
            assert second in ctr(containerd, "images", "list")
            ran = ctr(containerd, "run", "--rm", "docker.io/library/says:v1", "agent-test")
            assert ran == "two\n"


def ctr(socket: Path, *argv: str) -> str:
    done = subprocess.run(
        ["ctr", "-a", str(socket), "-n", "layerkit", *argv],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_archive_that_docker_does_not_understand_is_an_error(
    go_toolchain: Path, address: str, layout: Path, tmp_path: Path
) -> None:
    top, config = map(Digest.parse, publish(layout, "three"))
    archive = tmp_path / "x.tar"
    subprocess.run(["tar", "-C", str(layout), "-cf", str(archive), "."], check=True)
    with pytest.raises(ToolError):
        Docker(address).load(archive, Handed(SAYS, config, top))
