"""500 agents that pull an update at once from one server, against nginx with the same bytes as a
file: the same run, the same clients, in turn. All of it on this machine's cores, over loopback.

`agents`: each makes a connection, reads and checks the update (load_agents.py); what counts is how
long it takes until all have it. `raw`: wrk, 500 connections that are kept open, as many requests as
go through. Before anything is timed a real pull shows that these bytes are the new image.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import urllib3
from contest import serve_argv
from netns import end
from versions import AMD64, REPOSITORY, layout_of, reference

from layerkit.edges.disk import Disk
from layerkit.edges.layout import Layout
from layerkit.edges.remote import Remote
from layerkit.edges.store import Store
from layerkit.jobs.pull import pull

BENCH = Path(__file__).resolve().parent
Table = dict[str, Any]
AGENTS, PROCESSES = 500, 2
ROUNDS = 5
RAW_SECONDS = 5
SETTLED_COUNT = 15  # equal answers, a second apart
CHANGES = {  # a small update and a large one
    "base -> a_literal": ("base", "a_literal"),
    "base -> f2": ("base", "f2"),
}
NGINX = """
daemon off; worker_processes {workers}; pid {folder}/pid; error_log stderr crit; user root;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;
  default_type application/octet-stream; open_file_cache max=16; etag on;
  server {{ listen 127.0.0.1:{port} backlog=4096; root {folder}; location / {{ try_files /{name} =404; }} }}
}}
"""  # noqa: E501


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def running(argv: list[str], log: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server process, from the moment when it takes connections."""
    environment = os.environ | {"PYTHONPATH": str(BENCH.parent)}
    with log.open("wb") as stderr:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=stderr, env=environment)
    try:
        deadline = time.monotonic() + 60
        while not answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise OSError(f"{argv[0]}: {log.read_text('utf-8', 'replace')[-1000:]}")
            time.sleep(0.05)
        yield process
    finally:
        end(process)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def memory_of(pid: int) -> int:
    """Peak bytes of a process and of those that it started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    own = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10  # type: ignore[index]
    return own + sum(memory_of(int(child)) for child in children)


def run_agents(port: int, path: str, want: str, count: int) -> Table:
    """`count` agents at once; the seconds until the last has its update."""
    start = time.monotonic() + 1.5  # the processes are up by then
    argv = [sys.executable, str(BENCH / "load_agents.py"), "127.0.0.1", str(port), path]
    parts = [
        subprocess.Popen([*argv, str(share), want, str(start)], stdout=subprocess.PIPE)
        for share in split(count, PROCESSES)
    ]
    said = [json.loads(part.communicate()[0]) for part in parts]
    seconds = sorted(one for document in said for one in document["seconds"])
    failures = [one for document in said for one in document["failures"]]
    return {
        "seconds": max(document["end"] for document in said) - start,
        "failures": failures[:3],
        "failed_count": len(failures),
        "slowest": seconds[-1] if seconds else None,
    }


def split(count: int, parts: int) -> list[int]:
    return [count // parts + (index < count % parts) for index in range(parts)]


def run_wrk(port: int, path: str, connections: int) -> Table:
    argv = ["wrk", "-t", "2", "-c", str(connections), "-d", f"{RAW_SECONDS}s", "--timeout", "10s"]
    url = f"http://127.0.0.1:{port}{path}"
    done = subprocess.run([*argv, url], capture_output=True, text=True, check=True)
    found = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
    errors = re.search(r"Socket errors: (.*)", done.stdout)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
    assert found is not None, done.stdout
    return {
        "rate": float(found[1]),
        "errors": (errors[1] if errors else "") + (f" {bad[1]} bad answers" if bad else ""),
    }


def fetch_checked(port: int, old: str, new: str, scratch: Path) -> tuple[str, bytes]:
    """The path of the update and its bytes, once the server has prepared it; a real pull shows what
    they are."""
    url = f"http://127.0.0.1:{port}"
    with Remote(url) as remote, Store(scratch / f"store-{new}", Disk()) as store:
        held = pull(reference(old), remote, store, platform=AMD64)
        path = f"/v1/{REPOSITORY}/updates/{reference(new).tag}"
        path += f"?from={held.digest}&platform=linux/amd64"
        body = settled(url + path)
        made = pull(reference(new), remote, store, platform=AMD64, rootfs=scratch / f"root-{new}")
    assert (scratch / f"root-{new}/app/fn").exists()
    assert (made.request_count, made.moved_size) == (1, len(body)), "not what the pull took"
    return path, body


def settled(url: str) -> bytes:
    """The answer once it has stayed the same for a while: quick answers come first, better ones
    when they are made. A connection each, so that every process of the server is asked."""
    before, same = b"", 0
    for _ in range(120):
        with urllib3.PoolManager() as pool:
            answer = pool.request("GET", url, timeout=60)
        assert answer.status == 200, answer.data[:200]
        same = same + 1 if answer.data == before else 0
        if same == SETTLED_COUNT:
            return before
        before = answer.data
        time.sleep(1)
    raise OSError(f"{url}: the answer does not stay the same")


def measure(count: int = AGENTS, rounds: int = ROUNDS) -> Table:
    """Both servers, each change; {"missing": why} where it cannot be measured."""
    lacking = [tool for tool in ("nginx", "wrk") if not shutil.which(tool)]
    if lacking:
        return {"missing": f"{', '.join(lacking)}: not installed"}
    workers = len(os.sched_getaffinity(0))
    layout = layout_of(sorted({name for pair in CHANGES.values() for name in pair}))
    assert Layout(layout).exists()
    table: Table = {"agents": count, "workers": workers, "changes": {}}
    with tempfile.TemporaryDirectory(prefix="lk-load-") as folder:
        scratch = Path(folder)
        port = free_port()
        made = ["--made", str(scratch / "made"), "--workers", str(workers)]
        argv = [*serve_argv(layout, f"127.0.0.1:{port}", *made)]
        with running(argv, scratch / "serve.log", port) as server:
            for change, (old, new) in CHANGES.items():
                path, body = fetch_checked(port, old, new, scratch)
                (scratch / new).write_bytes(body)
                row = contest(port, path, body, scratch / new, rounds, count, workers)
                table["changes"][change] = row
                print(change, summary(row), flush=True)
            table["memory"] = memory_of(server.pid)
    return table


def contest(
    port: int, path: str, body: bytes, file: Path, rounds: int, count: int, workers: int
) -> Table:
    other, want = free_port(), hashlib.sha256(body).hexdigest()
    config = file.with_suffix(".conf")
    config.write_text(NGINX.format(workers=workers, folder=file.parent, port=other, name=file.name))
    row: Table = {"update_size": len(body), "agents": {}, "raw": {}}
    ports = {"layerkit": port, "nginx": other}
    argv = ["nginx", "-p", str(file.parent), "-c", str(config)]
    with running(argv, file.with_suffix(".log"), other):
        for turn in range(rounds + 1):
            for name, one in ports.items():
                found = run_agents(one, path, want, count)
                if turn:  # the first warms up
                    row["agents"].setdefault(name, []).append(found)
        for _ in range(3):
            for name, one in ports.items():
                row["raw"].setdefault(name, []).append(run_wrk(one, path, count))
    return row


def summary(row: Table) -> dict[str, float]:
    """Pulls a second of each way and server, medians, and the ratios."""
    found: dict[str, float] = {}
    for name, rounds in row["agents"].items():
        found[f"{name} seconds"] = statistics.median(one["seconds"] for one in rounds)
        found[f"{name} failed"] = sum(one["failed_count"] for one in rounds)
        found[f"{name} raw"] = statistics.median(one["rate"] for one in row["raw"][name])
    found["ratio"] = found["nginx seconds"] / found["layerkit seconds"]
    found["raw ratio"] = found["layerkit raw"] / found["nginx raw"]
    return found


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
