"""The `layerkit` command: ``python -m layerkit`` and the console script. Everything is in cli."""

from __future__ import annotations

import sys

from layerkit.cli import run

__all__ = ["main"]


def main() -> None:
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
