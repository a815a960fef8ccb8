"""Two machines joined by a line whose delay, rate and loss we choose: network namespaces of our
own, between them a veth pair with `tc netem` at both ends. A kernel without netem gets two TUN
devices and `line/main.go`, which does the same to their packets.

Nothing of the host changes: the namespaces live as long as sleeping processes, they are not named
under /run/netns, and mounts made inside are private. Needs root, iproute2, and Go where there is no
netem. The tests of this folder and the benches of latency use it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

SERVER, NODE = "10.77.0.1", "10.77.0.2"  # exist inside only
DEVICE = "lk0"
LINE = Path(__file__).resolve().parent / "line"
BUILT = LINE.parent.parent.parent / "bench/work"  # not in the repository


@dataclass(frozen=True)
class Network:
    """Of the whole line: `round_trip` in ms, `rate` in Mbit/s (0: as fast as it goes), `loss` in
    percent of the packets each way."""

    round_trip: float = 0
    rate: float = 0
    loss: float = 0

    @property
    def is_plain(self) -> bool:
        return not (self.round_trip or self.rate or self.loss)

    def netem(self) -> list[str]:
        words = ["limit", "1000"]  # packets on their way
        if self.round_trip:
            words += ["delay", f"{self.round_trip / 2:g}ms"]
        if self.loss:
            words += ["loss", f"{self.loss:g}%"]
        if self.rate:
            words += ["rate", f"{self.rate:g}mbit"]
        return words

    def line(self) -> list[str]:
        """The same for line/main.go."""
        delay, rate, loss = self.round_trip / 2, self.rate * 1e6, self.loss / 100
        return ["-delay", f"{delay:g}ms", "-rate", f"{rate:g}", "-loss", f"{loss:g}"]


def why_not() -> str:
    """Why no namespaces can be had here, or ""."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("unshare", "nsenter", "ip", "tc"):
        if not shutil.which(tool):
            return f"{tool} is not installed (apt-get install iproute2 util-linux)"
    try:
        with Lab(Network(1)):
            return ""
    except (OSError, subprocess.CalledProcessError) as exc:
        said = getattr(exc, "stderr", "") or str(exc)
        return f"network namespaces do not work here: {said.strip()[-200:]}"


class Lab:
    """The two machines, "server" and "node". A context; `argv` runs a command on one. `how` says
    what shapes the line: "veth", "veth, netem" or "tun, line"."""

    def __init__(self, network: Network) -> None:
        self.how = ""
        self._sides: dict[str, subprocess.Popen[bytes]] = {}
        self._line: subprocess.Popen[bytes] | None = None
        try:
            for side in ("server", "node"):
                self._sides[side] = _sleeper()
            if not self._join_by_veth(network):
                self._join_by_line(network)
        except BaseException:
            self.close()
            raise

    def _join_by_veth(self, network: Network) -> bool:
        link = ["ip", "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE]
        self.run("server", *link, "netns", str(self._sides["node"].pid))
        if not network.is_plain:
            words = ["tc", "qdisc", "replace", "dev", DEVICE, "root", "netem", *network.netem()]
            for side in self._sides:
                done = subprocess.run(self.argv(side, *words), capture_output=True, text=True)
                if done.returncode:
                    self.run("server", "ip", "link", "delete", DEVICE)
                    return False
            for side in self._sides:  # packets of a line, not the large ones of one host
                self.run(side, "ip", "link", "set", DEVICE, "gso_max_segs", "1", check=False)
        self._bring_up()
        self.how = "veth" if network.is_plain else "veth, netem"
        return True

    def _join_by_line(self, network: Network) -> None:
        names = ("lk1", "lk2")
        argv = ["unshare", "--net", str(build_line()), *network.line(), *names]
        line = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._line = line
        assert line.stdin is not None and line.stdout is not None and line.stderr is not None
        if line.stdout.readline() != b"ready\n":
            raise OSError(line.stderr.read().decode("utf-8", "replace"))
        for name, (side, machine) in zip(names, self._sides.items(), strict=True):
            words = ["ip", "link", "set", name, "netns", str(machine.pid), "name", DEVICE]
            subprocess.run(
                ["nsenter", "--target", str(line.pid), "--net", "--", *words],
                check=True,
                capture_output=True,
                text=True,
            )
            self.run(side, "ip", "link", "set", DEVICE, "txqueuelen", "1000")
        self._bring_up()
        line.stdin.write(b"go\n")
        line.stdin.flush()
        self.how = "tun, line"

    def _bring_up(self) -> None:
        for side, address in (("server", SERVER), ("node", NODE)):
            self.run(side, "ip", "address", "add", f"{address}/24", "dev", DEVICE)
            for device in ("lo", DEVICE):
                self.run(side, "ip", "link", "set", device, "up")

    def argv(self, side: str, *command: str | Path) -> list[str]:
        """`command` on that machine: its network, its mounts."""
        pid = str(self._sides[side].pid)
        where = f"--wd={os.getcwd()}"
        return ["nsenter", "--target", pid, "--net", "--mount", where, "--", *map(str, command)]

    def run(self, side: str, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            self.argv(side, *command), check=check, capture_output=True, text=True
        )
        return done.stdout

    def bytes_received(self, side: str) -> int:
        """What came over the line to that machine so far, packets' heads included."""
        counter = f"/proc/{self._sides[side].pid}/net/dev"
        for line in Path(counter).read_text(encoding="ascii").splitlines():
            name, _, numbers = line.partition(":")
            if name.strip() == DEVICE:
                return int(numbers.split()[0])
        raise AssertionError(f"{DEVICE} is not there")

    def close(self) -> None:
        for process in (*self._sides.values(), *((self._line,) if self._line else ())):
            end(process)

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()


def build_line() -> Path:
    """line/main.go, built once for its text, where no other user could put something."""
    key = hashlib.sha256((LINE / "main.go").read_bytes()).hexdigest()[:16]
    target = BUILT / f"line-{key}"
    if not target.exists():
        go = shutil.which("go")
        if go is None:
            raise OSError("the kernel has no netem, and there is no Go to build tests/faults/line")
        BUILT.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{os.getpid()}")
        subprocess.run(
            [go, "build", "-trimpath", "-o", str(part), "."],
            cwd=LINE,
            env=os.environ | {"CGO_ENABLED": "0"},
            check=True,
            capture_output=True,
            text=True,
        )
        part.rename(target)
    return target


def _sleeper() -> subprocess.Popen[bytes]:
    """A process that only holds its namespaces; it is in them when this returns."""
    argv: Sequence[str] = ["unshare", "--net", "--mount", "--propagation", "private"]
    process = subprocess.Popen(
        [*argv, "sh", "-c", "echo in; exec sleep 86400"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stderr is not None
    if process.stdout.readline() != b"in\n":
        said = process.stderr.read().decode("utf-8", "replace")
        raise OSError(f"unshare: {said.strip()}")
    return process


def end(process: subprocess.Popen[bytes], seconds: float = 10) -> None:
    """End a process that we started: kindly, then not."""
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
