"""What `layerkit vet` says of the standard library and of large public modules, to judge by hand.

    python bench/vet_sample.py [-n 50] [--seed 7] [MODULE@VERSION ...] > table.md

Gets the modules through the go command, copies each into a scratch folder (go may not write to the
module cache), runs the passes over all of its packages, and prints counts and a sample of all
findings, drawn by the seed, as a table whose last columns a reader fills in.
docs/vet.md holds the last such table.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from layerkit.jobs.vet import ANALYZERS

TOOL = Path(__file__).parent.parent / "go-vet"
STD = "std"
MODULES = (
    "github.com/moby/moby/v2@v2.0.0-beta.24",
    "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c",
    "github.com/containerd/containerd/v2@v2.4.2",
    "github.com/distribution/distribution/v3@v3.1.1",
    "github.com/sigstore/cosign/v3@v3.1.3",
    "github.com/prometheus/prometheus@v0.316.0",
)
SIZE, SEED = 50, 7


@dataclass(frozen=True, order=True)
class Found:
    """A finding; `place` is file:line:column in the module."""

    module: str
    place: str
    analyzer: str
    message: str


def go(argv: Sequence[str], folder: Path) -> str:
    """What the go command, or a program that calls it, prints; its messages go to ours."""
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": "-mod=mod"}
    done = subprocess.run(
        argv, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def copy_module(name: str, scratch: Path) -> Path:
    """The sources of module@version, where go may write beside them."""
    folder = Path(json.loads(go(["go", "mod", "download", "-json", name], scratch))["Dir"])
    copy = scratch / name.replace("/", "_")
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    copy.chmod(0o755)
    for path in copy.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    return copy


def look(module: str, scratch: Path, tool: Path) -> list[Found]:
    """All findings of a module, in the order of their places."""
    if module == STD:
        folder, pattern = Path(go(["go", "env", "GOROOT"], scratch).strip()) / "src", STD
    else:
        folder, pattern = copy_module(module, scratch), "./..."
    print(f"{module}:", end=" ", file=sys.stderr, flush=True)
    lines = go([str(tool), str(folder), pattern], folder).splitlines()
    return sorted(Found(module, **json.loads(line)) for line in lines)


def draw(found: Iterable[Found], size: int, seed: int) -> list[Found]:
    """The sample: without putting back, the same for the same findings, size and seed."""
    every = sorted(found)
    return sorted(random.Random(seed).sample(every, min(size, len(every))))


def short_name(module: str) -> str:
    """The name of a module's repository, without its major version."""
    parts = module.partition("@")[0].split("/")
    return parts[-2] if parts[-1].lstrip("v").isdigit() else parts[-1]


def counts_table(found: Sequence[Found], modules: Sequence[str]) -> str:
    counts = Counter((one.module, one.analyzer) for one in found)
    rows = ["| module | " + " | ".join(ANALYZERS) + " | all |", "|---" * (len(ANALYZERS) + 2) + "|"]
    for module in modules:
        row = [counts[module, analyzer] for analyzer in ANALYZERS]
        rows.append(f"| {module} | " + " | ".join(map(str, [*row, sum(row)])) + " |")
    every = [sum(counts[module, analyzer] for module in modules) for analyzer in ANALYZERS]
    rows.append("| all | " + " | ".join(map(str, [*every, sum(every)])) + " |")
    return "\n".join(rows)


def sample_table(sample: Sequence[Found]) -> str:
    rows = ["| # | module | place | pass | message | right? | why |", "|---" * 7 + "|"]
    for number, one in enumerate(sample, 1):
        module = short_name(one.module)
        short = one.message.partition(":")[0].replace("|", "\\|")
        rows.append(f"| {number} | {module} | {one.place} | {one.analyzer} | {short} |  |  |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE@VERSION", default=MODULES)
    parser.add_argument("-n", dest="size", type=int, default=SIZE, help="findings in the sample")
    parser.add_argument("--seed", type=int, default=SEED)
    given = parser.parse_args()
    modules = [STD, *given.modules]
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        tool = scratch / "sample"
        go(["go", "build", "-o", str(tool), "./internal/sample"], TOOL)
        found = [one for module in modules for one in look(module, scratch, tool)]
    print(f"Seed {given.seed}, {len(found)} findings.\n")
    print(counts_table(found, modules))
    print()
    print(sample_table(draw(found, given.size, given.seed)))


if __name__ == "__main__":
    main()
