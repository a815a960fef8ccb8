"""The Go module of functions: start, warm requests, memory limit, GC tuner, huge pages, portrait.

Each number is a ratio of programs that ran in turn in one run (bench/runtime has them). The memory
limit is a real cgroup v1 below the one that this process is in, removed at the end; huge pages are
set aside for the time of the run.

What needs cgroup v2 runs in a virtual machine (bench/vm.py), where that can be had.

python bench/functions.py [start,tls,warm,limit,limit_v2,tuner,pages,portrait,benchmarks]
"""

from __future__ import annotations

import contextlib
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
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import vm
from build import BENCH, GO
from report_functions import read_benchstat

Table = dict[str, Any]
PROGRAMS = BENCH / "runtime"
MODULE = BENCH.parent / "go-runtime"
PLAIN = {"LAYERKIT_RUNTIME": "off"}  # Go's defaults
MEMORY_CGROUPS = Path("/sys/fs/cgroup/memory")
LIMIT = 3_200_000_000  # bytes: the platform's largest function
LIVE_MB = 2384  # 2.5 GB
STATIC = ("20", "50", "100", "200")
PATTERNS = {  # of a function limited to 512 MiB: MB alive, MB that come and go, requests/s, KB each
    "small live heap, much garbage": (20, 0, 2000, 64),
    "large live heap": (280, 0, 1000, 32),
    "live heap comes and goes": (60, 200, 1000, 32),
}
PATTERN_LIMIT = 512 << 20
PATTERN_SECONDS = 15
PATTERN_ROUNDS = 3
LOAD_SECONDS = 30
START_ROUNDS = 30
PAGE_COUNT = 520  # huge pages for a table of 1 GB
WRK_ROUNDS = 5
PACE = "10ms"  # between two requests, where they do not come back to back


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def build_programs(folder: Path) -> dict[str, Path]:
    """The programs, static as layerkit builds them."""
    environment = os.environ | {"CGO_ENABLED": "0", "GOTOOLCHAIN": GO, "GOFLAGS": ""}
    found = {}
    for name in ("fn", "probe", "heap", "tlb", "vm"):
        found[name] = folder / name
        argv = ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", str(found[name]), f"./{name}"]
        subprocess.run(argv, cwd=PROGRAMS, env=environment, check=True)
    return found


def ahead(argv: Sequence[str | Path | float]) -> list[str]:
    """A command that runs before what else the machine does, where that is allowed: Go counts GC by
    the clock, so others' time would count, too."""
    first = ["nice", "-n", "-19"] if os.geteuid() == 0 else []
    return [*first, *map(str, argv)]


def run(argv: Sequence[str | Path | float], environment: dict[str, str] | None = None) -> Any:
    done = subprocess.run(
        ahead(argv),
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return json.loads(done.stdout)


# --- start and warm requests --------------------------------------------------------------------


def measure_start(programs: dict[str, Path]) -> Table:
    """Seconds from exec to the first answered byte, in turn."""
    ways = {
        "bare net/http": (["bare"], [], PLAIN),
        "serve": (["serve"], [], {}),
        "serve, a probe first": (["serve"], ["-probe"], {}),
    }
    samples: Table = {name: {"exec": [], "first": []} for name in ways}
    for _ in range(START_ROUNDS):
        for name, (mode, flags, environment) in ways.items():
            probe = [programs["probe"], "-rounds", "1", "-count", "1", "-path", "/heavy?x=1"]
            (one,) = run([*probe, *flags, programs["fn"], *mode], environment)
            samples[name]["exec"].append(one["exec"])
            samples[name]["first"].append(one["latencies"][0])
    return samples


def measure_tls(programs: dict[str, Path]) -> Table:
    """Seconds from exec to the first byte of TLS, and of the first handshake, with certificate and
    roots read at the handshake, by a probe before it, or while the program starts."""
    ways = {
        "read at the first handshake": ("tls", []),
        "read by a probe before it": ("tls", ["-probe"]),
        "read by the start": ("tls-eager", []),
    }
    samples: Table = {name: {"exec": [], "handshake": [], "first": []} for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        make_certificate(Path(folder))
        for _ in range(START_ROUNDS):
            for name, (mode, flags) in ways.items():
                argv = [programs["probe"], "-tls", "-rounds", "1", "-count", "1", *flags]
                (one,) = run([*argv, programs["fn"], mode], {"CERTIFICATES": folder})
                samples[name]["exec"].append(one["exec"])
                samples[name]["handshake"].append(one["handshake"])
                samples[name]["first"].append(one["latencies"][0])
    return samples


def make_certificate(folder: Path) -> None:
    """An RSA certificate of localhost as many have: reading it checks its key."""
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    argv += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"), "-days", "2"]
    subprocess.run(argv, check=True, capture_output=True)


def measure_warm(programs: dict[str, Path]) -> Table:
    """The first request against the hundredth, after a start with and without a probe. At a pace
    each request finds the function idle, as the first does; back to back the hundredth finds its
    threads still spinning, which no probe can give the first."""
    found: Table = {}
    for pace in (PACE, "0s"):
        for path in ("/?name=you", "/heavy?x=1"):
            for name, mode, flags in (
                ("bare net/http", "bare", []),
                ("serve, a probe first", "serve", ["-probe"]),
            ):
                argv = [programs["probe"], "-rounds", START_ROUNDS, "-count", "100", "-path", path]
                argv += ["-gap", pace, *flags, programs["fn"], mode]
                samples = run(argv, PLAIN if mode == "bare" else {})
                how = "back to back" if pace == "0s" else f"{PACE} apart"
                found[f"{path.partition('?')[0]} {name}, {how}"] = {
                    "first": [one["latencies"][0] for one in samples],
                    "hundredth": [one["latencies"][-1] for one in samples],
                }
    return found


# --- memory -------------------------------------------------------------------------------------


@contextlib.contextmanager
def cgroup(limit: int) -> Iterator[Path]:
    """A memory cgroup of `limit` bytes, v1, beneath that of this process."""
    own = next(
        line.split(":", 2)[2]
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if ":memory:" in line
    )
    folder = MEMORY_CGROUPS / own.strip("/") / f"layerkit-bench-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / "memory.limit_in_bytes").write_text(str(limit))
        yield folder
    finally:
        for _ in range(100):
            with contextlib.suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.1)


def run_limited(
    limit: int, argv: Sequence[str | Path | float], environment: dict[str, str]
) -> Table:
    """What the program printed, or how it ended; and the peak that the kernel counted."""
    with cgroup(limit) as folder:
        entering = f'echo $$ > {folder}/cgroup.procs && exec "$@"'
        done = subprocess.run(
            ["sh", "-c", entering, "sh", *ahead(argv)],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        peak = int((folder / "memory.max_usage_in_bytes").read_text())
    found: Table = {"status": done.returncode, "counted": peak}
    if done.returncode == 0:
        found |= json.loads(done.stdout)
    say(f"{' '.join(map(str, argv[1:]))} {environment}: {found}")
    return found


def measure_limit(programs: dict[str, Path]) -> Table:
    """2.5 GB alive under a limit of 3.2 GB, 1,000 requests a second of 64 KB garbage each: enough
    to reach any limit within the time."""
    argv = [programs["heap"], "-live", LIVE_MB, "-seconds", LOAD_SECONDS, "-rate", 1000]
    argv += ["-garbage", 64]
    return {
        "layerkit": run_limited(LIMIT, argv, {}),
        "Go's defaults": run_limited(LIMIT, argv, PLAIN),
        "GOMEMLIMIT alone, by hand": run_limited(
            LIMIT, argv, PLAIN | {"GOMEMLIMIT": str(int(LIMIT * 0.9))}
        ),
    }


def measure_limit_v2(programs: dict[str, Path]) -> Table:
    """What the kernel did to each: for behaviour, not time, since the machine is emulated."""
    if why := vm.missing():
        return {"missing": why}
    with tempfile.TemporaryDirectory() as folder:
        init, heap = programs["vm"], {"heap": programs["heap"]}
        return vm.run_cases(init, heap, vm.limit_cases(), Path(folder))


def measure_tuner(programs: dict[str, Path]) -> Table:
    """The tuner and fixed values of GOGC, under the same memory limit by the cgroup, in turn."""
    found: Table = {}
    for name, (live, swing, rate, garbage) in PATTERNS.items():
        argv = [programs["heap"], "-live", live, "-swing", swing, "-rate", rate]
        argv += ["-garbage", garbage, "-seconds", PATTERN_SECONDS]
        ways = {"layerkit": {}, **{f"GOGC={value}": {"GOGC": value} for value in STATIC}}
        runs: dict[str, list[Table]] = {way: [] for way in ways}
        for _ in range(PATTERN_ROUNDS):
            for way, environment in ways.items():
                runs[way].append(run_limited(PATTERN_LIMIT, argv, environment))
        found[name] = {way: medians(samples) for way, samples in runs.items()}
    return found


def medians(samples: Sequence[Table]) -> Table:
    """Of each number its median; the worst of how they ended, and the highest peak."""
    bad = [one for one in samples if one["status"]]
    if bad:
        return bad[0]
    found = {key: statistics.median(one[key] for one in samples) for key in samples[0]}
    return found | {"counted": max(one["counted"] for one in samples)}


# --- huge pages ---------------------------------------------------------------------------------


@contextlib.contextmanager
def huge_pages(count: int) -> Iterator[int]:
    """Set huge pages aside; gives how many there are."""
    knob = Path("/proc/sys/vm/nr_hugepages")
    before = knob.read_text()
    try:
        with contextlib.suppress(OSError):
            knob.write_text(str(count))
        yield int(knob.read_text())
    finally:
        with contextlib.suppress(OSError):
            knob.write_text(before)


def measure_pages(programs: dict[str, Path]) -> Table:
    """Nanoseconds of a random read in 1 GB."""
    found = {"Go's heap": run([programs["tlb"], "-where", "heap"])}
    found["pool"] = run([programs["tlb"], "-where", "pool"])
    with huge_pages(PAGE_COUNT) as count:
        if count >= PAGE_COUNT:
            found["pool, huge pages set aside"] = run([programs["tlb"], "-where", "pool"])
    say(str(found))
    return found


# --- portrait -----------------------------------------------------------------------------------


def measure_portrait(programs: dict[str, Path]) -> Table:
    """Requests a second of the hello handler, bare and watched, in turn."""
    if shutil.which("wrk") is None:
        return {"missing": "wrk is not installed"}
    found: Table = {"bare": [], "watched": []}
    for _ in range(WRK_ROUNDS):
        for mode, rates in found.items():
            rates.append(_load(programs["fn"], "serve" if mode == "bare" else mode))
    say(str({mode: statistics.median(rates) for mode, rates in found.items()}))
    return found


def _load(program: Path, mode: str) -> float:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"PORT": str(port), "HOST": "127.0.0.1"}
    process = subprocess.Popen([program, mode], env=environment, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/?name=you"
    try:
        for _ in range(500):
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
                break
            time.sleep(0.01)
        argv = ["wrk", "-t1", "-c32", "-d4s", url]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        found = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
        assert found, done.stdout
        return float(found[1])
    finally:
        process.terminate()
        process.wait()


# --- benchmarks of the module -------------------------------------------------------------------


def measure_benchmarks(programs: dict[str, Path]) -> Table:
    """The module's own benchmarks as benchstat sums them up: value, unit and spread of each."""
    benchstat = shutil.which("benchstat")
    if benchstat is None:
        return {"missing": "benchstat is not on PATH (golang.org/x/perf/cmd/benchstat)"}
    environment = os.environ | {"GOTOOLCHAIN": GO, "GOFLAGS": "", "CGO_ENABLED": "0"}
    argv = ["go", "test", "-run", "^$", "-bench", ".", "-benchmem", "-count", "6"]
    argv += ["-benchtime", "0.1s", "./..."]
    done = subprocess.run(
        argv, cwd=MODULE, env=environment, capture_output=True, text=True, check=True
    )
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as raw:
        raw.write(done.stdout)
        raw.flush()
        said = subprocess.run(
            [benchstat, "-format", "csv", raw.name], capture_output=True, text=True, check=True
        )
    return read_benchstat(said.stdout)


PARTS = {
    "start": measure_start,
    "tls": measure_tls,
    "warm": measure_warm,
    "limit": measure_limit,
    "limit_v2": measure_limit_v2,
    "tuner": measure_tuner,
    "pages": measure_pages,
    "portrait": measure_portrait,
    "benchmarks": measure_benchmarks,
}


def measure(parts: Sequence[str] = tuple(PARTS)) -> Table:
    with tempfile.TemporaryDirectory() as name:
        programs = build_programs(Path(name))
        found = {}
        for part in parts:
            say(f"-- {part}")
            found[part] = PARTS[part](programs)
    return found


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1].split(",") if sys.argv[1:] else list(PARTS)), indent=1))
