"""How much slower is a rebuild after a one-line edit than bare `go build`? Prints one document.

    python bench/rebuild.py [ROUNDS]

Interleaves both on a copy of examples/hello, with a warm Go cache. `go_ratio` is the time until go
has linked layerkit's binary, the package list and all else that shares the cores meanwhile
included, against bare `go build`; the issue's limit is 1.15. `packing` is all the rest: symbols,
layers, forms, chunks, the layout.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from layerkit.edges.tools import Tools
from layerkit.formats.reference import Reference
from layerkit.jobs import build as job

HELLO = Path(__file__).parent.parent / "examples" / "hello"
FLAGS = ["-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid="]


def main(rounds: int) -> None:
    env = dict(os.environ)
    go = Tools(env).find_go()
    raw: dict[str, list[float]] = {"bare": [], "go_part": [], "whole": []}
    link = job.link

    def timed(*args: object) -> object:
        start = time.perf_counter()
        found = link(*args)  # type: ignore[arg-type]
        raw["go_part"].append(time.perf_counter() - start)
        return found

    job.link = timed  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "hello"
        shutil.copytree(HELLO, folder)
        source = (folder / "main.go").read_text()
        for number in range(rounds + 1):
            for kind in ("bare", "whole"):
                edited = source.replace("hello from layerkit", f"hello {number} {kind}")
                (folder / "main.go").write_text(edited)
                start = time.perf_counter()
                if kind == "bare":
                    argv = [str(go.path), "build", *FLAGS, "-o", f"{name}/binary", "."]
                    own = dict(go.environment) | {"CGO_ENABLED": "0"}
                    subprocess.run(argv, cwd=folder, env=own, check=True)
                else:
                    ref = Reference.parse("hello:bench")
                    job.build(folder, ref, layout_path=Path(name) / "layout", env=env)
                raw[kind].append(time.perf_counter() - start)
    median = {kind: statistics.median(times[1:]) for kind, times in raw.items()}  # first warms up
    document = {
        "go": go.release,
        "rounds": rounds,
        "seconds": {kind: [round(value, 4) for value in times[1:]] for kind, times in raw.items()},
        "go_ratio": round(median["go_part"] / median["bare"], 3),
        "packing_seconds": round(median["whole"] - median["go_part"], 3),
        "whole_ratio": round(median["whole"] / median["bare"], 3),
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
