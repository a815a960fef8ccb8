"""Docs that follow from code say what the code says; every error code is documented and raised."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from layerkit import errors
from layerkit.cli import cli

ROOT = Path(__file__).parent.parent
# Classes that exist for their subclasses or for callers yet to come, with the reason.
NOT_RAISED = {
    "LayerkitError": "the root: its facts stand for a bug",
}


def make_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "tools/make_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def error_classes() -> list[type[errors.LayerkitError]]:
    return [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("name", ["docs/cli.md", "docs/errors.md", "README.md"])
def test_generated_docs_are_up_to_date(name: str) -> None:
    assert make_docs().generate()[ROOT / name] == (ROOT / name).read_text(encoding="utf-8"), (
        "run: make docs"
    )


def test_error_codes_are_unique() -> None:
    codes = [kind.code for kind in error_classes()]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("kind", error_classes())
def test_every_error_class_sets_its_own_code_and_sentence(kind: type[errors.LayerkitError]) -> None:
    assert "code" in vars(kind)
    assert kind.__doc__ and kind.__doc__.strip().endswith(".")


@functools.cache
def raised_names() -> set[str]:
    """Names that the package calls, raises, or chooses between to raise."""
    found: set[str] = set()
    for path in (ROOT / "layerkit").rglob("*.py"):
        if path.name == "errors.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            values = {
                ast.Call: lambda node: [node.func],
                ast.Raise: lambda node: [node.exc],
                ast.IfExp: lambda node: [node.body, node.orelse],
            }.get(type(node), lambda node: [])(node)
            found |= {value.id for value in values if isinstance(value, ast.Name)}
    return found


@pytest.mark.parametrize("kind", error_classes())
def test_every_error_class_is_raised_somewhere(kind: type[errors.LayerkitError]) -> None:
    assert (kind.__name__ in raised_names()) != (kind.__name__ in NOT_RAISED), kind.__name__


def test_every_verb_is_in_the_docs() -> None:
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    for name, command in cli.commands.items():
        assert command.hidden or f"## layerkit {name}\n" in page


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_decisions_are_numbered_without_gaps() -> None:
    numbers = [int(path.name[:4]) for path in sorted((ROOT / "docs/decisions").glob("*.md"))]
    assert numbers == list(range(1, len(numbers) + 1))
