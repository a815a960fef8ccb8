"""What an image is made of, and how: a CycloneDX document and SLSA provenance, as bytes. Pure.

Both say what Go's build info and the build's settings say, and of an image that was cut what its
installers left in it (`packages`); no more: no path, user, host or time of the machine, so the same
sources give the same documents. They are published as referrers of the image and decide nothing.
The provenance names the SBOM by its digest, so that who signs the one (`jobs/sign`) vouches for
both.

Specs: CycloneDX 1.6 (by its own library); in-toto Statement v1; SLSA provenance v1; purl.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, TypeAlias
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from layerkit.digest import Digest, sha256_digest
from layerkit.formats.buildinfo import BuildInfo
from layerkit.formats.oci import serialize_json
from layerkit.formats.packages import Package
from layerkit.formats.statement import BUILDER, PROVENANCE, SBOM_TYPE, STATEMENT

__all__ = [
    "Built",
    "Cut",
    "FoundBinary",
    "make_cut_provenance",
    "make_cut_sbom",
    "make_provenance",
    "make_sbom",
]

BUILD_TYPE: Final = "https://layerkit.dev/build/v1"
CUT_TYPE: Final = "https://layerkit.dev/split/v1"
LOOKED_FOR: Final = (  # in an image that was cut: nothing is said of what is not among these
    "go binaries, and packages of dpkg, apk, pip, npm and maven"
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)  # there is no clock in a build


# name, version, package URL, and `h1` hash in hex, "" if unknown
_Part: TypeAlias = tuple[str, str, PackageURL, str]


@dataclass(frozen=True, slots=True)
class Built:
    """What is described: one platform's image."""

    name: str  # of the repository
    image: Digest
    platform: str
    binary: str  # the file's name
    binary_digest: Digest
    info: BuildInfo
    packages: Sequence[tuple[str, str]] = ()  # of PyPI, that the base layer was made from
    settings: Mapping[str, object] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class FoundBinary:
    """A Go binary in an image that somebody else built."""

    path: str
    digest: Digest
    info: BuildInfo


@dataclass(frozen=True, slots=True)
class Cut:
    """What is known of one platform's image that was cut anew from image `old`."""

    name: str  # of the repository
    image: Digest
    platform: str
    old: Digest
    binaries: Sequence[FoundBinary]
    packages: Sequence[Package] = ()


def make_sbom(built: Built) -> bytes:
    """CycloneDX 1.6 as JSON: the binary, its Go modules and Go itself, what base was made from."""
    main = built.info.main
    root = Component(
        type=ComponentType.APPLICATION,
        name=main.path if main else built.binary,
        version=main.version if main and main.version != "(devel)" else "",
        bom_ref=str(built.image),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=built.binary_digest.hex)],
        properties=[Property(name=name, value=value) for name, value in _properties(built)],
    )
    parts = [_library(part) for part in _parts(built.info, built.packages)]
    bom = _document(built.image, root, parts)
    bom.register_dependency(root, parts)
    return JsonV1Dot6(bom).output_as_string().encode("utf-8")


def make_cut_sbom(cut: Cut) -> bytes:
    """CycloneDX 1.6 as JSON: the packages in an image, its Go binaries and what each of these is
    made of. Says itself what was looked for."""
    facts = [("layerkit:platform", cut.platform), ("layerkit:complete", LOOKED_FOR)]
    root = Component(
        type=ComponentType.CONTAINER,
        name=cut.name,
        bom_ref=str(cut.image),
        properties=[Property(name=name, value=value) for name, value in facts],
    )
    libraries: dict[str, Component] = {}
    binaries, needs = [], []
    for binary in cut.binaries:
        made = _application(binary)
        parts = {part[2].to_string(): part for part in _parts(binary.info, ())}
        for key, part in parts.items():
            libraries.setdefault(key, _library(part))
        binaries.append(made)
        needs.append((made, [libraries[key] for key in parts]))
    packages = _packages(cut.packages)
    bom = _document(cut.image, root, [*binaries, *libraries.values(), *packages])
    bom.register_dependency(root, [*binaries, *packages])
    for made, used in needs:
        bom.register_dependency(made, used)
    return JsonV1Dot6(bom).output_as_string().encode("utf-8")


def _packages(packages: Sequence[Package]) -> list[Component]:
    """A component for each package, with the places that it is at."""
    places: dict[tuple[str, Package], list[str]] = {}
    urls: dict[str, PackageURL | None] = {}
    for package in packages:
        url = _url_of(package)
        key = url.to_string() if url else f"{package.path}@{package.version}"
        urls[key] = url
        places.setdefault((key, replace(package, path="")), []).append(package.path)
    return [
        Component(
            type=ComponentType.LIBRARY,
            group=package.group or None,
            name=package.name,
            version=package.version,
            purl=urls[key],
            bom_ref=key,
            properties=[Property(name="layerkit:path", value=path) for path in paths],
        )
        for (key, package), paths in places.items()
    ]


def _url_of(package: Package) -> PackageURL | None:
    """None where there is none: it has no kind, or a name that no such URL has."""
    facts = (package.group or None, package.name, package.version or None)
    if not package.kind:
        return None
    try:
        url = PackageURL(package.kind, *facts, dict(package.qualifiers))
    except ValueError:
        return None
    return url if url.name else None  # of a name of slashes nothing is left


def _document(image: Digest, root: Component, parts: Sequence[Component]) -> Bom:
    bom = Bom(components=parts, serial_number=uuid5(NAMESPACE_URL, str(image)))
    bom.metadata.component = root
    bom.metadata.timestamp = _EPOCH
    return bom


def _application(binary: FoundBinary) -> Component:
    main = binary.info.main
    facts = [("layerkit:path", binary.path)]
    facts += [(f"layerkit:go:build:{key}", value) for key, value in binary.info.settings if value]
    return Component(
        type=ComponentType.APPLICATION,
        name=(main.path if main else "") or binary.path,
        version=main.version if main and main.version != "(devel)" else "",
        bom_ref=f"{binary.path}@{binary.digest}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=binary.digest.hex)],
        properties=[Property(name=name, value=value) for name, value in facts],
    )


def _library(part: _Part) -> Component:
    name, version, url, digest = part
    return Component(
        type=ComponentType.LIBRARY,
        name=name,
        version=version,
        purl=url,
        bom_ref=url.to_string(),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)] if digest else [],
    )


def _properties(built: Built) -> list[tuple[str, str]]:
    """Facts of the build that CycloneDX has no field for."""
    found = [("layerkit:binary", built.binary), ("layerkit:platform", built.platform)]
    settings = [(f"layerkit:go:build:{key}", value) for key, value in built.info.settings]
    return [pair for pair in (*found, *settings) if pair[1]]


def make_provenance(built: Built, sbom: bytes) -> bytes:
    """An in-toto statement about the image, with SLSA provenance; `sbom` is its SBOM."""
    materials = [
        {"uri": url.to_string()} | ({"digest": {"dirHash": digest}} if digest else {})
        for _, _, url, digest in _parts(built.info, built.packages)
    ]
    definition = {
        "buildType": BUILD_TYPE,
        "externalParameters": {"platform": built.platform, **built.settings},
        "internalParameters": {
            "package": built.info.path,
            "go": built.info.release,
            "settings": dict(built.info.settings),
        },
        "resolvedDependencies": materials,
    }
    binary = {"name": built.binary, "digest": {"sha256": built.binary_digest.hex}}
    return _state(built.name, built.image, definition, [binary], sbom)


def make_cut_provenance(cut: Cut, sbom: bytes) -> bytes:
    """An in-toto statement, with SLSA provenance, from which image one was cut; `sbom` is its
    SBOM."""
    definition = {
        "buildType": CUT_TYPE,
        "externalParameters": {"platform": cut.platform},
        "resolvedDependencies": [{"name": "image", "digest": {"sha256": cut.old.hex}}],
    }
    return _state(cut.name, cut.image, definition, [], sbom)


def _state(
    name: str,
    image: Digest,
    definition: Mapping[str, object],
    byproducts: Sequence[Mapping[str, object]],
    sbom: bytes,
) -> bytes:
    """The statement; an SBOM is one of the byproducts."""
    digest = {"sha256": sha256_digest(sbom).hex}
    listed = {"name": "sbom.cdx.json", "digest": digest, "mediaType": SBOM_TYPE}
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": image.hex}}],
        "predicateType": PROVENANCE,
        "predicate": {
            "buildDefinition": definition,
            "runDetails": {"builder": {"id": BUILDER}, "byproducts": [*byproducts, listed]},
        },
    }
    return serialize_json(statement)


def _parts(info: BuildInfo, packages: Sequence[tuple[str, str]]) -> list[_Part]:
    """The parts of a binary, each once; modules without a name are left out."""
    release = "".join(info.release.removeprefix("go").split()[:1])
    found = [("std", release, PackageURL("golang", None, "std", release), "")] if release else []
    for module in info.deps:
        path, version = module.path, module.version
        if module.replaced_by and not module.replaced_by.startswith((".", "/")):
            path, version = module.replaced_by, module.replaced_version
        folder, _, name = path.rpartition("/")
        if not name:
            continue
        url = PackageURL("golang", folder or None, name, version or None)
        found.append((path, version, url, _hex_of(module.sum)))
    for name, version in packages:
        found.append((name, version, PackageURL("pypi", None, name, version), ""))
    return list({part[2].to_string(): part for part in found}.values())


def _hex_of(text: str) -> str:
    """go.sum's `h1:` as hex: SHA-256 over the list of the module's files."""
    if not text.startswith("h1:"):
        return ""
    try:
        raw = base64.b64decode(text[3:], validate=True)
    except (binascii.Error, ValueError):
        return ""
    return raw.hex() if len(raw) == 32 else ""
