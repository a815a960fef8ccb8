"""A node that is warm: it pulls what it is told on its standard input, a JSON document a line, and
answers with one. What the agent does at each new version, without its watching; `prepare` is what
the agent does when it is idle: forms of what came plainly, and a spare tree for the next version.

{"url": ..., "ref": ..., "store": folder, "rootfs": folder, "spares": folder, "prepare": bool}
-> {"seconds", "moved_size", ...}
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from layerkit.edges.disk import Disk
from layerkit.edges.remote import Remote
from layerkit.edges.spares import Spares
from layerkit.edges.store import Store
from layerkit.formats.oci import Platform
from layerkit.formats.reference import Reference
from layerkit.jobs.pull import make_spare, pull, rebuild_forms

PLATFORM = Platform("linux", "amd64")


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        started = time.perf_counter()
        with (
            Remote(asked["url"], token=asked.get("token", "")) as remote,
            Store(Path(asked["store"]), Disk()) as store,
        ):
            ref = Reference.parse(asked["ref"])
            spares = Spares(Path(asked["spares"]), Disk()) if "spares" in asked else None
            result = pull(
                ref,
                remote,
                store,
                rootfs=Path(asked["rootfs"]) if "rootfs" in asked else None,
                spares=spares,
                platform=PLATFORM,
            )
            if asked.get("prepare"):
                rebuild_forms(ref, remote, store, platform=PLATFORM)
                if spares is not None:
                    make_spare(ref, remote, store, spares, platform=PLATFORM)
        answer = {
            "seconds": time.perf_counter() - started,
            "moved_size": result.moved_size,
            "request_count": result.request_count,
            "digest": str(result.digest),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
