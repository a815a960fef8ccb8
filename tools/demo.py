"""`make demo`: the main job with real parts, from Go source to an answered request, twice.

Builds examples/hello, serves it, pulls it onto a node with an empty store, runs it from there; then
edits one string in a copy of the source and does it again. Each pull is set beside fetching the
layers that the node lacks whole, from the same server. With --record it writes
bench/results/demo.json. Ends what it started, leaves nothing else behind.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "bench/results/demo.json"  # what README shows; only with --record
LAYERKIT = [sys.executable, "-m", "layerkit"]
OLD_GREETING, NEW_GREETING = "hello from layerkit", "good morning from layerkit"
ANSWER_SECONDS = 20.0  # how long a function may take to answer its first request
ACCEPT = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json"


def say(text: str) -> None:
    print(text, flush=True)


def layerkit(*arguments: str | Path) -> str:
    """Run one layerkit command and return its stdout; what it complains about is shown."""
    done = subprocess.run(
        [*LAYERKIT, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"demo: layerkit {arguments[0]} ended with status {done.returncode}")
    return done.stdout.strip()


@contextlib.contextmanager
def running(argv: list[str], **options: object) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended, and waited for, whatever happens in the body."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def read_blob(layout: Path, digest: str) -> bytes:
    return (layout / "blobs" / digest.replace(":", "/")).read_bytes()


def built_image(layout: Path, ref: str) -> tuple[dict, dict]:
    """Manifest and config of an image in a layout, read without layerkit."""
    index = json.loads((layout / "index.json").read_bytes())
    for entry in index["manifests"]:
        if entry.get("annotations", {}).get("org.opencontainers.image.ref.name") == ref:
            manifest = json.loads(read_blob(layout, entry["digest"]))
            return manifest, json.loads(read_blob(layout, manifest["config"]["digest"]))
    raise SystemExit(f"demo: {ref} is not in {layout}")


def built_binary(layout: Path, manifest: dict, path: str) -> bytes:
    """The binary out of the image's last layer, by Python's own tar and gzip."""
    blob = read_blob(layout, manifest["layers"][-1]["digest"])
    with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
        file = tar.extractfile(path.lstrip("/"))
        assert file is not None
        return file.read()


def fetch_whole(url: str, name: str, tag: str, held: set[str]) -> dict[str, object]:
    """Pull plainly, as an engine would: manifest, config, and the layers that are not held."""
    start = time.perf_counter()
    size = requests = 0

    def get(path: str) -> bytes:
        nonlocal size, requests
        request = urllib.request.Request(f"{url}/v2/{name}/{path}", headers={"Accept": ACCEPT})
        with urllib.request.urlopen(request, timeout=60) as answer:
            data = answer.read()
        size += len(data)
        requests += 1
        return data

    manifest = json.loads(get(f"manifests/{tag}"))
    blobs = [manifest["config"], *manifest["layers"]]
    for blob in blobs:
        if blob["digest"] not in held:
            data = get(f"blobs/{blob['digest']}")
            assert "sha256:" + hashlib.sha256(data).hexdigest() == blob["digest"]
            held.add(blob["digest"])
    seconds = time.perf_counter() - start
    return {"whole_size": size, "whole_request_count": requests, "whole_seconds": seconds}


def ask_function(rootfs: Path, config: dict) -> str:
    """Start the function from the node's files as its image says, and ask it once."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    entrypoint = [*config["config"]["Entrypoint"], *config["config"].get("Cmd", [])]
    argv = [str(rootfs / entrypoint[0].lstrip("/")), *entrypoint[1:]]
    environment = dict(pair.split("=", 1) for pair in config["config"].get("Env", []))
    environment |= {"HOST": "127.0.0.1", "PORT": str(port), "HOME": str(rootfs)}
    with running(argv, env=environment, stderr=subprocess.DEVNULL):
        end = time.monotonic() + ANSWER_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    return answer.read().decode().strip()
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > end:
                    raise SystemExit("demo: the function does not answer") from None
                time.sleep(0.02)


class Demo:
    """One run in one folder."""

    def __init__(self, work: Path) -> None:
        self.source = work / "hello"
        self.layout = work / "layout"
        self.store = work / "store"
        self.work = work
        self.held: set[str] = set()
        self.pulls: list[dict[str, object]] = []
        shutil.copytree(ROOT / "examples/hello", self.source)

    def deploy(self, url: str | None, tag: str, what: str) -> None:
        """Build done; pull onto the node, check the binary, ask the function."""
        manifest, config = built_image(self.layout, f"hello:{tag}")
        rootfs = self.work / f"rootfs-{tag}"
        said = layerkit(
            "pull",
            f"hello:{tag}",
            "--server",
            url or "",
            "--store",
            self.store,
            "--rootfs",
            rootfs,
            "--json",
        )
        document = json.loads(said)
        binary = config["config"]["Entrypoint"][0]
        want = hashlib.sha256(built_binary(self.layout, manifest, binary)).hexdigest()
        got = hashlib.sha256((rootfs / binary.lstrip("/")).read_bytes()).hexdigest()
        if got != want:
            raise SystemExit(f"demo: the binary on the node is {got}, the built one is {want}")
        say(f"  binary on the node is bit-identical to the built one: sha256:{got[:16]}…")
        say(f"  the function answers from the node: {ask_function(rootfs, config)}")
        whole = fetch_whole(url or "", "hello", tag, self.held)
        self.pulls.append(
            {
                "what": what,
                "moved_size": document["moved_size"],
                "request_count": document["request_count"],
                "seconds": document["seconds"],
                **whole,
            }
        )

    def build(self, tag: str, *more: str) -> None:
        start = time.perf_counter()
        line = layerkit("build", self.source, "-t", f"hello:{tag}", "-o", self.layout, *more)
        say(f"  {line}  ({time.perf_counter() - start:.1f} s)")

    def edit(self) -> None:
        main = self.source / "main.go"
        text = main.read_text(encoding="utf-8")
        new = text.replace(OLD_GREETING, NEW_GREETING)
        if new == text:
            raise SystemExit(f"demo: {OLD_GREETING!r} is not in main.go")
        say(f"  {OLD_GREETING!r} becomes {NEW_GREETING!r}")
        main.write_text(new, encoding="utf-8")

    def run(self) -> None:
        say("1. build examples/hello into an OCI layout, its chunks and packed forms beside it")
        self.build("v1", "--pack")
        serve = [*LAYERKIT, "serve", str(self.layout), "--listen", "127.0.0.1:0"]
        with running(serve) as server:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            if not url:
                raise SystemExit("demo: the chunk server does not start")
            say(f"2. a node with an empty store pulls from the chunk server at {url}")
            self.deploy(url, "v1", "first, onto an empty node")
            say("3. edit one string in the source, build again")
            self.edit()
            self.build("v2")
            say("4. the node pulls again")
            self.deploy(url, "v2", "after an edit of one string")


def show(pulls: list[dict[str, object]]) -> None:
    from layerkit.console import Console

    rows = []
    for pull in pulls:
        for how, prefix in (("layerkit", ""), ("whole layers", "whole_")):
            size = pull["moved_size"] if not prefix else pull["whole_size"]
            share = 100 * int(str(size)) / int(str(pull["whole_size"]))
            rows.append(
                (
                    str(pull["what"]) if not prefix else "",
                    how,
                    f"{size:,}",
                    str(pull[f"{prefix}request_count"]),
                    f"{pull[f'{prefix}seconds']:.2f} s",
                    f"{share:.{2 if share < 1 else 1}f} %",
                )
            )
    Console().table("", ("pull", "how", "bytes moved", "requests", "time", "of whole layers"), rows)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    start = time.perf_counter()
    work = Path(tempfile.mkdtemp(prefix="layerkit-demo-"))
    try:
        demo = Demo(work)
        demo.run()
        labels = json.dumps(built_image(demo.layout, "hello:v1"))
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(work, ignore_errors=True)
    show(demo.pulls)
    found = [word for word in labels.split('"') if word.startswith("go1.")]
    document = {
        "command": "make demo",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "go": found[0] if found else "go",
        "pulls": demo.pulls,
    }
    note = ""
    if "--record" in sys.argv[1:]:
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        RECORD.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        note = f"; written to {RECORD.relative_to(ROOT)}, now run 'make docs'"
    say(f"{time.perf_counter() - start:.0f} s in all{note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
