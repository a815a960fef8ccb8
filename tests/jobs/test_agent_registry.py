"""An agent without a chunk server: it watches tags of registries and pulls through them."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from agents import AgentProcess, stopped_at_end
from builders import Silent, hello_files, noise, publish_image
from registries import FakeRegistry

from layerkit.digest import Digest
from layerkit.edges.layout import Layout
from layerkit.edges.polling import Answer, Poller, Question
from layerkit.edges.registry import Registry, Transport
from layerkit.edges.storage.targets import RegistryTarget
from layerkit.errors import BusyError, UnauthorizedError, UsageError
from layerkit.formats.reference import Reference
from layerkit.jobs.agent.settings import Server, load_settings
from layerkit.jobs.publish import publish

BODY = noise(60_000)
LOGIN = "user:secret"


pytestmark = pytest.mark.usefixtures("no_settling")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry().serving() as running:
        yield running


def push(folder: Path, fake: FakeRegistry, number: int) -> Digest:
    ref = Reference.parse(f"{fake.host}/fn:latest")
    top = publish_image(folder / "layout", str(ref), hello_files(BODY + b"%d" % number))
    transport = Transport(fake.host, plain_http=True, config=folder / "docker/config.json")
    publish(Layout(folder / "layout"), ref, RegistryTarget(Registry(transport)), Silent())
    return top.digest


def log_in(folder: Path, fake: FakeRegistry, login: str = LOGIN) -> None:
    auth = base64.b64encode(login.encode()).decode()
    (folder / "docker").mkdir(exist_ok=True)
    config = {"auths": {fake.host: {"auth": auth}}}
    (folder / "docker/config.json").write_text(json.dumps(config))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["open", "basic", "token"])
def test_a_tag_is_followed_and_updates_are_small(
    fake: FakeRegistry, tmp_path: Path, kind: str
) -> None:
    fake.login = "" if kind == "open" else LOGIN
    fake.realm = f"{fake.url}/token" if kind == "token" else ""
    log_in(tmp_path, fake)
    first, ref = push(tmp_path, fake, 1), f"{fake.host}/fn:latest"
    options = ["--watch", ref, "--poll", "0.1", "--rootfs", tmp_path / "root"]
    with stopped_at_end(AgentProcess(tmp_path, *options)) as agent:
        agent.start(DOCKER_CONFIG=str(tmp_path / "docker"))
        agent.wait_for(ref, first)
        second = push(tmp_path, fake, 2)
        found = agent.wait_for(ref, second)
        places = agent.ask("GET", "/v1/status")["servers"]
        count = len(fake.paths("GET", "/token"))
        time.sleep(0.35)
        assert len(fake.paths("GET", "/token")) == count  # what was let in is shown again
        assert agent.stop() == 0
    assert found["moved_size"] < 0.1 * found["whole_size"]
    assert (Path(found["path"]) / "app/hello").read_bytes() == BODY + b"2"
    assert places == [{"url": fake.url, "usable": True}]
    assert not fake.paths("GET", "/v1/")


@pytest.mark.slow  # a process, and waits in which nothing may happen
def test_a_told_push_is_asked_after_at_once(fake: FakeRegistry, tmp_path: Path) -> None:
    """And nothing of it is believed but the name: an untold or wrongly told one is not asked."""
    first, ref = push(tmp_path, fake, 1), f"{fake.host}/fn:latest"
    port = free_port()
    options = ["--watch", ref, "--poll", "3600", "--rootfs", tmp_path / "root"]
    with stopped_at_end(AgentProcess(tmp_path, *options, "--events", f"127.0.0.1:{port}")) as agent:
        agent.start()
        agent.wait_for(ref, first)
        second = push(tmp_path, fake, 2)
        looks = len(fake.paths("HEAD"))
        for name, tag, count in (("other", "latest", 0), ("fn", "v2", 0), ("fn", "latest", 1)):
            target = {"repository": name, "tag": tag, "digest": str(first), "url": "http://other"}
            body = json.dumps({"events": [{"action": "push", "target": target}]})
            answer = urllib3.request("POST", f"http://127.0.0.1:{port}/events", body=body)
            assert answer.json() == {"woken_count": count}
            time.sleep(0.3)
            assert (len(fake.paths("HEAD")) > looks) is bool(count)
        agent.wait_for(ref, second)
        assert agent.stop() == 0


# --- asking --------------------------------------------------------------------------------------


def look(url: str, header: str = "", *have: Digest) -> Answer:
    async def main() -> Answer:
        poller = Poller(2)
        try:
            return await poller.look(url, header, Question("fn", "latest", have, "linux/amd64"))
        finally:
            await poller.close()

    return asyncio.run(main())


def test_a_look_shows_a_header(fake: FakeRegistry, tmp_path: Path) -> None:
    log_in(tmp_path, fake)
    top = push(tmp_path, fake, 1)
    fake.login = LOGIN
    with pytest.raises(UnauthorizedError):
        look(fake.url)
    header = f"Basic {base64.b64encode(LOGIN.encode()).decode()}"
    assert look(fake.url, header, top) == Answer(False, top)


@pytest.mark.parametrize("status", [429, 503])
def test_who_is_busy_says_for_how_long(fake: FakeRegistry, status: int) -> None:
    fake.faults.append(("HEAD", status, {"Retry-After": "17"}))
    with pytest.raises(BusyError) as caught:
        look(fake.url)
    assert caught.value.seconds == 17


def test_a_look_goes_through_the_proxy(
    fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = push(tmp_path, fake, 1)
    monkeypatch.setenv("http_proxy", fake.url)
    monkeypatch.setenv("no_proxy", "")
    fake.log.clear()
    assert look("http://registry.example", "", top) == Answer(False, top)
    assert fake.log[0][1].startswith("http://registry.example/v2/fn/")


# --- settings ------------------------------------------------------------------------------------


def test_names_of_registries_need_no_server(tmp_path: Path) -> None:
    found = load_settings({"watch": ("registry.example/fn",)}, tmp_path)
    assert (found.servers, found.watch) == ((), ("registry.example/fn:latest",))
    with pytest.raises(UsageError, match="names no registry"):
        load_settings({"watch": ("fn",)}, tmp_path)


def test_a_secret_of_events_is_long_and_not_shown(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef\n")
    options = {"watch": ("registry.example/fn",), "events": ":7431", "events_secret_file": secret}
    found = load_settings(options, tmp_path)
    assert (found.events, found.events_secret) == ("127.0.0.1:7431", "0123456789abcdef")
    assert "0123456789" not in repr(found)
    secret.write_text("short")
    with pytest.raises(UsageError, match="16 characters"):
        load_settings(options, tmp_path)
    with pytest.raises(UsageError, match="no setting"):
        load_settings({"watch": (), "events_secret": "x" * 20}, tmp_path)


def test_docker_hub_is_where_it_is() -> None:
    ref = Reference.parse("docker.io/nginx:latest")
    assert (ref.registry_url, ref.registry_name) == (
        "https://registry-1.docker.io",
        "library/nginx",
    )
    assert Server(ref.registry_url, is_registry=True).token == ""
