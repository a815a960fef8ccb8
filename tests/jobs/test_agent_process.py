"""The agent as a real process beside a real server: versions come and go, it is killed and starts
again, it is asked on its socket."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import AgentProcess, eventually, stopped_at_end
from builders import hello_files, noise, publish_image
from registries import FakeRegistry

from layerkit.digest import Digest
from layerkit.edges.disk import TEMP_PREFIX, Disk
from layerkit.edges.http import RunningServer, TlsFiles, make_app, start_server
from layerkit.edges.layout import Layout
from layerkit.edges.store import Store
from layerkit.errors import NotFoundError, UsageError
from layerkit.formats.reference import Reference
from layerkit.jobs.serve import start
from layerkit.jobs.serve.source import open_layout

HELLO = "hello:latest"
BODY = noise(150_000)


def publish(layout: Path, number: int, ref: str = HELLO) -> Digest:
    return publish_image(layout, ref, hello_files(BODY + b"%d" % number)).digest


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    path = tmp_path / "layout"
    publish(path, 0)
    return path


@pytest.fixture
def server(layout: Path) -> Iterator[RunningServer]:
    with start(layout) as running:
        yield running


@pytest.fixture
def agent(tmp_path: Path, server: RunningServer) -> Iterator[AgentProcess]:
    options = ["--server", server.url, "--watch", "hello", "--rootfs", tmp_path / "root"]
    with stopped_at_end(AgentProcess(tmp_path, *options, "--keep", "2")) as made:
        yield made


def current(agent: AgentProcess, name: str = "hello") -> bytes:
    return (agent.root / name / "current" / "app" / "hello").read_bytes()


def left_behind(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(TEMP_PREFIX)]


def test_a_life(agent: AgentProcess, layout: Path) -> None:
    """One process for many facts: starting one takes a second."""
    agent.start()
    first = Layout(layout).resolve(Reference.parse(HELLO)).digest
    found = agent.wait_for(HELLO, first)
    assert (found["state"], found["watched"], found["last_error"]) == ("current", True, None)
    assert current(agent) == BODY + b"0"
    assert stat.S_IMODE(agent.socket.stat().st_mode) == 0o600

    digests = [first]
    for number in (1, 2):  # versions come; the last two stay
        digests.append(publish(layout, number))
        found = agent.wait_for(HELLO, digests[-1], 10)
        assert current(agent) == BODY + b"%d" % number
    assert found["moved_size"] < 20_000 < found["whole_size"]
    eventually(lambda: len(agent.name(HELLO)["versions"]) == 2)
    wanted = {"current", *(str(digest).replace(":", "-") for digest in digests[1:])}
    eventually(lambda: {path.name for path in (agent.root / "hello").iterdir()} == wanted)

    agent.post("/v1/pin", ref=f"hello@{digests[1]}")  # pinned stays beyond the last two
    for number in (3, 4):
        digests.append(publish(layout, number))
        agent.wait_for(HELLO, digests[-1], 10)
    eventually(lambda: len(agent.name(HELLO)["versions"]) == 3)
    assert (agent.root / "hello" / str(digests[1]).replace(":", "-")).is_dir()
    refs = {image["ref"] for image in agent.ask("GET", "/v1/images")["images"]}
    assert refs == {HELLO, *(f"{HELLO}@{digests[at]}" for at in (1, 3, 4))}

    other = publish(layout, 7, "team/other:v1")  # names come at run time, and stay over a restart
    agent.post("/v1/watch", ref="team/other:v1")
    agent.wait_for("team/other:v1", other)
    assert 'layerkit_agent_versions{name="team/other:v1"} 1.0' in agent.ask("GET", "/metrics")
    with pytest.raises(UsageError):
        agent.post("/v1/watch", ref="hello", more=1)
    with pytest.raises(UsageError):
        agent.post("/v1/pull", ref="Not A Name")
    with pytest.raises(NotFoundError):
        agent.ask("GET", "/v1/nothing")
    second = subprocess.run(agent.argv, capture_output=True, text=True, timeout=30)
    assert (second.returncode, "an agent runs on store" in second.stderr) == (7, True)

    agent.kill()
    eventually(lambda: not agent.answers() if agent.process.poll() is None else True)
    newest = publish(layout, 5)
    agent.start()  # the stale socket is replaced
    agent.wait_for(HELLO, newest)
    assert agent.name("team/other:v1")["watched"]
    agent.post("/v1/remove", ref="team/other:v1")
    assert not (agent.root / "team").exists()
    assert agent.name("team/other:v1") == {}
    assert agent.post("/v1/gc")["freed_size"] >= 0

    assert agent.stop() == 0
    assert not agent.socket.exists()
    assert left_behind(agent.folder) == []
    assert {"time", "level", "logger", "message"} <= agent.records()[0].keys()


@pytest.mark.slow
def test_once_pulls_all_and_tells_failures(agent: AgentProcess) -> None:
    done = subprocess.run([*agent.argv, "--once"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert current(agent) == BODY + b"0"
    argv = [*agent.argv, "--once", "--watch", "absent"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "1 of 2 names failed" in done.stderr) == (3, True)


@pytest.mark.slow
def test_memory_is_small_when_idle(agent: AgentProcess) -> None:
    """RSS of the agent itself, and the whole family with shared pages counted once."""
    agent.start()
    eventually(lambda: agent.name(HELLO).get("digest"))
    time.sleep(2)

    def read(pid: int, file: str, key: str) -> int:
        text = Path(f"/proc/{pid}/{file}").read_text()
        return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(key))

    assert read(agent.process.pid, "status", "VmRSS:") < 80 << 10
    family = [read(pid, "smaps_rollup", "Pss:") for pid in agent.process_ids()]
    assert len(family) == 3  # it, what its jobs fork from, a fork for the next job
    assert sum(family) < 80 << 10


@pytest.mark.slow
@pytest.mark.parametrize("whole_family", [False, True])
def test_killed_at_any_moment_it_ends_at_the_newest(
    agent: AgentProcess, layout: Path, whole_family: bool
) -> None:
    """`kill -9` in a loop while versions come: the link always leads to a whole tree."""
    dice = random.Random(1 + whole_family)
    agent.start()
    eventually(lambda: (agent.root / "hello" / "current").exists())
    number = 0
    for _ in range(25):
        number += 1
        publish(layout, number)
        end = time.monotonic() + dice.uniform(0.0, 0.6)
        while time.monotonic() < end:
            assert current(agent).startswith(BODY)
            time.sleep(0.005)
        for pid in agent.process_ids() if whole_family else [agent.process.pid]:
            with contextlib.suppress(ProcessLookupError):  # ended with the one before
                os.kill(pid, signal.SIGKILL)
        agent.process.wait()
        assert current(agent).startswith(BODY)
        agent.start()
    number += 1
    newest = publish(layout, number)
    agent.wait_for(HELLO, newest)
    assert current(agent) == BODY + b"%d" % number
    eventually(lambda: len(agent.name(HELLO)["versions"]) == 2)
    agent.post("/v1/gc")
    assert agent.stop() == 0
    assert left_behind(agent.folder) == []
    versions = [path.name for path in (agent.root / "hello").iterdir() if not path.is_symlink()]
    assert len(versions) == 2
    with Store(agent.store, Disk()) as store:
        assert store.verify().good
        assert len(store.list_images()) == 3  # the tag and two versions


@pytest.mark.slow
def test_one_that_cannot_be_pulled_stops_nobody(agent: AgentProcess, layout: Path) -> None:
    """A damaged image is told, tried again, and its mended version comes at once."""
    code = {"code": {"app/x": noise(90_000, 5)}}  # shares no blob with the good one
    bad = publish_image(layout, "broken:latest", code).digest
    for blob in Layout(layout).read_manifest(bad).layers:
        Layout(layout).blob_path(blob.digest).write_bytes(b"rot")
    artifact = Layout(layout).referrers(bad)[0]
    for blob in Layout(layout).read_manifest(artifact.digest).layers:
        Layout(layout).blob_path(blob.digest).write_bytes(b"rot")
    agent.options += ["--watch", "broken"]
    agent.start()
    eventually(lambda: agent.name(HELLO).get("digest"))
    found = eventually(lambda: agent.name("broken:latest").get("last_error"))
    assert found["code"]
    assert agent.name("broken:latest")["state"] in ("failing", "queued", "pulling")
    agent.wait_for(HELLO, publish(layout, 51), 10)
    agent.wait_for("broken:latest", publish(layout, 52, "broken:latest"), 20)


@pytest.mark.slow
def test_sighup_reads_the_configuration_again(
    tmp_path: Path, server: RunningServer, layout: Path
) -> None:
    publish(layout, 1, "other:v1")
    config = tmp_path / "agent.toml"
    text = f'servers = ["{server.url}"]\nrootfs = "{tmp_path}/root"\n'
    config.write_text(text + 'watch = ["hello"]\n')
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        stopped_at_end(AgentProcess(tmp_path, "--config", config)) as agent,
    ):
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        agent.start(NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="200000")
        told = {manager.recv(4096).decode().partition("\n")[0] for _ in range(4)}
        assert told == {"READY=1", "WATCHDOG=1"}
        agent.post("/v1/unwatch", ref="hello")
        config.write_text(text + 'watch = ["hello", "other:v1"]\n')
        agent.process.send_signal(signal.SIGHUP)
        eventually(lambda: agent.name("other:v1").get("digest"))
        assert not agent.name(HELLO)["watched"]  # what people said holds
        config.write_text("watch = 3\n")
        agent.process.send_signal(signal.SIGHUP)
        eventually(lambda: any("stays as it was" in one["message"] for one in agent.records()))
        assert agent.name("other:v1")["watched"]


@pytest.mark.slow
def test_another_server_takes_over(tmp_path: Path, layout: Path) -> None:
    argv = [sys.executable, "-m", "layerkit", "serve", str(layout), "--listen", "127.0.0.1:0"]
    with (
        subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as first,
        start(layout) as second,
    ):
        try:
            assert first.stdout is not None
            urls = first.stdout.readline().strip(), second.url
            servers = [word for url in urls for word in ("--server", url)]
            with stopped_at_end(AgentProcess(tmp_path, *servers, "--watch", "hello")) as agent:
                _fail_over(agent, first, layout, urls)
        finally:
            first.kill()


def _fail_over(
    agent: AgentProcess, first: subprocess.Popen[str], layout: Path, urls: tuple[str, str]
) -> None:
    agent.start()
    eventually(lambda: agent.name(HELLO).get("digest"))
    time.sleep(0.5)  # it waits at the first
    first.kill()
    agent.wait_for(HELLO, publish(layout, 1), 20)
    usable = {one["url"]: one["usable"] for one in agent.ask("GET", "/v1/status")["servers"]}
    assert usable == {urls[0]: False, urls[1]: True}


@pytest.mark.slow
def test_a_pull_is_stopped_by_sigterm(agent: AgentProcess, server: RunningServer) -> None:
    """A running pull is unwound, the agent ends with 0."""
    agent.start()
    os.kill(agent.process.pid, signal.SIGTERM)
    assert agent.process.wait(20) == 0
    assert left_behind(agent.folder) == []


def push(layout: Path, registry: FakeRegistry, digest: Digest) -> None:
    """What the layout has as hello:latest, into the registry."""
    opened = Layout(layout)
    raw = opened.read_blob(digest)
    manifest = opened.read_manifest(digest)
    blobs = registry.blobs.setdefault("hello", {})
    for item in (manifest.config, *manifest.layers):
        blobs[str(item.digest)] = opened.read_blob(item)
    entry = (manifest.media_type, raw)
    registry.manifests.setdefault("hello", {}).update({"latest": entry, str(digest): entry})


@pytest.mark.slow
def test_any_registry_will_do(tmp_path: Path, layout: Path) -> None:
    """No long poll, no chunks, no referrers: asked now and then, and pulled plainly."""
    registry = FakeRegistry(referrers_api=False)
    push(layout, registry, Layout(layout).resolve(Reference.parse(HELLO)).digest)
    config = tmp_path / "agent.toml"
    with registry.serving():
        config.write_text(
            f'servers = ["{registry.url}"]\nwatch = ["hello"]\npoll_seconds = 0.3\n'
            f'rootfs = "{tmp_path}/root"\n'
        )
        with stopped_at_end(AgentProcess(tmp_path, "--config", config)) as agent:
            agent.start()
            eventually(lambda: agent.name(HELLO).get("digest"))
            new = publish(layout, 1)
            push(layout, registry, new)
            agent.wait_for(HELLO, new)
            assert current(agent) == BODY + b"1"


@pytest.fixture
def certificate(tmp_path: Path) -> TlsFiles:
    """For 127.0.0.1, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    files = TlsFiles(tmp_path / "tls.crt", tmp_path / "tls.key")
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    argv += ["-nodes", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    argv += ["-keyout", str(files.key), "-out", str(files.cert)]
    subprocess.run(argv, check=True, capture_output=True)
    return files


@pytest.mark.slow
def test_over_tls_with_a_certificate_of_its_own(
    tmp_path: Path, layout: Path, certificate: TlsFiles
) -> None:
    """Polls and pulls show the certificate, and trust the authority that was named."""
    tls = TlsFiles(certificate.cert, certificate.key, certificate.cert)
    with start_server(make_app(open_layout(layout)), tls=tls) as server:
        options = ["--server", server.url, "--watch", "hello", "--ca", certificate.cert]
        own = ["--client-cert", certificate.cert, "--client-key", certificate.key]
        with stopped_at_end(AgentProcess(tmp_path, *options, *own)) as agent:
            agent.start()
            eventually(lambda: agent.name(HELLO).get("digest"))
            time.sleep(0.5)  # it waits for news
            agent.wait_for(HELLO, publish(layout, 1), 10)
        with stopped_at_end(AgentProcess(tmp_path / "stranger", *options)) as agent:
            agent.folder.mkdir()
            agent.start()
            found = eventually(lambda: agent.name(HELLO).get("last_error"))
            assert found["code"] == "REMOTE_FAILED"
