"""Bytes on the wire are the product: no edit may cost more than it did."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest
from go_builds import SYMBOLS_ONLY, build_go, local_release, sources_of

from layerkit.formats import addressfree, delta
from layerkit.formats.elf import parse_elf, strip_symbols

ROOT = Path(__file__).parent.parent
BUDGETS = Path(__file__).parent / "budgets.toml"
EDITS = {
    "one string": ("base", "a_literal"),
    "a log line": ("base", "b_logline"),
    "a new route": ("base", "c1_base64"),
}
pytestmark = pytest.mark.go


def form_of(go: Path, name: str) -> bytes:
    elf = parse_elf(build_go(go, sources_of(ROOT / "bench/workloads" / name), SYMBOLS_ONLY))
    made = addressfree.encode(strip_symbols(elf), addressfree.read_hints(elf))
    assert made.why_raw == ""
    return made.form


def write_budget(edit: str, size: int, release: str) -> None:
    lines = BUDGETS.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith((f'"{edit}"', "go ="))]
    at = kept.index("[bytes]")
    kept[at - 1 : at - 1] = [f'go = "{release}"']
    BUDGETS.write_text("\n".join([*kept, f'"{edit}" = {size}']) + "\n", encoding="utf-8")


@pytest.mark.parametrize("edit", EDITS)
def test_no_edit_costs_more_than_its_budget(go_toolchain: Path, edit: str) -> None:
    old, new = (form_of(go_toolchain, name) for name in EDITS[edit])
    size = len(delta.diff([old], new))
    release = local_release(go_toolchain)
    document = tomllib.loads(BUDGETS.read_text(encoding="utf-8"))
    budget = document["bytes"].get(edit)
    if os.environ.get("LAYERKIT_WRITE_BUDGETS") and (budget is None or size < budget):
        write_budget(edit, size, release)
        return
    if release != document["go"]:
        pytest.skip(f"budgets are of {document['go']}, this is {release}: {size} bytes")
    assert size <= budget, f"{edit}: {size} bytes, want <= {budget}"
