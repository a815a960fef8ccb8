"""What the go command says: package lists, cgo, and failures told with file and line."""

from __future__ import annotations

import pytest

from layerkit.errors import (
    BuildError,
    FormatError,
    LayerkitError,
    StoreFullError,
    ToolMissingError,
)
from layerkit.formats.gotool import (
    Package,
    binary_name,
    compare_cgo,
    explain_failure,
    parse_packages,
)


def package(path: str, files: int = 1, cgo: tuple[str, ...] = (), **facts: bool) -> Package:
    return Package(path, "p", facts.get("standard", False), True, files, cgo)


def main(path: str, name: str = "main") -> Package:
    return Package(path, name, False, False, 1, ())


def test_parse_packages() -> None:
    raw = b'{"ImportPath":"a","Standard":true}\n'
    raw += b'{"ImportPath":"x","Name":"main","CgoFiles":["b.go"]}\n'
    assert parse_packages(raw) == (
        Package("a", "", True, False, 0, ()),
        Package("x", "main", False, False, 0, ("b.go",)),
    )


@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"Name":1}', b'{"ImportPath":"a","GoFiles":1}'])
def test_other_output_is_a_format_error(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_packages(raw)


@pytest.mark.parametrize(
    ("without", "needed", "fallback"),
    [
        ([package("x/y", 0)], ["x/y"], []),  # all its files need cgo
        ([package("x/y", 2)], [], ["x/y"]),  # some files remain
        ([], [], ["x/y"]),  # whoever imported it has a fallback
    ],
)
def test_compare_cgo(without: list[Package], needed: list[str], fallback: list[str]) -> None:
    with_cgo = [package("net", cgo=("c.go",), standard=True), package("x/y", cgo=("y.go",))]
    report = compare_cgo(with_cgo, without)
    assert [p.path for p in report.needed] == needed
    assert [p.path for p in report.fallback] == fallback


@pytest.mark.parametrize(
    ("path", "want"),
    [("hello", "hello"), ("example.com/a/b", "b"), ("x.y/fn/v2", "fn"), ("v2", "v2")],
)
def test_binary_name(path: str, want: str) -> None:
    assert binary_name([package("a"), main(path)], ".") == want


def test_a_library_has_no_binary() -> None:
    with pytest.raises(BuildError, match="no main package"):
        binary_name([main("x", "lib")], ".")


@pytest.mark.parametrize(
    ("stderr", "error", "message"),
    [
        ("# x\n./main.go:5:2: undefined: foo\n", BuildError, "./main.go:5:2: undefined: foo"),
        (
            "go: errors parsing go.mod:\ngo.mod:3: unknown directive: a\n",
            BuildError,
            "go.mod:3: un",
        ),
        ("go: go.mod file not found in current directory\n", BuildError, "no go.mod in DIR"),
        ("no Go files in /x\n", BuildError, "no main package in DIR"),
        ("go: go.mod requires go >= 1.99 (running go1.26.8)\n", ToolMissingError, "too old"),
        ("write /t/x: no space left on device\n", StoreFullError, "no space left"),
        ("# x\nlink: something else\n", BuildError, "link: something else"),
        ("", BuildError, "status 1"),
    ],
)
def test_failures(stderr: str, error: type[LayerkitError], message: str) -> None:
    found = explain_failure(stderr, ("go",), 1, "DIR")
    assert type(found) is error
    assert message in found.message


def test_further_problems_are_counted() -> None:
    stderr = "".join(f"./a.go:{line}:1: bad\n" for line in range(9))
    found = explain_failure(stderr, ("go",), 1, ".")
    assert found.cause.endswith("./a.go:4:1: bad; and 4 more")
