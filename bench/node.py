"""A node that is warm: it pulls what it is told on its standard input, a JSON document a line, and
answers with one. What the agent does at each new version, without its watching.

{"url": ..., "ref": ..., "store": folder, "rootfs": folder} -> {"seconds", "moved_size", ...}
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from layerkit.edges.disk import Disk
from layerkit.edges.remote import Remote
from layerkit.edges.store import Store
from layerkit.formats.oci import Platform
from layerkit.formats.reference import Reference
from layerkit.jobs.pull import pull


def main() -> None:
    for line in sys.stdin:
        asked = json.loads(line)
        started = time.perf_counter()
        with (
            Remote(asked["url"], token=asked.get("token", "")) as remote,
            Store(Path(asked["store"]), Disk()) as store,
        ):
            result = pull(
                Reference.parse(asked["ref"]),
                remote,
                store,
                rootfs=Path(asked["rootfs"]) if "rootfs" in asked else None,
                platform=Platform("linux", "amd64"),
            )
        answer = {
            "seconds": time.perf_counter() - started,
            "moved_size": result.moved_size,
            "request_count": result.request_count,
            "digest": str(result.digest),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
