"""Coverage-guided fuzzing of one target with atheris (libFuzzer), its corpus kept beside this file.

    .venv/bin/python -m pip install -e .[fuzz]
    .venv/bin/python tests/fuzz/run_atheris.py form --seconds 600
    .venv/bin/python tests/fuzz/run_atheris.py form --seconds 600 --work DIR   (to go on later)

New inputs gather in a work folder; at the end libFuzzer's merge keeps the fewest that reach the
same code, and what fits into the byte limit goes into tests/fuzz/corpus/TARGET. What ran is added
to bench/results/fuzz.json, from which docs/benchmarks.md is made. A finding ends the run: the input
is kept as corpus/TARGET/found-*, and `test_targets.py` fails until it is mended.

Memory is limited (RLIMIT_AS), so that an input which asks for much is a MemoryError: a finding.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RESULTS = ROOT / "bench" / "results" / "fuzz.json"
KEEP_SIZE = 25 << 10  # bytes of corpus kept for one target; eleven targets stay under 300 KB
SLOW_INPUT = 20  # seconds for one input: a finding
FINDINGS = ("Uncaught Python exception", "libFuzzer: timeout", "libFuzzer: deadly signal")


def fuzz(name: str, arguments: list[str]) -> None:
    """In the child: instrument, limit, run; libFuzzer ends the process."""
    import atheris

    sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT)]
    with atheris.instrument_imports(include=["layerkit.formats"]):
        import targets
    from bounded import limit_memory

    run = targets.TARGETS[name].run
    for seed in targets.TARGETS[name].seeds():
        run(seed)  # loads what is loaded on first use
    limit_memory()
    # a merge starts the first argument again, through a shell
    command = f"{sys.executable} {Path(__file__).resolve()} {name} --child"
    atheris.Setup([command, *arguments], run)
    atheris.Fuzz()


def child(name: str, arguments: list[str]) -> tuple[int, str]:
    argv = [sys.executable, __file__, name, "--child", *arguments]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.returncode, done.stdout.decode("utf-8", "replace")


def write_seeds(name: str, folder: Path) -> int:
    sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT)]
    import targets

    for data in (*targets.TARGETS[name].seeds(), *targets.corpus_of(name)):
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    return int(targets.TARGETS[name].max_size)


def last_number(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def keep(name: str, work: Path) -> int:
    """Merge the work folder into the fewest inputs, and keep the smallest of those; their bytes."""
    corpus = HERE / "corpus" / name
    with tempfile.TemporaryDirectory() as merged:
        child(name, ["-merge=1", merged, str(work)])
        inputs = sorted(Path(merged).iterdir(), key=lambda path: (path.stat().st_size, path.name))
        found = sorted(corpus.glob("found-*")) if corpus.exists() else []
        bound = [path.read_bytes() for path in found]
        total, kept = sum(map(len, bound)), []
        for path in inputs:
            total += path.stat().st_size
            if total > KEEP_SIZE:
                break
            kept.append(path.read_bytes())
        for path in corpus.glob("*") if corpus.exists() else []:
            if path not in found:
                path.unlink()
        corpus.mkdir(parents=True, exist_ok=True)
        for data in kept:
            (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    return sum(path.stat().st_size for path in corpus.iterdir())


def record(name: str, row: dict[str, object], results: Path) -> None:
    document = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    document.setdefault(name, []).append(row)
    results.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def run(name: str, seconds: int, work: Path, found: Path) -> tuple[int, str, dict[str, object]]:
    """One run over the inputs in `work`; those that fail go to the folder `found`."""
    max_size = write_seeds(name, work)
    started = time.monotonic()
    status, said = child(
        name,
        [
            f"-max_total_time={seconds}", f"-max_len={max_size}", "-rss_limit_mb=0",
            f"-timeout={SLOW_INPUT}", f"-artifact_prefix={found}/", "-print_final_stats=1",
            str(work),
        ],
    )  # fmt: skip
    row: dict[str, object] = {
        "date": datetime.date.today().isoformat(),
        "seconds": round(time.monotonic() - started),
        "executions": last_number(r"stat::number_of_executed_units:\s*(\d+)", said)
        or last_number(r"#(\d+)\s", said),
        "features": last_number(r"\bft: (\d+)", said),
        "findings": sum(said.count(mark) for mark in FINDINGS),
    }
    if not row["findings"]:  # libFuzzer ran out of memory itself
        for path in found.iterdir():
            path.unlink()
    return status, said, row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60, help="0: only merge")
    parser.add_argument("--work", type=Path, help="folder of the inputs found so far; kept")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--no-merge", action="store_true", help="leave the kept corpus alone")
    options = parser.parse_args()
    name, corpus = options.target, HERE / "corpus" / options.target
    status = 0
    with tempfile.TemporaryDirectory() as temporary:
        work, found = options.work or Path(temporary) / "work", Path(temporary) / "found"
        for folder in (work, found, corpus):
            folder.mkdir(parents=True, exist_ok=True)
        if options.seconds:
            status, said, row = run(name, options.seconds, work, found)
            print(f"{name}: {row}, status {status}", flush=True)
            if status:
                print(said[-3000:], flush=True)
            record(name, row, options.results)
        for path in found.iterdir():
            shutil.copy(path, corpus / f"found-{path.name.partition('-')[2][:16]}")
        if not options.no_merge:
            print(f"{name}: {keep(name, work)} bytes of corpus kept", flush=True)
    return status


if __name__ == "__main__":
    if sys.argv[2:3] == ["--child"]:
        fuzz(sys.argv[1], sys.argv[3:])
    else:
        sys.exit(main())
