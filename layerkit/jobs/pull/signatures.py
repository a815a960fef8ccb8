"""Is an image signed by a key that counts? Asked as soon as it is known which image a reference
names, before any of it is used, named or committed.

Looked at, in this order, until one proves it: signatures that came with the image when it was
pulled before (no request), the referrers of the image (cosign 3, and what `layerkit push --sign`
writes), the tag `sha256-<hex>.sig` (older cosigns). A signature that cannot be read counts for
nothing. A server that does not answer, or with a broken list, is a RemoteError if nothing proves
the image: that says nothing of the image, and others may answer.

What `layerkit push` signed is proved by the list of referrers alone: one request. Bounded:
MAX_COUNT signatures, each within MAX_BUNDLE_SIZE.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from layerkit.digest import Digest, sha256_digest
from layerkit.edges.store import Store
from layerkit.errors import (
    FormatError,
    IntegrityError,
    LayerkitError,
    NotFoundError,
    RemoteDeniedError,
    RemoteError,
    SignatureError,
)
from layerkit.formats.oci import MAX_DOCUMENT_SIZE, Descriptor, Manifest, parse_manifest
from layerkit.formats.signature import (
    BUNDLE_TYPE,
    SIMPLE_ARTIFACT,
    Claim,
    is_attestation,
    list_signatures,
    listed_bundle,
    parse_bundle,
    parse_signature,
    signature_tag,
)
from layerkit.jobs.pull.documents import Check, WantedImage

__all__ = ["Keys", "is_signed", "make_check"]

SIGNATURE_KIND: Final = "signature"  # of a blob in the store: a sigstore bundle
MAX_COUNT: Final = 32  # signatures that are looked at
_REFUSED: Final = (FormatError, IntegrityError, NotFoundError)
_log = logging.getLogger(__name__)


class Keys(Protocol):
    """The keys that count (`edges.signing.Verifier`)."""

    @property
    def names(self) -> str: ...

    def find_signer(self, image: Digest, claim: Claim) -> str:
        """Which key proves the claim about the image; "" if none does."""


def make_check(keys: Keys) -> Check:
    """What `WantedImage` asks before it settles on an image. Raises SignatureError, RemoteError."""
    return lambda image: _Search(image, keys).run()


def is_signed(store: Store, top: Digest, keys: Keys) -> bool:
    """Does what the image was committed with prove it? Asks nobody."""
    return any(keys.find_signer(top, claim) for claim in _read_stored(store, top))


@dataclass(slots=True)
class _Search:
    image: WantedImage
    keys: Keys
    count: int = 0  # of those that were fetched
    reason: str = ""  # that the last one does not count
    trouble: LayerkitError | None = None  # with the list of referrers

    def run(self) -> None:
        image = self.image
        for claim, bundle in self._list_claims():
            signer = self.keys.find_signer(image.top, claim)
            if signer:
                _log.info("%s is signed by %s", image.top.short, signer)
                if bundle:  # to be committed with the image
                    image.blobs[sha256_digest(bundle)] = (bundle, SIGNATURE_KIND)
                return
            self.reason = "by another key" if image.top in claim.images else "of another image"
        if isinstance(self.trouble, RemoteDeniedError):
            raise self.trouble
        if self.trouble is not None:
            raise RemoteError(
                f"nobody knows whether {image.ref} is signed by {self.keys.names}",
                cause=f"{image.remote.url}: {self.trouble.message}",
                hint="try again when it lists what refers to an image",
            ) from self.trouble
        found = f"a signature {self.reason}" if self.reason else "no signature"
        raise SignatureError(
            f"{image.ref} is not signed by {self.keys.names}",
            cause=f"{image.top} has {found}",
            hint="sign it with 'layerkit push --sign KEY' or 'cosign sign --key KEY'",
        )

    def _list_claims(self) -> Iterator[tuple[Claim, bytes]]:
        """Claims, and the bundles that they came in, if they came in one and now."""
        for held in _read_stored(self.image.store, self.image.top):
            yield held, b""
        top = self.image.top
        listed = self._list_referrers(BUNDLE_TYPE)
        for entry in listed:
            bundle = listed_bundle(entry, top)
            if bundle:
                yield parse_bundle(bundle), bundle
        for manifest in self._list_manifests(listed):
            for where in list_signatures(manifest):
                if self.count >= MAX_COUNT:
                    return
                self.count += 1
                try:
                    data = self._read(where.blob)
                    claim = parse_signature(where, data)
                except _REFUSED as exc:
                    self.reason = f"that is refused: {exc.message}"
                    _log.info("signature %s is refused: %s", where.blob.digest.short, exc.message)
                    continue
                yield claim, b"" if where.text else data

    def _list_manifests(self, listed: Sequence[Descriptor]) -> Iterator[Manifest]:
        """Manifests of signatures: of the bundles in `listed` that do not say that they are none,
        of older referrers, then that of the tag."""
        for entry in listed:
            if not is_attestation(entry):
                yield from self._read_manifest(str(entry.digest), entry)
        for entry in self._list_referrers(SIMPLE_ARTIFACT):
            yield from self._read_manifest(str(entry.digest), entry)
        yield from self._read_manifest(signature_tag(self.image.top), None)

    def _list_referrers(self, kind: str) -> list[Descriptor]:
        if self.trouble is not None:
            return []
        image = self.image
        try:
            return image.remote.fetch_referrers(image.ref.repository, image.top, kind)[:MAX_COUNT]
        except (*_REFUSED, RemoteError) as exc:
            self.trouble = exc
            return []

    def _read_manifest(self, ref: str, entry: Descriptor | None) -> Iterator[Manifest]:
        if entry is not None and entry.size > MAX_DOCUMENT_SIZE:
            return
        try:
            found = self.image.remote.resolve(self.image.ref.repository, ref)
            if found is not None:
                yield parse_manifest(found.data)
        except _REFUSED as exc:
            _log.info("no signatures at %s: %s", ref, exc.message)

    def _read(self, blob: Descriptor) -> bytes:
        return self.image.remote.fetch_blob(self.image.ref.repository, blob.digest, blob.size)


def _read_stored(store: Store, top: Digest) -> Iterator[Claim]:
    """What the image was committed with."""
    for digest in store.list_blobs(top, SIGNATURE_KIND)[:MAX_COUNT]:
        try:
            yield parse_bundle(store.get_blob(digest))
        except _REFUSED as exc:
            _log.info("held signature %s is refused: %s", digest.short, exc.message)
