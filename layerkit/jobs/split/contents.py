"""What is in an image that is cut: its binaries, whether they get their form, and its packages; and
the SBOM and provenance that say so.

A binary is listed if Go's linker made it, or if UPX packed it: nobody sees then who made it, and
two versions of it share next to nothing. All other programs and libraries have no form either.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from layerkit.digest import Digest, sha256_digest
from layerkit.errors import FormatError
from layerkit.formats.addressfree import Hints, read_hints
from layerkit.formats.buildinfo import BuildInfo, read_build_info
from layerkit.formats.elf import parse_elf
from layerkit.formats.image import Blob, PackedImage, pack_referrer
from layerkit.formats.layer import ROLES
from layerkit.formats.packages import Package, find_packages
from layerkit.formats.splitting import is_go_binary
from layerkit.formats.statement import PROVENANCE_TYPE, SBOM_TYPE
from layerkit.formats.tar import FILE
from layerkit.formats.tree import Node, Tree

__all__ = ["Contents", "SplitBinary", "describe", "read_contents", "say_forms"]

# its loader's header comes behind the program headers (upx src/stub/src/include/linux.h, l_info)
UPX_MAGIC: Final = b"UPX!"
UPX_HEAD_SIZE: Final = 512  # bytes in which that is
PACKED: Final = "packed by UPX: unpack it ('upx -d') before the image is made"
UNSEEN: Final = "too small"  # the encoder looks at no file below layerform.MIN_BINARY_SIZE


@dataclass(frozen=True, slots=True)
class SplitBinary:
    """A program in the image. `has_form`: did it get its address-free form? None: nothing was
    written, so nobody knows. `why_raw` says why it has none."""

    path: str
    role: str
    size: int
    has_form: bool | None = None
    why_raw: str = ""


@dataclass(frozen=True, slots=True)
class Contents:
    """What is known of one image's files. By digest of the binary: its symbols' hints, its build
    info; `digests` are of `binaries`, in order."""

    binaries: tuple[SplitBinary, ...] = ()
    digests: tuple[Digest, ...] = ()
    hints: Mapping[Digest, Hints] = field(default_factory=dict)
    infos: Mapping[Digest, BuildInfo] = field(default_factory=dict)
    packages: Sequence[Package] = ()


def read_contents(tree: Tree, roles: Mapping[str, int]) -> Contents:
    """Look at the files; damaged ones say nothing, which costs bytes only."""
    binaries, digests = [], []
    hints: dict[Digest, Hints] = {}
    infos: dict[Digest, BuildInfo] = {}
    for path, node in sorted(tree.nodes.items()):
        if node.kind != FILE or not (_is_packed(node) or is_go_binary(node)):
            continue
        raw = bytes(node.data)
        digest = sha256_digest(raw)
        why = PACKED if _is_packed(node) else ""
        binaries.append(SplitBinary(path, ROLES[roles[path]], len(raw), why_raw=why))
        digests.append(digest)
        if digest not in infos and not why:
            with contextlib.suppress(FormatError):
                infos[digest] = read_build_info(parse_elf(raw))
                hints[digest] = read_hints(parse_elf(raw))
    return Contents(tuple(binaries), tuple(digests), hints, infos, find_packages(tree))


def _is_packed(node: Node) -> bool:
    head = bytes(node.data[:UPX_HEAD_SIZE])
    return head[:4] == b"\x7fELF" and UPX_MAGIC in head


def say_forms(found: Contents, outcomes: Mapping[Digest, str]) -> tuple[SplitBinary, ...]:
    """The binaries with what became of them: `outcomes` has why a binary stayed raw, "" if not."""
    said = []
    for binary, digest in zip(found.binaries, found.digests, strict=True):
        why = outcomes.get(digest, UNSEEN)
        said.append(replace(binary, has_form=not why, why_raw=why and (binary.why_raw or why)))
    return tuple(said)


def describe(
    name: str, packed: PackedImage, old: Digest, found: Contents
) -> list[tuple[Blob, ...]]:
    """SBOM and provenance of what was cut, as referrers of it."""
    from layerkit.formats import supplychain  # its library takes 0.25 s to load

    image = packed.manifest.descriptor
    binaries = [
        supplychain.FoundBinary(binary.path, digest, found.infos[digest])
        for binary, digest in zip(found.binaries, found.digests, strict=True)
        if digest in found.infos
    ]
    platform = str(image.platform)
    cut = supplychain.Cut(name, image.digest, platform, old, binaries, found.packages)
    sbom = supplychain.make_cut_sbom(cut)
    return [
        pack_referrer(image, SBOM_TYPE, sbom),
        pack_referrer(image, PROVENANCE_TYPE, supplychain.make_cut_provenance(cut, sbom)),
    ]
