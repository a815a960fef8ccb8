"""What people ask of an agent that runs, verb by verb (its failures: agent.txt). Issue 5."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest
from agents import AgentProcess, eventually, stopped_at_end
from builders import hello_files, noise, publish_image

from layerkit.cli import run
from layerkit.jobs.serve import start

HELLO = "hello:latest"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    folder = tmp_path_factory.mktemp("agent")
    publish_image(folder / "layout", HELLO, hello_files(noise(5000)))
    publish_image(folder / "layout", "team/other:v1", hello_files(noise(6000)))
    with start(folder / "layout") as server:
        made = AgentProcess(folder, "--server", server.url, "--watch", "hello")
        with stopped_at_end(made):
            made.start()
            eventually(lambda: made.name(HELLO).get("state") == "current")
            yield made


def layerkit(agent: AgentProcess, capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Standard output of a verb that ends well."""
    assert threading.current_thread() is threading.main_thread()  # run() sets a signal handler
    status = run(["agent", *argv, "--socket", str(agent.socket)])
    said = capsys.readouterr()
    assert status == 0, said.err
    return said.out


def test_verbs(agent: AgentProcess, capsys: pytest.CaptureFixture[str]) -> None:
    def say(*argv: str) -> str:
        return layerkit(agent, capsys, *argv)

    digest = agent.name(HELLO)["digest"]
    shown = say("status")
    assert "good" in shown and HELLO in shown and "current" in shown
    document = json.loads(say("status", "--json"))
    assert document["names"][0]["digest"] == digest
    assert say("pull", "hello") == f"hello@{digest}\n"
    other = say("pull", "team/other:v1")
    assert other.startswith("team/other@sha256:")
    assert say("pull", "team/other:v1", "--no-wait") == other
    assert say("watch", "team/other:v1") == "team/other:v1\n"
    assert say("unwatch", "team/other:v1") == "team/other:v1\n"
    assert say("pin", "hello") == f"{HELLO}\n"
    assert json.loads(say("unpin", f"hello@{digest}", "--json"))["versions"][0]["pinned"] is False
    assert f"{digest}  {HELLO}\n" in say("list")
    assert say("gc", "--dry-run").startswith("would drop 0 chunks")
    assert say("remove", "team/other:v1") == "team/other:v1\n"
    assert say("gc").startswith("dropped ")
    assert f'layerkit_agent_versions{{name="{HELLO}"}} 1.0' in say("metrics")


def test_what_the_agent_refuses_has_the_status_of_its_class(
    agent: AgentProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    for argv, status in (
        (("pull", "absent"), 4),
        (("pin", "absent"), 4),
        (("watch", "NOT A NAME"), 2),
        (("remove", f"hello@{agent.name(HELLO)['digest']}"), 2),
    ):
        assert run(["agent", *argv, "--socket", str(agent.socket)]) == status, argv
    assert "is current" in capsys.readouterr().err
