"""Sign an image of a layout: the signature becomes a referrer of what the name means, beside it.

So it goes wherever the image goes: `push` takes it along, a server hands it out, a bundle holds it.
The same key and image give the same bytes: signing again changes nothing. Who signed what is said
in formats/signature; which keys there are in edges/signing.
"""

from __future__ import annotations

from typing import Protocol

from layerkit.edges.layout import Layout
from layerkit.formats.oci import EMPTY, EMPTY_BLOB, MANIFEST, Descriptor
from layerkit.formats.reference import Reference
from layerkit.formats.signature import (
    BUNDLE_TYPE,
    make_bundle,
    make_signature_artifact,
    make_statement,
    signed_bytes,
)

__all__ = ["SigningKey", "sign_image"]


class SigningKey(Protocol):
    """A private key (`edges.signing.Signer`); `hint` says which."""

    hint: str

    def sign(self, data: bytes) -> bytes: ...


def sign_image(layout: Layout, ref: Reference, key: SigningKey) -> Descriptor:
    """Sign the image or index that `ref` names in `layout`; the descriptor of the signature.

    Raises NotFoundError, IntegrityError for a name or a top document that the layout lacks.
    """
    top = layout.resolve(ref.tagged)
    layout.read_blob(top)  # nobody signs what is not there, or is damaged
    statement = make_statement(top.digest)
    bundle = make_bundle(statement, key.sign(signed_bytes(statement)), key.hint)
    descriptor, raw, _ = make_signature_artifact(top, bundle)
    with layout.batch():
        layout.put_blob(EMPTY_BLOB, EMPTY)
        layout.put_blob(bundle, BUNDLE_TYPE)
        layout.put_blob(raw, MANIFEST)
        layout.add_referrers([descriptor])
    return descriptor
