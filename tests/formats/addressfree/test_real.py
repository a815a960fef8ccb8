"""formats/addressfree on real Go binaries: every shape comes back bit for bit, most in a form.

`make test` builds a small program; `make slow` also the templates and public tools, with every
release that is known and with the flags that change what the linker writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import pytest
from builders import noise
from go_builds import (
    SMALL,
    STRIPPED,
    SYMBOLS_ONLY,
    UNSTRIPPED,
    build_go,
    release_of,
    sources_of,
)
from mutations import HALVES, mutations
from trust import TrustCases

from layerkit.edges.disk import Disk
from layerkit.edges.goruntime import offer_runtime
from layerkit.formats import addressfree, delta
from layerkit.formats.elf import parse_elf, strip_symbols
from layerkit.jobs.init import init

ROOT = Path(__file__).parent.parent.parent.parent
ARCHES = ("amd64", "arm64")
MINORS = range(20, 28)
# name -> flags of go build, ldflags, settings, the first release that knows them
LINKS = {
    "default": ((), "", {}, 20),
    "trimpath": (("-trimpath",), UNSTRIPPED, {}, 20),
    "stripped": (("-trimpath",), STRIPPED, {}, 20),
    "symbols": (("-trimpath",), SYMBOLS_ONLY, {}, 20),
    "symbols, no DWARF tables": ((), "-s", {}, 20),
    "DWARF as it is": (("-trimpath",), "-compressdwarf=false", {}, 20),
    "functions in random order": (("-trimpath",), "-s -w -randlayout=7", {}, 22),
}
COMPILES = {
    "not optimised": (("-trimpath", "-gcflags=all=-N -l"), UNSTRIPPED, {}, 20),
    "newer instructions": (
        ("-trimpath",), STRIPPED, {"GOAMD64": "v3", "GOARM64": "v8.1,lse"}, 20,
    ),
    "coverage": (("-trimpath", "-cover"), STRIPPED, {}, 20),
}  # fmt: skip
PIE = {"position independent": (("-trimpath", "-buildmode=pie"), STRIPPED, {}, 20)}
FLAGS = LINKS | COMPILES | PIE
# Public modules beside those of bench/build.py: module, package, release
TOOLS = {
    "age": ("filippo.io/age", "./cmd/age", "v1.2.1"),
    "gofumpt": ("mvdan.cc/gofumpt", ".", "v0.8.0"),
    "gopls": ("golang.org/x/tools/gopls", ".", "v0.20.0"),
    "task": ("github.com/go-task/task/v3", "./cmd/task", "v3.44.1"),
    "fzf": ("github.com/junegunn/fzf", ".", "v0.62.0"),
}
BENCH_TOOLS = ("crane", "goimports", "oras", "shfmt", "staticcheck", "yq")
SYSTEM = ("/bin/true", "/bin/sh", "/usr/bin/env", "/usr/bin/git", "/usr/bin/perl")
pytestmark = pytest.mark.go


def build(
    go: Path, sources: dict[str, str], how: str, arch: str, release: str = "", minor: int = 99
) -> bytes:
    flags, ldflags, settings, since = FLAGS[how]
    if minor < since:
        pytest.skip(f"since go1.{since}")
    return build_go(
        go, sources, ldflags, release=release, arch=arch, flags=flags, settings=settings
    )


def assert_comes_back(binary: bytes, about: str = "") -> addressfree.Encoded:
    made = addressfree.encode(binary)
    assert addressfree.decode(made.form) == binary, about
    return made


def assert_right(binary: bytes, how: str, cases: TrustCases) -> None:
    """A position-independent binary is raw, every other one has a form; without and with hints."""
    made = assert_comes_back(binary)
    cases.encoded(made.why_raw)
    assert (made.why_raw == "") == (how not in PIE), made.why_raw
    elf = parse_elf(binary)
    if how not in PIE and (hints := addressfree.read_hints(elf)).symbols:
        with_hints = addressfree.encode(binary, hints)
        cases.encoded(with_hints.why_raw)
        assert with_hints.why_raw == ""
        assert addressfree.decode(with_hints.form) == binary


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("how", [how for how in LINKS if "-trimpath" in LINKS[how][0]])
def test_a_small_program_has_a_form(
    go_toolchain: Path, how: str, arch: str, trust_cases: TrustCases
) -> None:
    assert_right(build(go_toolchain, SMALL, how, arch), how, trust_cases)


@pytest.mark.slow
@pytest.mark.trust("a small program: flags x go1.20 to go1.27 x architectures")
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("how", FLAGS)
@pytest.mark.parametrize("minor", MINORS)
def test_every_release_comes_back(
    go_toolchain: Path, minor: int, how: str, arch: str, trust_cases: TrustCases
) -> None:
    release = release_of(go_toolchain, minor)
    assert_right(build(go_toolchain, SMALL, how, arch, release, minor), how, trust_cases)


@pytest.mark.slow
@pytest.mark.trust("templates: flags x go1.25 and go1.27 x architectures")
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("how", FLAGS)
@pytest.mark.parametrize("minor", [25, 27])
@pytest.mark.parametrize("name", ["http", "cron", "worker"])
def test_templates_come_back(
    go_toolchain: Path,
    name: str,
    minor: int,
    how: str,
    arch: str,
    trust_cases: TrustCases,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As `layerkit init` writes them. Their go.mod says go 1.25: the oldest that builds them."""
    folder = tmp_path / name
    init(folder, name)
    for key, value in offer_runtime(Disk(), tmp_path, folder, os.environ).environment.items():
        monkeypatch.setenv(key, value)
    sources = sources_of(folder)
    release = release_of(go_toolchain, minor)
    assert_right(build(go_toolchain, sources, how, arch, release, minor), how, trust_cases)


@pytest.mark.parametrize("arch", ARCHES)
def test_strip_equals_the_linkers_own(go_toolchain: Path, arch: str) -> None:
    unstripped = build_go(go_toolchain, SMALL, SYMBOLS_ONLY, arch=arch)
    assert strip_symbols(parse_elf(unstripped)) == build_go(
        go_toolchain, SMALL, STRIPPED, arch=arch
    )


@pytest.mark.slow
@pytest.mark.trust("strip equals the linker's -s -w: go1.20 to go1.27 x architectures")
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("minor", MINORS)
def test_strip_equals_the_linkers_own_in_every_release(
    go_toolchain: Path, minor: int, arch: str
) -> None:
    release = release_of(go_toolchain, minor)
    unstripped = build_go(go_toolchain, SMALL, SYMBOLS_ONLY, arch=arch, release=release)
    stripped = build_go(go_toolchain, SMALL, STRIPPED, arch=arch, release=release)
    assert strip_symbols(parse_elf(unstripped)) == stripped


@pytest.mark.parametrize("arch", ARCHES)
def test_a_string_of_another_length_costs_little(go_toolchain: Path, arch: str) -> None:
    edited = SMALL | {"main.go": SMALL["main.go"].replace("hello, ", "a much longer greeting, ")}
    forms = []
    for sources in (SMALL, edited):
        forms.append(addressfree.encode(build_go(go_toolchain, sources, arch=arch)).form)
    assert len(delta.diff([forms[0]], forms[1])) < 400


def test_pie_stays_raw(go_toolchain: Path) -> None:
    """What the linker really writes for it is in `make slow`."""
    binary = bytearray(build_go(go_toolchain, SMALL))
    binary[16] = 3  # e_type ET_DYN
    assert addressfree.encode(bytes(binary)).why_raw


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
@pytest.mark.parametrize(
    ("ldflags", "flags", "why"),
    [
        (UNSTRIPPED + " -linkmode=external", ("-trimpath",), "C's linker"),
        (STRIPPED + " -linkmode=external -extldflags=-static", ("-trimpath",), "C's linker"),
        (STRIPPED, ("-trimpath", "-race"), "-race"),
    ],
)
def test_what_c_has_a_part_in_is_named(
    go_toolchain: Path, ldflags: str, flags: Sequence[str], why: str
) -> None:
    settings = {"CGO_ENABLED": "1"}
    binary = build_go(go_toolchain, SMALL, ldflags, flags=flags, settings=settings)
    assert why in assert_comes_back(binary).why_raw


@pytest.mark.parametrize("name", [b".typelink", b".eh_frame"])
def test_damaged_tables_are_told_from_those_of_another_linker(
    go_toolchain: Path, name: bytes
) -> None:
    binary = bytearray(build_go(go_toolchain, SMALL))
    elf = parse_elf(bytes(binary))
    section = elf.section(".gopclntab")
    assert section is not None
    binary[section.offset] ^= 1
    at = binary.rindex(b".typelink\0")
    binary[at : at + len(name)] = name
    assert ("C's linker" in addressfree.encode(bytes(binary)).why_raw) == (name == b".eh_frame")


# --- mutations


def mutations_come_back(binary: bytes, half: str, count: int, cases: TrustCases) -> None:
    for about, changed in mutations(binary, half, count, random.randrange(1 << 32)):
        cases.encoded(assert_comes_back(changed, about).why_raw)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("half", HALVES)
def test_mutations_of_a_real_binary_come_back(
    go_toolchain: Path, half: str, arch: str, trust_cases: TrustCases
) -> None:
    mutations_come_back(build_go(go_toolchain, SMALL, arch=arch), half, 10, trust_cases)


@pytest.mark.slow
@pytest.mark.trust("single-byte mutations of a real binary, half of them in headers and tables")
@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("part", range(5))
def test_many_mutations_of_a_real_binary_come_back(
    go_toolchain: Path, part: int, half: str, arch: str, trust_cases: TrustCases
) -> None:
    mutations_come_back(build_go(go_toolchain, SMALL, arch=arch), half, 500, trust_cases)


@pytest.mark.slow
@pytest.mark.trust("a real binary, cut or with noise written over a part")
@pytest.mark.parametrize("arch", ARCHES)
def test_damaged_real_binaries_come_back(
    go_toolchain: Path, arch: str, trust_cases: TrustCases
) -> None:
    binary, seed = build_go(go_toolchain, SMALL, arch=arch), random.randrange(1 << 32)
    rng = random.Random(seed)
    for index in range(200):
        size, at = rng.choice((8, 64, 4096, 100_000)), rng.randrange(len(binary))
        changed = binary[:at] + noise(size, index) + binary[at + size :]
        made = assert_comes_back(changed[: len(binary)], f"seed {seed}, noise {index}")
        trust_cases.encoded(made.why_raw)
        made = assert_comes_back(binary[:at], f"seed {seed}, cut {index}")
        trust_cases.encoded(made.why_raw)


# --- programs of others


def load_bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_build", ROOT / "bench/build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_build"] = module
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """All releases are built in the same folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.mark.slow
@pytest.mark.trust("public tools, as linked and stripped")
@pytest.mark.parametrize("name", [*BENCH_TOOLS, *TOOLS])
def test_public_tools_come_back(go_toolchain: Path, name: str, trust_cases: TrustCases) -> None:
    bench = load_bench()
    if name in TOOLS:
        module, package, release = TOOLS[name]
    else:
        module, package, _, release = bench.TOOLS[name]
    with one_at_a_time(bench.WORK):
        built = bench.build_release(module, package, release)
    for binary in (built.named, built.binary):
        assert_right(binary, "stripped", trust_cases)


@pytest.mark.parametrize("path", SYSTEM[:1])
def test_a_program_that_is_not_go_is_raw(path: str) -> None:
    if not Path(path).exists():
        pytest.skip(f"no {path}")
    assert assert_comes_back(Path(path).read_bytes()).why_raw


@pytest.mark.slow
@pytest.mark.trust("programs that are not Go")
@pytest.mark.parametrize("path", [*SYSTEM, sys.executable])
def test_programs_that_are_not_go_are_raw(path: str, trust_cases: TrustCases) -> None:
    if not Path(path).exists():
        pytest.skip(f"no {path}")
    made = assert_comes_back(Path(path).read_bytes())
    trust_cases.encoded(made.why_raw)
    assert made.why_raw


@pytest.mark.slow
@pytest.mark.trust("the go command and its tools, as they are released")
@pytest.mark.parametrize(
    "name",
    ["bin/go", "bin/gofmt"]
    + [
        f"pkg/tool/linux_amd64/{name}" for name in ("asm", "compile", "link", "cgo", "cover", "vet")
    ],
)
def test_the_toolchain_itself_has_forms(
    go_toolchain: Path, name: str, trust_cases: TrustCases
) -> None:
    """Programs of other people's flags, with symbols."""
    said = subprocess.run([go_toolchain, "env", "GOROOT"], capture_output=True, text=True)
    path = Path(said.stdout.strip()) / name
    if not path.exists():
        pytest.skip(f"no {name} here")
    made = assert_comes_back(path.read_bytes())
    trust_cases.encoded(made.why_raw)
    assert made.why_raw == ""
