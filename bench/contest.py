"""Two machines on a line of given delay and rate (tests/faults/netns.py): on one a chunk server and
a real registry with the same images, on the other a Docker engine and a layerkit node. Each pulls
the same change, in turn; what is timed is from the request to a program that can be run.

The registry is Debian's docker-registry, the engine Debian's dockerd, both as they come; the engine
is asked over its API, so that no client program starts in the timed part, as the node is a process
that is warm. Needs root.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from versions import REPOSITORY, reference

from layerkit.digest import Digest
from layerkit.edges.layout import Layout
from layerkit.formats.reference import Reference

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests/faults"))

from netns import SERVER, Lab, Network, end

BENCH = Path(__file__).resolve().parent
REGISTRY_PORT, CHUNKS_PORT, PLAIN_PORT = 5000, 7420, 7421
PUSHED_REGISTRY_PORT, PUSHED_PORT = 5001, 7422  # what is pushed to (bench/pushes.py)
READY_SECONDS = 60.0
IDLE_SECONDS = 3.0  # an agent makes ready for the next version, and asks for it
Headers = Mapping[str, str]
NO_HEADERS: Headers = {}
LATEST = Reference.parse(f"{REPOSITORY}:latest")  # what the agent watches


@dataclass(frozen=True)
class Sample:
    seconds: float  # from the request until the new program can be run
    received: int  # bytes that came over the line meanwhile, packets' heads included

    def as_row(self) -> dict[str, Any]:
        return {"seconds": round(self.seconds, 4), "received": self.received}


def missing_tools() -> str:
    """Why there can be no contest here, or ""."""
    tools = ("dockerd", "docker-registry", "skopeo")
    lacking = [tool for tool in tools if not shutil.which(tool)]
    return f"{', '.join(lacking)}: not installed" if lacking else ""


class Contest:
    """All that runs on both machines. `layout` has chunks, `plain` the same images without. A
    context; `old` is what every node holds before each pull."""

    def __init__(
        self, network: Network, layout: Path, plain: Path, old: str, scratch: Path
    ) -> None:
        self.old = old
        self.scratch = scratch
        shutil.copytree(layout, scratch / "layout")  # its tags move here
        self.layout = scratch / "layout"
        self._layouts = {CHUNKS_PORT: self.layout, PLAIN_PORT: plain}
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        self.lab = Lab(network)
        try:
            self._start_servers()
            self._start_engine()
            self._node = self.start("node", "node", sys.executable, str(BENCH / "node.py"))
            self._fill()
        except BaseException:
            self.close()
            raise

    def start(self, side: str, name: str, *argv: str) -> subprocess.Popen[bytes]:
        with (self.scratch / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                self.lab.argv(side, *argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"PYTHONPATH": str(BENCH.parent)},
            )
        self.started[name] = process
        return process

    def serve(self, port: int, layout: Path, made: Path) -> None:
        """A chunk server of `layout`, in the place of one that was on that port."""
        name = f"serve-{port}"
        argv = serve_argv(layout, f"{SERVER}:{port}", "--open", "--made", str(made))
        if name in self.started:
            end(self.started.pop(name))
        process = self.start("server", name, *argv)
        assert process.stdout is not None
        if not process.stdout.readline():
            raise OSError(self.log(name))

    def _start_servers(self) -> None:
        for port, layout in self._layouts.items():
            self.serve(port, layout, self.scratch / "made")
        self.start_registry(REGISTRY_PORT)

    def start_registry(self, port: int) -> None:
        """An empty registry, in the place of one that was on that port."""
        name = f"registry-{port}"
        if name in self.started:
            end(self.started.pop(name))
        folder, config = self.scratch / name, self.scratch / f"{name}.yml"
        shutil.rmtree(folder, ignore_errors=True)
        config.write_text(
            f"version: 0.1\nlog: {{level: error}}\nhttp: {{addr: ':{port}'}}\n"
            f"storage: {{filesystem: {{rootdirectory: {folder}}}}}\n"
        )
        self.start("server", name, "docker-registry", "serve", str(config))

    def _start_engine(self) -> None:
        folder = self.scratch / "docker"
        folder.mkdir()
        self._socket = folder / "docker.sock"
        argv = ["dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"]
        argv += ["--pidfile", f"{folder}/pid", "-H", f"unix://{self._socket}", "--bridge=none"]
        argv += ["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"]
        argv += ["--storage-driver", "overlay2", "--exec-opt", "native.cgroupdriver=cgroupfs"]
        argv += ["--cgroup-parent", "layerkit"]
        for port in (REGISTRY_PORT, PUSHED_REGISTRY_PORT):
            argv += ["--insecure-registry", f"{SERVER}:{port}"]
        self.start("node", "dockerd", *argv)
        if not wait_for(self._engine_answers):
            raise OSError(self.log("dockerd"))

    def _engine_answers(self) -> bool:
        try:
            return self.engine("GET", "/_ping")[0] == 200
        except OSError:
            return False

    def engine(self, method: str, path: str, headers: Headers = NO_HEADERS) -> tuple[int, bytes]:
        """A request to the engine; the answer ends when the work has."""
        connection = http.client.HTTPConnection("localhost", timeout=600)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self._socket))
        connection.request(method, path, headers=dict(headers))
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response.status, body

    def _fill(self) -> None:
        """The old version onto the node, by both ways."""
        self.push(self.old)
        self.docker_pull(self.old)
        for kind, port in (("chunks", CHUNKS_PORT), ("plain", PLAIN_PORT)):
            self._ask_node(self.old, port, self.scratch / f"held-{kind}", prepare=True)

    def push(self, name: str) -> None:
        """A version from the layout into the registry, as it is."""
        source = f"oci:{self._layouts[PLAIN_PORT]}:{reference(name)}"
        target = f"docker://127.0.0.1:{REGISTRY_PORT}/{reference(name)}"
        self.lab.run(
            "server",
            "skopeo",
            "copy",
            "--quiet",
            "--insecure-policy",
            "--preserve-digests",
            "--dest-tls-verify=false",
            source,
            target,
        )

    # --- the contestants ---------------------------------------------------------------------

    def docker(self, name: str) -> Sample:
        """`docker pull`: layers are fetched and extracted, `docker run` could follow."""
        self._forget(name)
        return self.timed(lambda: self.docker_pull(name))

    def layerkit(self, name: str, held: bool = True, port: int = CHUNKS_PORT) -> Sample:
        """A pull that ends with the file tree of the image on the node's disk; `held`: onto a node
        that holds the old version, and was idle since: it has a spare tree of the lower layers,
        as an agent has, and as the engine has the layers that did not change, extracted."""
        kind = "chunks" if port == CHUNKS_PORT else "plain"
        store = self.scratch / "store"
        shutil.rmtree(store, ignore_errors=True)
        spares = self.scratch / "spares"
        shutil.rmtree(spares, ignore_errors=True)
        if held:
            shutil.copytree(self.scratch / f"held-{kind}", store)
            self._ask_node(self.old, port, store, spares=spares, prepare=True)
        root = self.scratch / "root"
        shutil.rmtree(root, ignore_errors=True)
        sample = self.timed(lambda: self._ask_node(name, port, store, root, spares))
        program = root / "app/fn"
        assert program.stat().st_mode & 0o111
        return sample

    def at_once(self, name: str) -> Sample:
        """The same from a server that has kept nothing."""
        self._restart_server()
        return self.layerkit(name)

    def _restart_server(self, *, kept: bool = False) -> None:
        """A server that knows nothing of what it made before, but what it `kept` on its shelf."""
        if not kept:
            shutil.rmtree(self.scratch / "made", ignore_errors=True)
        self.serve(CHUNKS_PORT, self.layout, self.scratch / "made")

    def agent(self, name: str, kept: bool = False) -> Sample:
        """An agent that watches the name, has pulled the old version and was idle for a while: from
        the move of the tag at the server, which has made nothing before (or the update, if it is
        `kept`, as after a push that makes it before it moves the tag), until its link `current`
        leads to the new version."""
        self.tag(self.old)
        self._restart_server(kept=kept)
        with self.watching(CHUNKS_PORT) as link:
            self._move(link, self.old)
            time.sleep(IDLE_SECONDS)
            sample = self.timed(lambda: self._move(link, name))
            assert (link / "app/fn").stat().st_mode & 0o111
        return sample

    def _move(self, link: Path, to: str) -> None:
        self.wait_until(link, self.tag(to))

    def wait_until(self, link: Path, digest: Digest) -> None:
        """Until the agent's link leads to that image."""
        moved = wait_for(lambda: link.is_symlink() and digest.hex in os.readlink(link))
        assert moved, self.log("agent")

    @contextlib.contextmanager
    def watching(self, port: int) -> Iterator[Path]:
        """An agent with nothing, that watches LATEST at the server on that port; its link."""
        home = self.scratch / "agent"
        shutil.rmtree(home, ignore_errors=True)
        argv = ["--server", f"http://{SERVER}:{port}", "--watch", LATEST.repository]
        argv += ["--store", f"{home}/store", "--rootfs", f"{home}/rootfs"]
        argv += ["--socket", str(self.scratch / "agent.sock")]
        process = self.start("node", "agent", sys.executable, "-m", "layerkit", "agent", *argv)
        try:
            assert process.stdout is not None and process.stdout.readline(), self.log("agent")
            yield home / "rootfs" / LATEST.name / "current"
        finally:
            end(process)

    def tag(self, name: str) -> Digest:
        """Let the watched tag name that version; its blobs are there already."""
        layout = Layout(self.layout)
        image = layout.resolve(reference(name))
        layout.commit(LATEST, image)
        return image.digest

    def log(self, name: str) -> str:
        return (self.scratch / f"{name}.log").read_text("utf-8", "replace")[-2000:]

    def plain(self, name: str, held: bool = True) -> Sample:
        """The same of whole layers: there is nothing but the image on that server."""
        return self.layerkit(name, held, PLAIN_PORT)

    def timed(self, call: Callable[[], None], side: str = "node") -> Sample:
        """The time of `call`, and what came to the machine `side` meanwhile."""
        os.sync()  # what was written before is nobody's time
        before, started = self.lab.bytes_received(side), time.perf_counter()
        call()
        seconds = time.perf_counter() - started
        return Sample(seconds, self.lab.bytes_received(side) - before)

    def docker_pull(self, name: str) -> None:
        where = f"{SERVER}:{REGISTRY_PORT}/{REPOSITORY}"
        query = urlencode({"fromImage": where, "tag": reference(name).tag})
        status, body = self.engine("POST", f"/images/create?{query}")
        said = body.decode("utf-8", "replace")
        assert status == 200 and '"error"' not in said, said[-500:]

    def _forget(self, name: str) -> None:
        where = f"{SERVER}:{REGISTRY_PORT}/{reference(name)}"
        self.engine("DELETE", f"/images/{where}?force=true")

    def _ask_node(
        self,
        name: str,
        port: int,
        store: Path,
        root: Path | None = None,
        spares: Path | None = None,
        *,
        prepare: bool = False,
    ) -> None:
        asked: dict[str, object] = {
            "url": f"http://{SERVER}:{port}",
            "ref": str(reference(name)),
            "store": str(store),
            "prepare": prepare,
        }
        if root is not None:
            asked["rootfs"] = str(root)
        if spares is not None:
            asked["spares"] = str(spares)
        assert self._node.stdin is not None and self._node.stdout is not None
        self._node.stdin.write(json.dumps(asked).encode() + b"\n")
        self._node.stdin.flush()
        if not self._node.stdout.readline():
            raise OSError(self.log("node"))

    def close(self) -> None:
        for process in reversed(self.started.values()):
            end(process, 30)
        self.lab.close()

    def __enter__(self) -> Contest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wait_for(is_true: Callable[[], bool]) -> bool:
    """Look every millisecond until it is so; False after READY_SECONDS."""
    deadline = time.monotonic() + READY_SECONDS
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def serve_argv(layout: Path, listen: str, *more: str) -> Sequence[str]:
    """`layerkit serve`, by the same interpreter."""
    return [sys.executable, "-m", "layerkit", "serve", str(layout), "--listen", listen, *more]
