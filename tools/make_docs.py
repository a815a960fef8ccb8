"""Write what is generated: docs/cli.md from click, docs/errors.md from the error tree, README's
tables from bench/results, and the version of the Go module in examples/feed. `--check` writes
nothing and names what is out of date.

    make docs
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from layerkit import errors
from layerkit.cli import cli
from layerkit.edges.goruntime import required_texts

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- begin: bytes a deploy moves (tools/demo.py --record; make docs) -->"
PEERS_BEGIN = "<!-- begin: ours and the peers' (make bench; make docs) -->"
END = "<!-- end -->"
PEERS = (
    "whole, gzip -6",
    "whole, zstd -19",
    "casync 8K",
    "zstd -19 --patch-from",
    "hdiffpatch",
    "bsdiff4",
    "layerkit",
)
PEER_CASES = {
    "base -> a_literal": "one string",
    "base -> b_logline": "a log line",
    "base -> c1_base64": "a new route",
    "zerolog 1.34.0 -> 1.35.1": "a dependency's release",
}


def generate() -> dict[Path, str]:
    """What each generated file must hold."""
    return {
        ROOT / "docs/cli.md": cli_page(),
        ROOT / "docs/errors.md": errors_page(),
        ROOT / "README.md": readme_page(),
        **required_texts(ROOT / "examples/feed"),
    }


def cli_page() -> str:
    facts = {**cli.context_settings, "terminal_width": 88, "max_content_width": 88}
    context = click.Context(cli, info_name="layerkit", **facts)
    parts = [
        "# Command line",
        "Written by `make docs` from the commands. Every option has an environment twin "
        "named after it: `LAYERKIT_STORE` for `--store`, `LAYERKIT_DRY_RUN` for `--dry-run`. "
        "stdout carries only the result; talk is on stderr, silent when that is no terminal or "
        "with `-q`. `--json` prints one document. Exit statuses: [errors.md](errors.md).",
        f"```text\n{cli.get_help(context).strip()}\n```",
    ]
    for name in cli.list_commands(context):
        parts += _verb_parts(cli, context, name)
    return "\n\n".join(parts) + "\n"


def _verb_parts(group: click.Group, context: click.Context, name: str) -> list[str]:
    """A verb's part of the page, and those of the verbs below it."""
    command = group.get_command(context, name)
    if command is None or command.hidden:
        return []
    inner = click.Context(
        command, info_name=name, parent=context, terminal_width=88, max_content_width=88
    )
    parts = [f"## {inner.command_path}\n\n```text\n{command.get_help(inner).strip()}\n```"]
    if isinstance(command, click.Group):
        for below in command.list_commands(inner):
            parts += _verb_parts(command, inner, below)
    return parts


def error_classes() -> list[tuple[int, type[errors.LayerkitError]]]:
    """The tree, depth first, in the order of the module."""
    found: list[tuple[int, type[errors.LayerkitError]]] = []

    def walk(kind: type[errors.LayerkitError], depth: int) -> None:
        found.append((depth, kind))
        for below in (getattr(errors, name) for name in errors.__all__):
            if kind in below.__bases__:
                walk(below, depth + 1)

    walk(errors.LayerkitError, 0)
    return found


def errors_page() -> str:
    rows = [
        "| code | meaning | exit status | HTTP status | retry may help | class |",
        "|---|---|---|---|---|---|",
    ]
    for depth, kind in error_classes():
        meaning = (kind.__doc__ or "").strip().splitlines()[0]
        retry = "yes" if kind.retriable else "no"
        rows.append(
            f"| `{kind.code}` | {meaning} | {kind.exit_status} | {kind.http_status} | {retry} "
            f"| {'· ' * depth}`{kind.__name__}` |"
        )
    return f"""# Errors

Written by `make docs` from `layerkit/errors.py`. A code is the same word on the terminal, in
`--json` and in the chunk server's `{{"errors": [{{"code", "message", "detail"}}]}}`.

On the terminal an error is `error:` (what, with its code), `cause:` (got, want, where) and, where
there is something to try, `hint:`. Output of a tool that failed (compile errors with file and line)
follows `cause:` as the tool wrote it. A traceback appears only for status 1 or with `-vv`.

## Exit statuses

| status | meaning |
|---|---|
| 0 | done |
| 1 | unexpected: a bug |
| 2 | usage |
| 3 | partly done |
| 4 | not found |
| 5 | bytes are wrong: format or digest |
| 6 | server or registry failed; a retry may help |
| 7 | local store or disk: locked, full |
| 8 | a tool failed: go, docker |
| 130 | interrupted |
| 141 | whoever read stdout went away |
| 143 | terminated |

Read an unknown status as failure.

## Codes

{chr(10).join(rows)}
"""


def demo_table(document: dict[str, object]) -> str:
    """README's table, from the document that the demo wrote."""
    rows = ["| pull | how | bytes moved | requests | time | of whole layers |"]
    rows.append("|---|---|---:|---:|---:|---:|")
    pulls = document["pulls"]
    assert isinstance(pulls, list)
    for pull in pulls:
        share = 100 * pull["moved_size"] / pull["whole_size"]
        rows.append(
            f"| {pull['what']} | layerkit | **{pull['moved_size']:,}** | {pull['request_count']} "
            f"| {pull['seconds']:.2f} s | **{share:.{2 if share < 1 else 1}f} %** |"
        )
        rows.append(
            f"| | whole layers | {pull['whole_size']:,} | {pull['whole_request_count']} "
            f"| {pull['whole_seconds']:.2f} s | 100 % |"
        )
    about = (
        f"`make demo` on {document['machine']}, {document['date']}, {document['go']}; node and "
        "server on one machine, so the time is work, not network."
    )
    return "\n".join(rows) + f"\n\n{about}"


def peers_table(document: dict[str, Any]) -> str:
    """README's comparison, from the newest results of `make bench`."""
    rows = document["tables"]["deltas"]["rows"]
    lines = ["| bytes to move | " + " | ".join(PEER_CASES.values()) + " |"]
    lines.append("|---|" + "---:|" * len(PEER_CASES))
    for peer in PEERS:
        cells = []
        for case in PEER_CASES:
            size = rows[case].get(peer, {}).get("size")
            cells.append("-" if size is None else f"{size:,}")
        name, bold = (f"**{peer} delta**", "**") if peer == "layerkit" else (peer, "")
        lines.append(f"| {name} | " + " | ".join(f"{bold}{cell}{bold}" for cell in cells) + " |")
    about = f"Sizes are exact; {document['machine']}, {document['date']}, `make bench`."
    return "\n".join(lines) + f"\n\n{about} All rows and what we miss: docs/benchmarks.md."


def newest_results() -> dict[str, Any]:
    newest = sorted((ROOT / "bench/results").glob("20*.json"))[-1]
    found: dict[str, Any] = json.loads(newest.read_text(encoding="utf-8"))
    return found


def readme_page() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    document = json.loads((ROOT / "bench/results/demo.json").read_text(encoding="utf-8"))
    for begin, table in (
        (BEGIN, demo_table(document)),
        (PEERS_BEGIN, peers_table(newest_results())),
    ):
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{table}\n{END}{rest.split(END, 1)[1]}"
    return text


def main() -> int:
    stale = []
    for path, text in generate().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(str(path.relative_to(ROOT)))
            if "--check" not in sys.argv[1:]:
                path.write_text(text, encoding="utf-8")
    if stale:
        print("out of date:" if "--check" in sys.argv[1:] else "wrote:", *stale)
    return 1 if stale and "--check" in sys.argv[1:] else 0


if __name__ == "__main__":
    sys.exit(main())
