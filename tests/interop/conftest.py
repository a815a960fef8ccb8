"""A real Docker engine in its own folders: Debian's dockerd, started once, ended by its own pid."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_engine import Engine
from registry_servers import certify, free_port

START_TIMEOUT = 30.0  # seconds; ready after 1.5 s as a rule


def _install() -> str:
    """Make sure that dockerd is there; returns why not, or ""."""
    if shutil.which("dockerd"):
        return ""
    if os.geteuid() != 0:
        return "dockerd is not installed, and only root may install or start it"
    if not shutil.which("apt-get"):
        return "dockerd is not installed, and there is no apt-get"
    argv = ["apt-get", "install", "-y", "--no-install-recommends", "docker.io"]
    env = dict(os.environ) | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (argv, ["apt-get", "update"], argv):
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode == 0 and command is argv:
            return ""
    return f"docker.io cannot be installed: {done.stderr.strip()[-200:]}"


def _command(folder: Path, port: int) -> list[str]:
    """dockerd with everything of its own, in a private mount namespace; TLS on the port alone."""
    return [
        "unshare", "--mount", "--propagation", "private", "dockerd",
        "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec",
        "--pidfile", f"{folder}/pid", "-H", f"unix://{folder}/docker.sock",
        "-H", f"tcp://127.0.0.1:{port}", "--tlsverify", "--tlscacert", f"{folder}/ca.pem",
        "--tlscert", f"{folder}/cert.pem", "--tlskey", f"{folder}/key.pem",
        "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
        "--bridge=none", "--storage-driver", "overlay2",
        "--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", "layerkit",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """An engine with an empty store."""
    if os.geteuid() != 0:
        pytest.skip("starting dockerd needs root")
    why = _install()
    if why:
        pytest.skip(why)
    folder = Path(tempfile.mkdtemp(prefix="lk-docker-"))  # short: a socket path has 108 bytes
    port = free_port()
    certificate, _ = certify(folder)
    shutil.copy(certificate, folder / "ca.pem")
    found = Engine(folder / "docker.sock", folder / "log", f"tcp://127.0.0.1:{port}", folder)
    with found.log.open("wb") as log:
        process = subprocess.Popen(_command(folder, port), stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            ready = subprocess.run(
                ["docker", "-H", f"unix://{found.socket}", "version"], capture_output=True
            )
            if ready.returncode == 0:
                break
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.skip(f"dockerd does not start here: {found.log_tail()[-800:]}")
            time.sleep(0.1)
        yield found
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def emptied(engine: Engine) -> Iterator[None]:
    """The engine has no images after the tests of this file: others want its store empty."""
    yield
    engine.docker("system", "prune", "-a", "-f")
