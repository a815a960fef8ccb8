"""Output of `go vet -json` as findings."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerkit.errors import FormatError
from layerkit.formats.govet import Finding, parse_findings

OUTPUT = b"""go: downloading example.com/x v1.0.0
# example.com/fn
{
\t"example.com/fn": {
\t\t"ctxgo": [
\t\t\t{
\t\t\t\t"posn": "/src/b.go:5:33",
\t\t\t\t"end": "/src/b.go:5:40",
\t\t\t\t"message": "goroutine runs on"
\t\t\t}
\t\t],
\t\t"ctxcall": {"error": "internal"}
\t}
}
# example.com/fn [example.com/fn.test]
{
\t"example.com/fn [example.com/fn.test]": {
\t\t"ctxgo": [{"posn": "/src/b.go:5:33", "message": "goroutine runs on"},
\t\t\t{"posn": "/src/a.go:7", "message": "x"}]
\t}
}
{}
./c.go:3:1: undefined: y
"""


def test_findings_are_sorted_and_told_once() -> None:
    found, others = parse_findings(OUTPUT)
    assert found == (
        Finding("/src/a.go", 7, 0, "x", "ctxgo", "example.com/fn"),
        Finding("/src/b.go", 5, 33, "goroutine runs on", "ctxgo", "example.com/fn"),
    )
    assert others == "go: downloading example.com/x v1.0.0\n./c.go:3:1: undefined: y\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b'{"p": []}',
        b'{"p": {"a": [{}]}}',
        b'{"p": {"a": [{"posn": "nowhere", "message": "x"}]}}',
        b'{"p": {"a": [1]}}',
    ],
)
def test_other_trees_are_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_findings(raw)


@given(st.binary(max_size=200))
def test_only_format_errors(raw: bytes) -> None:
    with contextlib.suppress(FormatError):
        parse_findings(raw)
