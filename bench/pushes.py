"""What comes before a pull: `layerkit push` with its updates and packs, `docker push` of the same
change, and an agent whose server's layout is pushed to. On the machines of a bench/contest.py.

A push is timed as a whole: layerkit's is a command that starts, reads the old image and makes the
updates; docker's is asked of a daemon that runs, packs the new layer and sends it. Both sent the
old version before, and the image is there: what `layerkit build` and `docker build` take is not in
it.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
import threading
import time
from urllib.parse import urlencode

from contest import (
    IDLE_SECONDS,
    LATEST,
    PUSHED_PORT,
    PUSHED_REGISTRY_PORT,
    REGISTRY_PORT,
    Contest,
    Sample,
    wait_for,
)
from netns import SERVER
from versions import REPOSITORY, reference

from layerkit.edges.layout import Layout

AUTH = {"X-Registry-Auth": base64.urlsafe_b64encode(b"{}").decode()}
REGISTRY = f"{SERVER}:{PUSHED_REGISTRY_PORT}/{REPOSITORY}"


def layerkit_push(contest: Contest, name: str) -> Sample:
    """From the node's side to a registry that has the old version, over the line; `received` is
    what came to the registry."""
    contest.start_registry(PUSHED_REGISTRY_PORT)
    to = f"http://{SERVER}:{PUSHED_REGISTRY_PORT}"
    contest.tag(contest.old)
    assert wait_for(lambda: _answers(contest))
    _push(contest, "node", to)
    contest.tag(name)
    return contest.timed(lambda: _push(contest, "node", to), "server")


def docker_push(contest: Contest, name: str) -> Sample:
    """The same of the same images, which the engine has; it only sends what the registry lacks."""
    contest.start_registry(PUSHED_REGISTRY_PORT)
    for each in (contest.old, name):
        contest.docker_pull(each)
        query = urlencode({"repo": REGISTRY, "tag": reference(each).tag})
        source = f"{SERVER}:{REGISTRY_PORT}/{reference(each)}"
        assert contest.engine("POST", f"/images/{source}/tag?{query}")[0] == 201
    assert wait_for(lambda: _answers(contest))
    _docker_push(contest, contest.old)
    return contest.timed(lambda: _docker_push(contest, name), "server")


def agent(contest: Contest, name: str) -> tuple[Sample, Sample]:
    """An agent that watches a layout that is pushed to where it is served: from the move of the
    tag, which the update was published before, until its link leads to the new version; and the
    same from the start of the push."""
    served, made = contest.scratch / "served", contest.scratch / "served-made"
    for folder in (served, made):
        shutil.rmtree(folder, ignore_errors=True)
    contest.tag(contest.old)
    _push(contest, "server", str(served))
    contest.serve(PUSHED_PORT, served, made)
    digest = contest.tag(name)
    moved: list[float] = []

    def look() -> None:
        layout = Layout(served)
        if wait_for(lambda: layout.resolve(LATEST).digest == digest):
            moved.append(time.perf_counter())

    def run() -> None:
        pushing.append(_start_push(contest, "server", str(served)))
        contest.wait_until(link, digest)

    pushing: list[subprocess.Popen[bytes]] = []
    with contest.watching(PUSHED_PORT) as link:
        contest.wait_until(link, Layout(served).resolve(LATEST).digest)
        time.sleep(IDLE_SECONDS)
        looking = threading.Thread(target=look)
        looking.start()
        whole = contest.timed(run)
        ended = time.perf_counter()
        looking.join()
        assert pushing[0].wait() == 0, contest.log("push")
        assert moved and (link / "app/fn").stat().st_mode & 0o111
    return Sample(ended - moved[0], whole.received), whole


def _push(contest: Contest, side: str, to: str) -> None:
    assert _start_push(contest, side, to).wait() == 0, contest.log("push")


def _start_push(contest: Contest, side: str, to: str) -> subprocess.Popen[bytes]:
    argv = ["push", str(LATEST), "--from", str(contest.layout), "--to", to, "--quiet"]
    return contest.start(side, "push", sys.executable, "-m", "layerkit", *argv)


def _answers(contest: Contest) -> bool:
    """Is the registry up? Asked from the node's side, as those who push do."""
    url = f"http://{SERVER}:{PUSHED_REGISTRY_PORT}/v2/"
    code = f"import urllib.request; urllib.request.urlopen({url!r}, timeout=1)"
    return contest.start("node", "probe", sys.executable, "-c", code).wait() == 0


def _docker_push(contest: Contest, name: str) -> None:
    path = f"/images/{REGISTRY}/push?{urlencode({'tag': reference(name).tag})}"
    status, body = contest.engine("POST", path, AUTH)
    said = body.decode("utf-8", "replace")
    assert status == 200 and '"error"' not in said, said[-500:]
