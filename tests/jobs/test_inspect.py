"""What `layerkit inspect` says of files and images; by role where Go is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders import AMD64, publish_image
from toy_go import toy_go

from layerkit.edges.layout import Layout
from layerkit.edges.subject import find_subject
from layerkit.errors import FormatError
from layerkit.formats import addressfree, delta
from layerkit.formats.layer import Entry, build_tar
from layerkit.formats.layerform import encode_layer
from layerkit.jobs.inspect import inspect, inspect_file


def look(raw: bytes) -> dict[str, Any]:
    return dict(inspect_file(raw, "f"))


def test_a_binary_is_told_by_role_and_section() -> None:
    found = look(toy_go())
    assert (found["kind"], sum(found["roles"].values())) == ("binary", len(toy_go()))
    assert found["sections"][".text"]["code"] == found["sections"][".text"]["size"]


def test_an_elf_file_that_is_not_go_has_no_roles() -> None:
    binary = bytearray(toy_go())
    at = binary.index(b"\xf1\xff\xff\xff")
    binary[at] = 0  # pclntab's magic
    found = look(bytes(binary))
    assert (found["kind"], "roles" in found) == ("binary", False)


def test_a_form_is_told_by_its_binary_and_its_chunks() -> None:
    form = addressfree.encode(toy_go()).form
    found = look(form)
    assert (found["kind"], found["transform"]) == ("form", "address-free")
    assert found["binary"]["size"] == len(toy_go())
    assert sum(found["roles"].values()) == len(form)
    rows = [row for row in found["chunks"].values() if isinstance(row, dict)]
    assert sum(row["size"] for row in rows) == len(form)
    assert sum(row["chunk_count"] for row in rows) == found["chunks"]["chunk_count"]


def test_a_raw_form_says_so() -> None:
    found = look(addressfree.encode(b"some text").form)
    assert (found["kind"], found["transform"], "roles" in found) == ("form", "raw", False)


def test_a_layer_form_names_its_parts() -> None:
    tar = build_tar([Entry("app/fn", toy_go() + bytes(1 << 16), 0o755)])
    made = encode_layer(tar)
    assert made is not None
    found = look(made.form)
    assert (found["kind"], found["layer"]["size"]) == ("layer form", len(tar))
    assert [part["kind"] for part in found["parts"]] == ["raw", "form", "raw"]


def test_a_delta_names_its_forms() -> None:
    old, new = (addressfree.encode(toy_go(text)).form for text in (b"hello", b"hi"))
    found = look(delta.diff([old], new))
    assert (found["kind"], found["new_size"], len(found["old_forms"])) == ("delta", len(new), 1)


@pytest.mark.parametrize("kind", ["form", "layer form", "delta"])
def test_a_cut_file_is_a_format_error(kind: str) -> None:
    form = addressfree.encode(toy_go()).form
    layer = encode_layer(build_tar([Entry("fn", toy_go() + bytes(1 << 16), 0o755)]))
    assert layer is not None
    raw = {"form": form, "layer form": layer.form, "delta": delta.diff([form], form)}[kind]
    with pytest.raises(FormatError):
        inspect_file(raw[:30], "f")


def test_an_images_layers_are_told_by_role(tmp_path: Path) -> None:
    files = {"base": {"etc/zone": bytes(5000)}, "code": {"app/fn": b"text" * 2000}}
    descriptor = publish_image(tmp_path, "fn:v1", files)
    assert Layout(tmp_path).select(descriptor, AMD64).digest == descriptor.digest
    found: dict[str, Any] = dict(inspect(find_subject(str(tmp_path), None)))
    for layer in found["layers"]:
        role, size = layer["role"], layer["chunk_manifest"]["form_size"]
        assert layer["roles"] | {role: 0} == {"shared": 0, "base": 0, "deps": 0, "code": 0}
        assert (layer["roles"][role], layer["chunks"][role]["size"]) == (size, size)
