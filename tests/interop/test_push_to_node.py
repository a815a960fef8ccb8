"""A real function from the sources to a node that watches: build, push, serve, agent.

The update is made by `push` before the tag moves, so no server makes anything while a node waits.
"""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import AgentProcess, stopped_at_end
from commands import layerkit, serving
from registry_servers import find_tool, free_port, running, write_config

from layerkit.edges.layout import Layout
from layerkit.formats.reference import Reference

pytestmark = [pytest.mark.slow, pytest.mark.go]
HELLO = Path(__file__).parent.parent.parent / "examples" / "hello"
REF = "hello:prod"


@pytest.fixture(params=["registry", "layout"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "layout":
        yield str(tmp_path / "served")
        return
    port, folder = free_port(), tmp_path / "registry"
    folder.mkdir()
    argv = [find_tool("registry"), "serve", str(write_config(folder, port))]
    with running(argv, port, folder):
        yield f"http://127.0.0.1:{port}"


def build(folder: Path, layout: Path, greeting: str) -> str:
    text = (HELLO / "main.go").read_text()
    (folder / "main.go").write_text(text.replace("hello from layerkit", greeting))
    layerkit("build", folder, "-t", REF, "-o", layout)
    return str(Layout(layout).resolve(Reference.parse(REF)).digest)


def test_an_edit_reaches_a_node_by_the_update_that_push_made(
    storage: str, go_toolchain: Path, tmp_path: Path
) -> None:
    shutil.copytree(HELLO, tmp_path / "src")
    layout = tmp_path / "layout"
    build(tmp_path / "src", layout, "one")
    layerkit("push", REF, "--from", layout, "--to", storage)
    options = ["--cache", tmp_path / "cache", "--workers", "2", "--prepare", "0"]
    if storage.startswith("http"):
        options += ["--repository", "hello"]
    with serving(storage, *options) as (url, _):
        argv = ["--server", url, "--watch", REF, "--rootfs", tmp_path / "root"]
        with stopped_at_end(AgentProcess(tmp_path, *argv)) as agent:
            agent.start()
            agent.wait_for(REF, Layout(layout).resolve(Reference.parse(REF)).digest)
            new = build(tmp_path / "src", layout, "two")
            said = json.loads(layerkit("push", REF, "--from", layout, "--to", storage, "--json"))
            assert said["update_count"] == 1 and said["update_size"] < 8000
            agent.wait_for(REF, new)
            metrics = urllib.request.urlopen(f"{url}/metrics").read().decode()
        versions = [path for path in (tmp_path / "root/hello").iterdir() if not path.is_symlink()]
        assert os.readlink(tmp_path / "root/hello/current") in {path.name for path in versions}
    assert 'layerkit_cache_requests_total{result="hit",what="stored"} 1.0' in metrics, metrics
