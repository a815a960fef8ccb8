"""A stored update: an update from one old image, kept as a blob that an artifact refers with.

The artifact's subject is what a tag names (an image or an index), and its annotations say all that
a node needs, since registries copy them into the list of referrers: the tag, the list, the blob
are three requests. Nothing here decides what runs: the blob is named by its digest, and what comes
out of an update is checked against the image's digests.

Pure. Spec: docs/format.md "Stored update". What does not parse is no stored update.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from layerkit.digest import Digest
from layerkit.errors import FormatError, UsageError
from layerkit.formats.oci import (
    ANNOTATION_OLD,
    ANNOTATION_PLATFORM,
    ANNOTATION_UPDATE,
    ANNOTATION_UPDATE_SIZE,
    EMPTY_DESCRIPTOR,
    MANIFEST,
    UPDATE_ARTIFACT,
    Descriptor,
    Manifest,
    Platform,
    describe,
    parse_platform,
    serialize_manifest,
)
from layerkit.formats.update import MAX_STREAM_SIZE, UPDATE_TYPE

__all__ = ["NOTHING", "StoredUpdate", "choose_update", "find_updates", "make_update_artifact"]

NOTHING: Final = Digest("sha256", bytes(32))  # the old image of who holds none, as in an update
MAX_PLATFORM_SIZE: Final = 100  # characters
MAX_DIGITS: Final = 12


@dataclass(frozen=True, slots=True)
class StoredUpdate:
    """What a referrer offers: from which image (what a tag named), for which platform (None: the
    image is for one only), the blob and its bytes, and the artifact itself."""

    old: Digest
    platform: Platform | None
    blob: Digest
    size: int
    manifest: Digest

    def fits(self, platform: Platform) -> bool:
        return self.platform is None or self.platform == platform


def make_update_artifact(
    top: Descriptor, old: Digest, platform: Platform | None, blob: Descriptor
) -> tuple[Descriptor, bytes]:
    """The manifest that offers `blob` as the update from image `old` to `top`, and its descriptor
    as a list of referrers has it."""
    annotations = {
        ANNOTATION_OLD: str(old),
        ANNOTATION_UPDATE: str(blob.digest),
        ANNOTATION_UPDATE_SIZE: str(blob.size),
    }
    if platform is not None:
        annotations[ANNOTATION_PLATFORM] = str(platform)
    subject = Descriptor(top.media_type, top.digest, top.size)
    layer = Descriptor(UPDATE_TYPE, blob.digest, blob.size)
    raw = serialize_manifest(
        Manifest(EMPTY_DESCRIPTOR, (layer,), annotations, UPDATE_ARTIFACT, subject)
    )
    return describe(raw, MANIFEST, annotations, artifact_type=UPDATE_ARTIFACT), raw


def find_updates(entries: Iterable[Descriptor]) -> list[StoredUpdate]:
    """The stored updates among the referrers of an image, as a registry lists them. What is none,
    or says something else than it should, is left out: anybody may push a referrer."""
    found = []
    for entry in entries:
        if entry.artifact_type == UPDATE_ARTIFACT:
            try:
                found.append(_parse(entry))
            except (FormatError, UsageError):
                continue
    return found


def choose_update(
    found: Iterable[StoredUpdate], held: Sequence[Digest], platform: Platform
) -> StoredUpdate | None:
    """The least update for who holds the images `held`; None if there is none."""
    fitting = [one for one in found if one.old in held and one.fits(platform)]
    return min(fitting, key=lambda one: (one.size, one.manifest), default=None)


def _parse(entry: Descriptor) -> StoredUpdate:
    facts = entry.annotations
    old, blob = (Digest.parse(facts.get(key, "")) for key in (ANNOTATION_OLD, ANNOTATION_UPDATE))
    if old.algorithm != "sha256" or blob.algorithm != "sha256":
        raise FormatError("stored update: its images and blobs are named by sha256")
    text = facts.get(ANNOTATION_UPDATE_SIZE, "")
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
        raise FormatError(f"stored update: size {text[:40]!r} is no number")
    if not 0 < int(text) <= MAX_STREAM_SIZE:
        raise FormatError(f"stored update: size {int(text)} is not in 1..{MAX_STREAM_SIZE}")
    platform = facts.get(ANNOTATION_PLATFORM, "")
    if len(platform) > MAX_PLATFORM_SIZE:
        raise FormatError("stored update: its platform is too long")
    known = parse_platform(platform) if platform else None
    return StoredUpdate(old, known, blob, int(text), entry.digest)
