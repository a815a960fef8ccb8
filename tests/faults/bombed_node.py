"""A node with little memory: bombed_node.py GOOD_URL BAD_URL GOOD BAD FOLDER ROOM old|none

It pulls GOOD honestly, which loads all that is loaded on first use, then BAD with ROOM more bytes
of address space, into the same store (old) or a new one (none). Prints a JSON document: the code of
the refusal or "", whether the store is whole, and by how many bytes the peak of its memory grew.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "fuzz"), str(HERE.parent.parent)]

from bounded import limit_memory  # noqa: E402

from layerkit.edges.disk import Disk  # noqa: E402
from layerkit.edges.remote import Remote  # noqa: E402
from layerkit.edges.store import Store  # noqa: E402
from layerkit.errors import LayerkitError  # noqa: E402
from layerkit.formats.oci import Platform  # noqa: E402
from layerkit.formats.reference import Reference  # noqa: E402
from layerkit.jobs.pull import pull  # noqa: E402


def pull_one(url: str, ref: str, store: Path) -> None:
    with Remote(url, pauses=(0.01,)) as remote, Store(store, Disk()) as opened:
        pull(Reference.parse(ref), remote, opened, platform=Platform("linux", "amd64"))


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def main(argv: list[str]) -> None:
    good_url, bad_url, good, bad, folder, room, held = argv
    store = Path(folder) / "store"
    pull_one(good_url, good, store)
    if held == "none":
        store = Path(folder) / "empty"
    before, code = peak(), ""
    limit_memory(int(room))
    try:
        pull_one(bad_url, bad, store)
    except LayerkitError as exc:
        code = exc.code
    grown = peak() - before
    with Store(store, Disk()) as opened:
        good_store = opened.verify().good
    print(json.dumps({"code": code, "good": good_store, "grown": grown}))


if __name__ == "__main__":
    main(sys.argv[1:])
