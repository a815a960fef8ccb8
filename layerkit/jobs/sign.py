"""Sign an image of a layout: the signature becomes a referrer of what the name means, beside it.

The provenance of each of its images, which names the SBOM by its digest, is signed along with it,
as an attestation (`cosign verify-attestation --type slsaprovenance1`).

So it goes wherever the image goes: `push` takes it along, a server hands it out, a bundle holds it.
The same key and image give the same bytes: signing again changes nothing. Who signed what is said
in formats/signature; which keys there are in edges/signing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from layerkit.edges.layout import Layout
from layerkit.formats.oci import EMPTY, EMPTY_BLOB, MANIFEST, Descriptor
from layerkit.formats.reference import Reference
from layerkit.formats.signature import (
    BUNDLE_TYPE,
    PREDICATE,
    make_bundle,
    make_signature_artifact,
    make_statement,
    signed_bytes,
)
from layerkit.formats.statement import PROVENANCE, PROVENANCE_TYPE, is_own_provenance

__all__ = ["SigningKey", "sign_image"]


MAX_STATEMENT_SIZE: Final = 128 << 10  # bytes; in base64 it must fit into a signature's limit


class SigningKey(Protocol):
    """A private key (`edges.signing.Signer`); `hint` says which."""

    hint: str

    def sign(self, data: bytes) -> bytes: ...


def sign_image(layout: Layout, ref: Reference, key: SigningKey) -> Descriptor:
    """Sign the image or index that `ref` names in `layout`, and the provenance of its images; the
    descriptor of the signature.

    Raises NotFoundError, IntegrityError for a name or a top document that the layout lacks.
    """
    top = layout.resolve(ref.tagged)
    layout.read_blob(top)  # nobody signs what is not there, or is damaged
    made = [_sign(top, make_statement(top.digest), key, PREDICATE)]
    for image, statement in _find_provenance(layout, top):
        made.append(_sign(image, statement, key, PROVENANCE))
    with layout.batch():
        layout.put_blob(EMPTY_BLOB, EMPTY)
        for _, raw, bundle in made:
            layout.put_blob(bundle, BUNDLE_TYPE)
            layout.put_blob(raw, MANIFEST)
        layout.add_referrers([descriptor for descriptor, _, _ in made])
    return made[0][0]


def _sign(
    image: Descriptor, statement: bytes, key: SigningKey, predicate: str
) -> tuple[Descriptor, bytes, bytes]:
    """A signed statement as a referrer: its descriptor and bytes, and the bundle in it."""
    signature = key.sign(signed_bytes(statement))
    bundle = make_bundle(statement, signature, key.hint)
    told = signature if predicate == PREDICATE else b""
    descriptor, raw, _ = make_signature_artifact(image, bundle, predicate, told)
    return descriptor, raw, bundle


def _find_provenance(layout: Layout, top: Descriptor) -> Iterator[tuple[Descriptor, bytes]]:
    """Our own statements beside the images of `top`: nobody vouches for what others wrote there."""
    for image in layout.images(top):
        for entry in layout.referrers(image.digest, PROVENANCE_TYPE):
            for blob in layout.read_manifest(entry.digest).layers:
                if blob.size <= MAX_STATEMENT_SIZE:
                    raw = layout.read_blob(blob)
                    if is_own_provenance(raw, image.digest):
                        yield image, raw
