"""SBOM and provenance: what they say, that it is the same every time, and that it is valid."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from layerkit.digest import sha256_digest
from layerkit.formats.buildinfo import parse_build_info
from layerkit.formats.packages import Package
from layerkit.formats.statement import is_own_provenance
from layerkit.formats.supplychain import (
    Built,
    Cut,
    FoundBinary,
    make_cut_provenance,
    make_cut_sbom,
    make_provenance,
    make_sbom,
)

SUM = "h1:Khu2En+0gcYPZ2kuIihfswbzxv/mIHXgzPZ018Oty48="
HEX = "2a1bb6127fb481c60f67692e22285fb306f3c6ffe62075e0ccf674d7c3adcb8f"  # in-toto's own example
TEXT = (
    "path\texample.com/app/cmd\nmod\texample.com/app\tv1.4.0\t\n"
    f"dep\tgithub.com/a/b/v2\tv2.1.0\t{SUM}\n"
    "dep\texample.com/lib\tv0.0.0\n=>\t../lib\t(devel)\t\n"
    f"dep\texample.com/old\tv1.0.0\n=>\tgithub.com/fork/old\tv1.0.1\t{SUM}\n"
    "dep\texample.com/odd\tv1.0.0\th1:notbase64\n"
    'build\tGOARCH=amd64\nbuild\t-ldflags="-X main.v=\\"a b\\""\n'
)
BUILT = Built(
    "team/app",
    sha256_digest(b"image"),
    "linux/amd64",
    "app",
    sha256_digest(b"binary"),
    parse_build_info("go1.26.8", TEXT),
    (("certifi", "2026.1.4"),),
    {"tags": ["netgo"]},
)
SBOM = make_sbom(BUILT)


def test_the_sbom_names_every_module_by_its_package_url() -> None:
    bom = json.loads(make_sbom(BUILT))
    assert [part["purl"] for part in bom["components"]] == sorted(
        [
            "pkg:golang/example.com/lib@v0.0.0",
            "pkg:golang/example.com/odd@v1.0.0",
            "pkg:golang/github.com/a/b/v2@v2.1.0",
            "pkg:golang/github.com/fork/old@v1.0.1",
            "pkg:golang/std@1.26.8",
            "pkg:pypi/certifi@2026.1.4",
        ],
        key=lambda url: next(c["name"] for c in bom["components"] if c["purl"] == url),
    )
    root = bom["metadata"]["component"]
    properties = {entry["name"]: entry["value"] for entry in root["properties"]}
    assert properties["layerkit:go:build:GOARCH"] == "amd64"
    assert properties["layerkit:go:build:-ldflags"] == '-X main.v="a b"'
    assert (root["name"], root["version"]) == ("example.com/app", "v1.4.0")
    hashes = {part["name"]: part.get("hashes") for part in bom["components"]}
    assert hashes["github.com/a/b/v2"] == [{"alg": "SHA-256", "content": HEX}]
    assert hashes["example.com/odd"] is None


def validate(text: str) -> object:
    """None, or what the schema of CycloneDX finds; skips without a validator."""
    try:
        return JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    except Exception as exc:  # the library's own error for a missing extra
        if type(exc).__name__ != "MissingOptionalDependencyException":
            raise
        pytest.skip(f"no JSON schema validator here: {exc}")


def test_the_sbom_is_valid() -> None:
    assert validate(SBOM.decode()) is None


def test_provenance_is_a_statement_about_the_image() -> None:
    statement = json.loads(make_provenance(BUILT, SBOM))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [{"name": "team/app", "digest": {"sha256": BUILT.image.hex}}]
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"] == {"platform": "linux/amd64", "tags": ["netgo"]}
    inside = definition["internalParameters"]
    assert inside["go"] == "go1.26.8" and inside["settings"]["GOARCH"] == "amd64"
    byproducts = {
        one["name"]: one["digest"] for one in statement["predicate"]["runDetails"]["byproducts"]
    }
    assert byproducts["sbom.cdx.json"] == {"sha256": sha256_digest(SBOM).hex}
    found = {entry["uri"]: entry.get("digest") for entry in definition["resolvedDependencies"]}
    assert found["pkg:golang/github.com/fork/old@v1.0.1"] == {"dirHash": HEX}
    assert found["pkg:golang/example.com/lib@v0.0.0"] is None


def test_both_are_the_same_every_time() -> None:
    assert make_sbom(BUILT) == make_sbom(BUILT)
    assert make_provenance(BUILT, SBOM) == make_provenance(BUILT, SBOM)


def test_a_build_without_modules_is_described_too() -> None:
    bare = Built(
        "a", BUILT.image, "linux/arm64", "app", BUILT.binary_digest, parse_build_info("", "")
    )
    assert json.loads(make_sbom(bare))["metadata"]["component"]["name"] == "app"
    assert json.loads(make_provenance(bare, b""))["subject"][0]["name"] == "a"


CUT = Cut(
    "team/app",
    sha256_digest(b"new"),
    "linux/arm64",
    sha256_digest(b"old"),
    (
        FoundBinary("app/one", sha256_digest(b"1"), BUILT.info),
        FoundBinary("app/two", sha256_digest(b"2"), BUILT.info),  # of the same modules
        FoundBinary("bin/bare", sha256_digest(b"3"), parse_build_info("", "dep\t\tv1\n")),
    ),
)


def test_an_image_that_was_cut_names_the_go_binaries_in_it() -> None:
    raw = make_cut_sbom(CUT).decode()
    bom = json.loads(raw)
    paths = [
        entry["value"]
        for part in bom["components"]
        for entry in part.get("properties", [])
        if entry["name"] == "layerkit:path"
    ]
    assert sorted(paths) == ["app/one", "app/two", "bin/bare"]
    refs = [part["bom-ref"] for part in bom["components"]]
    assert len(refs) == len(set(refs))
    assert make_cut_sbom(CUT).decode() == raw
    assert validate(raw) is None


def test_an_image_that_was_cut_names_the_packages_in_it() -> None:
    packages = (
        Package("pypi", "", "Flask_Login", "1.0", "a/METADATA"),
        Package("npm", "@babel", "core", "7", "a/package.json"),
        Package("npm", "@babel", "core", "7", "b/package.json"),
        Package("maven", "org.a", "one", "1", "x.jar!/pom.properties"),
        Package("deb", "debian", "libc6", "2.36", "status", (("arch", "amd64"),)),
        Package("", "", "guava", "32", "guava-32.jar"),
        Package("maven", "", "//", "1", "odd.jar"),
    )
    raw = make_cut_sbom(replace(CUT, binaries=(), packages=packages)).decode()
    found = {part.get("purl", ""): part for part in json.loads(raw)["components"]}
    assert set(found) == {
        *("pkg:pypi/flask-login@1.0", "pkg:npm/%40babel/core@7", "pkg:maven/org.a/one@1"),
        *("pkg:deb/debian/libc6@2.36?arch=amd64", ""),
    }
    places = [entry["value"] for entry in found["pkg:npm/%40babel/core@7"]["properties"]]
    assert places == ["a/package.json", "b/package.json"]
    assert len(json.loads(raw)["components"]) == 6
    assert validate(raw) is None


def test_an_image_without_go_binaries_has_a_valid_sbom() -> None:
    assert validate(make_cut_sbom(replace(CUT, binaries=())).decode()) is None


def test_provenance_of_a_cut_image_names_the_old_one() -> None:
    raw = make_cut_provenance(CUT, b"sbom")
    definition = json.loads(raw)["predicate"]["buildDefinition"]
    assert definition["resolvedDependencies"][0]["digest"] == {"sha256": CUT.old.hex}
    assert is_own_provenance(raw, CUT.image) and not is_own_provenance(raw, CUT.old)


@pytest.mark.parametrize("raw", [b"", b"[]", b"[" * 100_000, b'{"predicate":1}', b"\xff"])
def test_what_is_no_provenance_of_ours(raw: bytes) -> None:
    assert not is_own_provenance(raw, CUT.image)
