"""formats/addressfree on real Go binaries: every shape comes back bit for bit, most in a form."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from go_builds import (
    SMALL,
    STRIPPED,
    SYMBOLS_ONLY,
    UNSTRIPPED,
    build_go,
    cached_releases,
    sources_of,
)

from layerkit.formats import addressfree, delta
from layerkit.formats.elf import parse_elf, strip_symbols

ROOT = Path(__file__).parent.parent.parent.parent
pytestmark = pytest.mark.go


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
@pytest.mark.parametrize("ldflags", [STRIPPED, SYMBOLS_ONLY, UNSTRIPPED])
def test_a_small_program_has_a_form(go_toolchain: Path, ldflags: str, arch: str) -> None:
    binary = build_go(go_toolchain, SMALL, ldflags, arch=arch)
    made = addressfree.encode(binary)
    assert (made.why_raw, addressfree.decode(made.form) == binary) == ("", True)


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_strip_equals_the_linkers_own(go_toolchain: Path, arch: str) -> None:
    unstripped = build_go(go_toolchain, SMALL, SYMBOLS_ONLY, arch=arch)
    assert strip_symbols(parse_elf(unstripped)) == build_go(
        go_toolchain, SMALL, STRIPPED, arch=arch
    )


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_a_string_of_another_length_costs_little(go_toolchain: Path, arch: str) -> None:
    edited = SMALL | {"main.go": SMALL["main.go"].replace("hello, ", "a much longer greeting, ")}
    forms = []
    for sources in (SMALL, edited):
        forms.append(addressfree.encode(build_go(go_toolchain, sources, arch=arch)).form)
    assert len(delta.diff([forms[0]], forms[1])) < 400


def test_pie_stays_raw(go_toolchain: Path) -> None:
    binary = bytearray(build_go(go_toolchain, SMALL))
    binary[16] = 3  # e_type ET_DYN
    assert addressfree.encode(bytes(binary)).why_raw


def _mutations_come_back(binary: bytes, count: int) -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    for index in range(count):
        changed = bytearray(binary)
        changed[rng.randrange(len(changed))] ^= rng.randrange(1, 256)
        made = addressfree.encode(bytes(changed))
        assert addressfree.decode(made.form) == changed, f"seed {seed}, mutation {index}"


def test_mutations_of_a_real_binary_come_back(go_toolchain: Path) -> None:
    _mutations_come_back(build_go(go_toolchain, SMALL), 20)


@pytest.mark.slow
def test_many_mutations_of_a_real_binary_come_back(go_toolchain: Path) -> None:
    _mutations_come_back(build_go(go_toolchain, SMALL), 10_000)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["amd64", "arm64"])
@pytest.mark.parametrize("name", ["http", "cron", "worker"])
def test_templates_have_a_form(go_toolchain: Path, name: str, arch: str) -> None:
    binary = build_go(go_toolchain, sources_of(ROOT / "templates" / name), arch=arch)
    assert addressfree.encode(binary).why_raw == ""


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["amd64", "arm64"])
@pytest.mark.parametrize("minor", range(20, 28))
def test_every_release_has_a_form(go_toolchain: Path, minor: int, arch: str) -> None:
    known = [r for r in cached_releases(go_toolchain) if r.startswith(f"go1.{minor}.")]
    release = known[-1] if known else f"go1.{minor}.{1 if minor > 20 else 14}"
    binary = build_go(go_toolchain, SMALL, release=release, arch=arch)
    assert addressfree.encode(binary).why_raw == ""
