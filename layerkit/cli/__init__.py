"""The command line, the composition root: reads arguments and the environment, wires edges into
jobs, turns errors into exit statuses.

The verbs are in the modules of this package; what they need loads when they run, so that
``layerkit --help`` stays quick.

Exit statuses: docs/errors.md.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import click

from layerkit.cli.agent import add_agent_verbs
from layerkit.cli.bundle import add_bundle_verb
from layerkit.cli.common import State, error_document
from layerkit.cli.debug import add_debug_verbs
from layerkit.cli.hook import add_hook_verb
from layerkit.cli.keeping import add_keeping_verbs
from layerkit.cli.look import add_look_verbs
from layerkit.cli.make import add_make_verbs
from layerkit.cli.pulling import add_pull_verb
from layerkit.cli.pushing import add_push_verb
from layerkit.cli.serving import add_serving_verbs
from layerkit.cli.vet import add_vet_verb
from layerkit.errors import LayerkitError, StoreFullError, UsageError

__all__ = ["cli", "run"]

INTERRUPTED = 130
READER_GONE = 141  # what a shell reports for SIGPIPE
TERMINATED = 143


class _Verbs(click.Group):
    """Verbs in the order of use, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 88},
    epilog="Every option has an environment twin: LAYERKIT_STORE for --store, and so on.",
)
def cli() -> None:
    """Build Go functions as small OCI images and move only what changed to each node."""


add_make_verbs(cli)
add_push_verb(cli)
add_serving_verbs(cli)
add_hook_verb(cli)
add_pull_verb(cli)
add_bundle_verb(cli)
add_keeping_verbs(cli)
add_agent_verbs(cli)
add_look_verbs(cli)
add_vet_verb(cli)
add_debug_verbs(cli)


def run(argv: Sequence[str]) -> int:
    """Run one command line; returns its exit status and leaves nothing behind."""
    if os.environ.get("_LAYERKIT_COMPLETE"):
        cli.main(args=list(argv), prog_name="layerkit")  # the shell asks for completions
    state = State()
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # `__main__` says why
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return _run(argv, state)
    except BrokenPipeError:
        _give_up_output()
        return READER_GONE
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except LayerkitError as exc:
        return _report(exc, state)
    except OSError as exc:
        if exc.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            state.console.crash(exc)
            return LayerkitError.exit_status
        _give_up_output()  # what edges write raises StoreFullError
        return _report(
            StoreFullError("no space left for the output", cause=str(exc.strerror)), state
        )
    except Exception as exc:  # the last frame: everything else is a bug of ours
        state.console.crash(exc)
        return LayerkitError.exit_status


def _run(argv: Sequence[str], state: State) -> int:
    try:
        with cli.make_context("layerkit", list(argv), obj=state) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as exc:
        sys.stderr.write(exc.format_message() + "\n")
        return UsageError.exit_status
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.ClickException as exc:
        context_ = getattr(exc, "ctx", None)
        path = context_.command_path if context_ is not None else "layerkit"
        message = exc.format_message().rstrip(".")
        message = message[:1].lower() + message[1:]
        raise UsageError(message, hint=f"run '{path} -h' for its options") from exc
    return 0


def _give_up_output() -> None:
    """What is still to be written to stdout goes nowhere: the interpreter flushes it at its end."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _report(error: LayerkitError, state: State) -> int:
    if state.as_json:
        try:
            state.console.document(error_document(error))
        except OSError:  # nobody reads, or there is no space: the status and stderr say it
            _give_up_output()
    state.console.error(error)
    return error.exit_status


def _terminate(signum: int, frame: FrameType | None) -> None:
    """SIGTERM unwinds like Ctrl-C, so that temporary files go away."""
    raise SystemExit(TERMINATED)
