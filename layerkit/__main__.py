"""The `layerkit` command: ``python -m layerkit`` and the console script. Everything is in cli."""

from __future__ import annotations

import signal
import sys

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C while modules load ends without a traceback; `run` then takes it over
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from layerkit.cli import run

__all__ = ["main"]


def main() -> None:
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
