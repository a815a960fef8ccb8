"""The Go module as go's own proxy protocol, go.mod and go.sum have it."""

from __future__ import annotations

import io
import zipfile

import pytest

from layerkit.errors import FormatError
from layerkit.formats.gomodule import GoModule, find_requirement, replace_sums, set_requirement

PATH = "example.com/a/b"


def module(**files: bytes) -> GoModule:
    return GoModule("1.2.3", {"go.mod": b"module example.com/a/b\n\ngo 1.24\n"} | files)


def test_the_version_follows_the_content() -> None:
    assert module(x=b"1").version != module(x=b"2").version
    assert module(x=b"1").version == module(x=b"1").version
    assert module().version.startswith("v1.2.3-h")


def test_sums_are_what_go_writes() -> None:
    # the go.mod of go-isatty v0.0.19, and its line in the go.sum of many a module
    raw = b"module github.com/mattn/go-isatty\n\ngo 1.15\n\nrequire golang.org/x/sys v0.6.0\n"
    line = GoModule("0.0.19", {"go.mod": raw}).sums()[1]
    assert line.endswith("/go.mod h1:W+V8PltTTMOvKvAeJH7IuucS94S2C6jfK/D7dTCTo3Y=")


def test_the_zip_holds_every_file_below_its_version() -> None:
    made = module(x=b"1")
    raw = made.proxy_files()[f"{PATH}/@v/{made.version}.zip"]
    prefix = f"{PATH}@{made.version}/"
    assert zipfile.ZipFile(io.BytesIO(raw)).namelist() == [f"{prefix}go.mod", f"{prefix}x"]
    assert raw == module(x=b"1").proxy_files()[f"{PATH}/@v/{made.version}.zip"]


def test_a_go_mod_without_a_module_is_refused() -> None:
    with pytest.raises(FormatError):
        _ = GoModule("1.2.3", {"go.mod": b"go 1.24"}).path


@pytest.mark.parametrize(
    ("go_mod", "want"),
    [
        ("module x\nrequire example.com/a/b v0.1.0\n", "v0.1.0"),
        ("require (\n\texample.com/a/b v0.1.0-h0 // indirect\n)\n", "v0.1.0-h0"),
        ("require example.com/a/bc v0.1.0\n", None),
        ("require example.com/a/b v1.0.0\nreplace example.com/a/b => ../b\n", None),
        ("require example.com/a/b v1.0.0\nreplace (\n example.com/a/b v1.0.0 => ../b\n)\n", None),
        ("", None),
    ],
)
def test_find_requirement(go_mod: str, want: str | None) -> None:
    assert find_requirement(go_mod, PATH) == want


def test_set_requirement_changes_its_line_only() -> None:
    go_mod = "module x\n\nrequire (\n\ta.b/c v1.0.0\n\texample.com/a/b v0.1.0 // indirect\n)\n"
    changed = set_requirement(go_mod, PATH, "v0.2.0")
    assert changed == go_mod.replace("v0.1.0", "v0.2.0")
    assert set_requirement("module x\n", PATH, "v0.2.0").endswith(f"\nrequire {PATH} v0.2.0\n")


def test_replace_sums_keeps_what_others_have() -> None:
    go_sum = f"a.b/c v1.0.0 h1:x=\n{PATH} v0.1.0 h1:y=\n{PATH} v0.1.0/go.mod h1:z=\n"
    changed = replace_sums(go_sum, PATH, (f"{PATH} v0.2.0 h1:n=", f"{PATH} v0.2.0/go.mod h1:m="))
    assert changed == (f"a.b/c v1.0.0 h1:x=\n{PATH} v0.2.0 h1:n=\n{PATH} v0.2.0/go.mod h1:m=\n")
