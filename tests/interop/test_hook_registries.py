"""The hook beside real registries: their notifications, images of other tools, kill -9, a cut."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pytest
import urllib3
from agents import AgentProcess, stopped_at_end
from registry_servers import COLLECTS, NOTIFICATIONS, find_tool, free_port, running, write_config

from layerkit.digest import Digest
from layerkit.edges.registry import Registry, Transport, list_referrers
from layerkit.errors import LayerkitError
from layerkit.formats import oci
from layerkit.formats.storedupdate import find_updates

pytestmark = [pytest.mark.slow, pytest.mark.go]  # each starts a registry and a hook
SECRET = "a-secret-for-the-registry"
WAIT_SECONDS = 90.0
HTTP = urllib3.PoolManager(retries=False)
PROGRAM = """package main

import ("fmt"; "net/http"; "os")

func main() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "TEXT") })
	if len(os.Args) > 1 { fmt.Println("TEXT"); return }
	_ = http.ListenAndServe("127.0.0.1:0", nil)
}
"""


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def until(holds: Callable[[], bool], what: Callable[[], str] = str) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < end, what()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def binaries(
    go_toolchain: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], bytes]:
    """A server as anybody builds it, with symbols, that says a text; by text and architecture."""
    folder, known = tmp_path_factory.mktemp("go"), {}

    def build(text: str, arch: str = "amd64") -> bytes:
        if (text, arch) not in known:
            (folder / "go.mod").write_text("module example.com/fn\n\ngo 1.22\n")
            (folder / "main.go").write_text(PROGRAM.replace("TEXT", text))
            env = os.environ | {"CGO_ENABLED": "0", "GOARCH": arch, "GOFLAGS": ""}
            argv = [str(go_toolchain), "build", "-trimpath", "-o", "fn", "."]
            subprocess.run(argv, cwd=folder, env=env, check=True, timeout=600)
            known[text, arch] = (folder / "fn").read_bytes()
        return known[text, arch]

    return build


@dataclass
class Hook:
    """`layerkit hook` as a process."""

    host: str
    port: int
    folder: Path
    secret: str = SECRET
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        secret = self.folder / "secret"
        secret.write_text(self.secret + "\n")
        argv = [sys.executable, "-m", "layerkit", "hook", "--registry", f"http://{self.host}"]
        argv += ["--listen", f"127.0.0.1:{self.port}", "--secret-file", str(secret)]
        argv += ["--queue", str(self.folder / "queue"), "--log-format", "json", *self.options]
        with (self.folder / "hook.log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=log)
        until(self.is_ready, self.log)

    def is_ready(self) -> bool:
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            return HTTP.request("GET", f"{self.url}/readyz").status == 200
        return False

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(30)
        self.process = None
        return status

    def log(self) -> str:
        return (self.folder / "hook.log").read_text()

    def ask(self, method: str = "GET", path: str = "/", **facts: object) -> dict[str, object]:
        headers = {"authorization": f"Bearer {self.secret}"}
        answer = HTTP.request(method, self.url + path, headers=headers, **facts)  # type: ignore[arg-type]
        assert answer.status in (200, 202), answer.data
        return dict(answer.json())

    def counts(self) -> dict[str, int]:
        found = self.ask()["queue"]
        assert isinstance(found, dict)
        return found


@dataclass
class Place:
    """A registry that tells a hook, and what is in it."""

    host: str
    hook: Hook
    folder: Path

    def push(self, binary: bytes, ref: str = "team/fn:v1", arch: str = "amd64") -> str:
        """As `docker push` of a FROM scratch image does it, by crane; its digest."""
        layer = self.folder / "layer.tar"
        with tarfile.open(layer, "w") as tar:
            entry = tarfile.TarInfo("app/fn")
            entry.size, entry.mode = len(binary), 0o755
            tar.addfile(entry, BytesIO(binary))
        crane, name = find_tool("crane"), f"{self.host}/{ref}"
        argv = [crane, "append", "--insecure", "-f", str(layer)]
        pushed = run(*argv, "-t", f"{name}-part").strip()
        argv = [crane, "mutate", "--insecure", "--entrypoint", "/app/fn", pushed, "-t", name]
        argv += ["--set-platform", f"linux/{arch}"]
        return run(*argv).strip().partition("@")[2]

    @property
    def registry(self) -> Registry:
        return Registry(Transport(self.host, plain_http=True, patience=1.0))

    def referrers(self, digest: str, kind: str) -> list[oci.Descriptor]:
        with contextlib.suppress(LayerkitError):
            return list_referrers(self.registry, "team/fn", Digest.parse(digest), kind)
        return []

    def wait_for_chunks(self, digest: str) -> None:
        until(lambda: bool(self.referrers(digest, oci.CHUNKS_ARTIFACT)), self.hook.log)

    def wait_for_updates(self, digest: str, count: int = 1) -> None:
        def holds() -> bool:
            return len(find_updates(self.referrers(digest, oci.UPDATE_ARTIFACT))) >= count

        until(holds, self.hook.log)

    def pull(self, ref: str, *argv: str) -> dict[str, object]:
        """Into the node's store."""
        said = run(
            sys.executable, "-m", "layerkit", "pull", f"{self.host}/{ref}",
            "--store", str(self.folder / "store"), "--json", *argv,
        )  # fmt: skip
        return dict(json.loads(said))


@contextlib.contextmanager
def serving(tool: str, port: int, hook_port: int, folder: Path) -> Iterator[None]:
    notify = NOTIFICATIONS.format(port=hook_port, secret=SECRET)
    config = write_config(folder, port, auth=notify)
    with running([find_tool(tool), "serve", str(config)], port, folder):
        yield


@contextlib.contextmanager
def place_of(tool: str, folder: Path) -> Iterator[Place]:
    port, hook_port = free_port(), free_port()
    for name in ("registry", "hook"):
        (folder / name).mkdir()
    hook = Hook(f"127.0.0.1:{port}", hook_port, folder / "hook")
    with serving(tool, port, hook_port, folder / "registry"):
        try:
            yield Place(hook.host, hook, folder)
        finally:
            if hook.process is not None:
                hook.stop()


@pytest.fixture(params=COLLECTS)  # events.v1, events.v2
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with place_of(request.param, tmp_path) as found:
        yield found


@pytest.fixture
def one_place(tmp_path: Path) -> Iterator[Place]:
    with place_of("registry", tmp_path) as found:
        yield found


def test_a_team_gets_updates_without_changing_its_ci(
    place: Place, binaries: Callable[..., bytes]
) -> None:
    """Push, edit a string, push: the node's second pull from the plain registry is an update."""
    place.hook.start()
    first = place.push(binaries("hello"))
    place.wait_for_chunks(first)
    assert place.pull("team/fn:v1")["digest"] == first
    second = place.push(binaries("hello, edited"))
    place.wait_for_updates(second)
    pulled = place.pull("team/fn:v1")
    assert pulled["digest"] == second
    assert isinstance(pulled["moved_size"], int) and pulled["moved_size"] < 8_000
    crane = find_tool("crane")
    assert run(crane, "digest", "--insecure", f"{place.host}/team/fn:v1").strip() == second
    run(crane, "validate", "--insecure", "--remote", f"{place.host}/team/fn:v1")
    until(lambda: place.hook.counts() == dict(failed=0, retrying=0, running=0, waiting=0))
    assert place.hook.stop() == 0


def test_an_agent_is_told_when_updates_are_there(
    one_place: Place, binaries: Callable[..., bytes], tmp_path: Path
) -> None:
    """The registry tells the hook, the hook makes the update and tells the agent, which has it long
    before its own next look."""
    place, news_port = one_place, free_port()
    ref, secret = f"{place.host}/team/fn:v1", tmp_path / "agent-secret"
    secret.write_text(SECRET)
    place.hook.options = ("--tell", f"http://127.0.0.1:{news_port}")
    place.hook.options += ("--tell-secret-file", str(secret))
    options = ["--watch", ref, "--poll", "3600", "--rootfs", str(tmp_path / "root")]
    options += ["--events", f"127.0.0.1:{news_port}", "--events-secret-file", str(secret)]
    place.hook.start()
    first = place.push(binaries("hello"))
    place.wait_for_chunks(first)
    with stopped_at_end(AgentProcess(tmp_path, *options)) as agent:
        agent.start()
        agent.wait_for(ref, Digest.parse(first))
        found = agent.wait_for(
            ref, Digest.parse(place.push(binaries("hello, edited"))), WAIT_SECONDS
        )
        assert found["moved_size"] < 8_000
        assert agent.stop() == 0


def test_an_index_of_two_platforms(one_place: Place, binaries: Callable[..., bytes]) -> None:
    place, crane = one_place, find_tool("crane")
    place.hook.start()
    tops = []
    for text in ("hello", "hello, edited"):
        parts = [
            place.push(binaries(text, arch), f"team/fn:{arch}", arch) for arch in ("amd64", "arm64")
        ]
        argv = [crane, "index", "append", "--insecure", "-t", f"{place.host}/team/fn:both"]
        for part in parts:
            argv += ["-m", f"{place.host}/team/fn@{part}"]
        run(*argv)
        tops.append(run(crane, "digest", "--insecure", f"{place.host}/team/fn:both").strip())
        for part in parts:
            place.wait_for_chunks(part)
    place.wait_for_updates(tops[1], 2)
    found = find_updates(place.referrers(tops[1], oci.UPDATE_ARTIFACT))
    assert sorted(str(one.platform) for one in found) == ["linux/amd64", "linux/arm64"]
    assert {str(one.old) for one in found} == {tops[0]}


def test_killed_in_a_job_it_goes_on(place: Place, binaries: Callable[..., bytes]) -> None:
    place.hook.start()
    first = place.push(binaries("hello"))
    until(lambda: f"team/fn:v1 names {first[:19]}" in place.hook.log(), place.hook.log)
    place.hook.stop(signal.SIGKILL)  # with jobs that run, or are to
    second = place.push(binaries("hello, edited"))  # the registry tells it when it is back
    place.hook.start()
    place.wait_for_chunks(first)
    place.wait_for_updates(second)
    until(lambda: place.hook.counts() == dict(failed=0, retrying=0, running=0, waiting=0))


def test_a_registry_that_was_down(one_place: Place, binaries: Callable[..., bytes]) -> None:
    """It is told while the registry cannot be reached, and does it when it can."""
    place = one_place
    digest = place.push(binaries("hello"))
    away = Hook(f"127.0.0.1:{free_port()}", place.hook.port, place.folder / "hook")
    away.start()
    event = {"events": [{"action": "push", "target": {"repository": "team/fn", "tag": "v1"}}]}
    assert away.ask("POST", "/events", body=json.dumps(event)) == {"taken": 1}
    until(lambda: away.counts()["retrying"] == 1, away.log)
    away.stop()
    place.hook.start()  # the same queue: another address is a registry that came back
    place.wait_for_chunks(digest)


def test_who_does_not_know_the_secret(one_place: Place, binaries: Callable[..., bytes]) -> None:
    place = one_place
    place.hook.secret = "another-secret-than-the-registry's"
    place.hook.start()
    digest = place.push(binaries("hello"))
    until(lambda: '"status": 401' in place.hook.log(), place.hook.log)
    assert place.hook.counts() == dict(failed=0, retrying=0, running=0, waiting=0)
    assert place.referrers(digest, oci.CHUNKS_ARTIFACT) == []
    assert SECRET not in place.hook.log()


def test_two_hooks_on_one_registry(one_place: Place, binaries: Callable[..., bytes]) -> None:
    place = one_place
    (place.folder / "other").mkdir()
    other = Hook(place.host, free_port(), place.folder / "other")
    place.hook.start()
    other.start()
    try:
        for text in ("hello", "hello, edited"):
            digest = place.push(binaries(text))
            event = {"action": "push", "target": {"repository": "team/fn", "tag": "v1"}}
            other.ask("POST", "/events", body=json.dumps({"events": [event]}))
            place.wait_for_chunks(digest)
        place.wait_for_updates(digest)
        for hook in (place.hook, other):
            until(lambda hook=hook: sum(hook.counts().values()) == 0, hook.log)
    finally:
        other.stop()
    assert len(place.referrers(digest, oci.CHUNKS_ARTIFACT)) == 1
    assert len(find_updates(place.referrers(digest, oci.UPDATE_ARTIFACT))) == 1
