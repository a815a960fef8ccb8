"""A real registry tells an agent of a push: it is there long before the agent would have asked."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from agents import AgentProcess, stopped_at_end
from builders import hello_files, noise, publish_image
from commands import layerkit
from registry_servers import COLLECTS, NOTIFICATIONS, find_tool, free_port, running, write_config

from layerkit.digest import Digest

pytestmark = pytest.mark.slow
SECRET = "a-secret-for-the-registry"
POLL = "3600"
BODY = noise(60_000)


def push(folder: Path, ref: str, number: int) -> Digest:
    top = publish_image(folder / "layout", ref, hello_files(BODY + b"%d" % number))
    layerkit("push", ref, "--from", folder / "layout")
    return top.digest


@pytest.mark.parametrize("kind", COLLECTS)  # events.v1, events.v2
def test_a_push_wakes_the_agent(kind: str, tmp_path: Path) -> None:
    port, news_port, folder = free_port(), free_port(), tmp_path / "registry"
    folder.mkdir()
    secret = tmp_path / "secret"
    secret.write_text(SECRET + "\n")
    notify = NOTIFICATIONS.format(port=news_port, secret=SECRET)
    config, ref = write_config(folder, port, auth=notify), f"127.0.0.1:{port}/team/fn:latest"
    options = ["--watch", ref, "--poll", POLL, "--events", f"127.0.0.1:{news_port}"]
    options += ["--events-secret-file", str(secret), "--rootfs", str(tmp_path / "root")]
    with (
        running([find_tool(kind), "serve", str(config)], port, folder),
        stopped_at_end(AgentProcess(tmp_path, *options)) as agent,
    ):
        first = push(tmp_path, ref, 1)
        agent.start()
        agent.wait_for(ref, first)
        for number in (2, 3):
            started = time.monotonic()
            found = agent.wait_for(ref, push(tmp_path, ref, number))
            assert time.monotonic() - started < 30
            assert found["moved_size"] < 3000  # by the update that the push made
        assert agent.stop() == 0
