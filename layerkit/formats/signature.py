"""Signatures of images as cosign writes them: bytes <-> what was signed. Keys: edges.signing.

Two forms are read. The sigstore bundle (cosign 3, a referrer of the image): a DSSE envelope around
an in-toto statement whose subject is the image's digest and whose predicate type says "signature".
The older one (tag `sha256-<hex>.sig`, or a referrer): a "simple signing" document, its signature in
an annotation of its layer. The bundle is the one that is written; the same image and key give the
same bytes.

A signature is over a digest. The name in the older form (`docker-reference`) is not compared with
anything, as cosign does not: docs/signatures.md says what that means.

Specs: sigstore protobuf-specs Bundle v0.3, DSSE v1, in-toto Statement v1; cosign
specs/SIGNATURE_SPEC.md; cosign v3.1.3 pkg/cosign/verify.go. Limits: MAX_BUNDLE_SIZE, MAX_SUBJECTS.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Final

from layerkit.digest import Digest
from layerkit.errors import FormatError
from layerkit.formats.oci import (
    EMPTY_DESCRIPTOR,
    MANIFEST,
    Descriptor,
    Manifest,
    describe,
    serialize_manifest,
)
from layerkit.formats.statement import PROVENANCE_TYPE, STATEMENT

__all__ = [
    "BUNDLE_TYPE",
    "MAX_BUNDLE_SIZE",
    "PREDICATE",
    "SIGNATURE_TYPES",
    "SIMPLE_ARTIFACT",
    "Claim",
    "Signature",
    "is_attestation",
    "is_signature_tag",
    "list_signatures",
    "listed_bundle",
    "make_bundle",
    "make_signature_artifact",
    "make_statement",
    "parse_bundle",
    "parse_signature",
    "parse_simple",
    "signature_tag",
    "signed_bytes",
]

BUNDLE_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
SIMPLE_TYPE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
SIMPLE_ARTIFACT: Final = "application/vnd.dev.cosign.artifact.sig.v1+json"
SIGNATURE_TYPES: Final = (BUNDLE_TYPE, SIMPLE_ARTIFACT)  # artifact types of referrers
PREDICATE: Final = "https://sigstore.dev/cosign/sign/v1"
SIMPLE_KINDS: Final = ("cosign container image signature", "atomic container signature", PREDICATE)
ANNOTATION_SIMPLE: Final = "dev.cosignproject.cosign/signature"
ANNOTATION_SIGNATURE: Final = "dev.layerkit.signature"  # base64, over cosign's own statement
ANNOTATION_CONTENT: Final = "dev.sigstore.bundle.content"
ANNOTATION_PREDICATE: Final = "dev.sigstore.bundle.predicateType"

MAX_BUNDLE_SIZE: Final = 256 << 10  # bytes; cosign's with a certificate and log entry have 10 KiB
MAX_SUBJECTS: Final = 64  # images that one statement names
MAX_SIGNATURE_SIZE: Final = 1024  # bytes: RSA of 8192 bits
MAX_LAYERS: Final = 32  # signatures in one manifest
_SIGNATURE_TAG: Final = re.compile(r"sha256-[0-9a-f]{64}\.sig")

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Claim:
    """That somebody vouches for `images`, if `signature` over `signed` is by a key that counts."""

    images: tuple[Digest, ...]
    signed: bytes
    signature: bytes
    name: str = ""  # what the older form calls the image; says nothing


@dataclass(frozen=True, slots=True)
class Signature:
    """Where a claim lies: a layer of a signature's manifest; `text` is the older form's signature,
    "" for a bundle."""

    blob: Descriptor
    text: str


# --- writing ---------------------------------------------------------------------------------


def make_statement(image: Digest) -> bytes:
    """The in-toto statement "this is signed" about an image, byte for byte as cosign 3 has it."""
    subject: Json = {"digest": {"sha256": image.hex}, "annotations": {}}
    statement: Json = {"_type": STATEMENT, "subject": [subject]}
    statement |= {"predicateType": PREDICATE, "predicate": {}}
    return json.dumps(statement, separators=(",", ":")).encode()


def signed_bytes(payload: bytes, payload_type: str = PROVENANCE_TYPE) -> bytes:
    """What a DSSE signature is over: DSSE's pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def make_bundle(payload: bytes, signature: bytes, hint: str) -> bytes:
    """A sigstore bundle of a statement and its signature; `hint` says which key."""
    envelope = {
        "payload": _text_of(payload),
        "payloadType": PROVENANCE_TYPE,
        "signatures": [{"sig": _text_of(signature)}],
    }
    bundle = {
        "mediaType": BUNDLE_TYPE,
        "verificationMaterial": {"publicKey": {"hint": hint}},
        "dsseEnvelope": envelope,
    }
    return json.dumps(bundle, separators=(",", ":")).encode()


def make_signature_artifact(
    top: Descriptor, bundle: bytes, predicate: str = PREDICATE, signature: bytes = b""
) -> tuple[Descriptor, bytes, Descriptor]:
    """The referrer of image `top` that carries a bundle: its descriptor and bytes, and the bundle's
    descriptor. Its config is the empty one. cosign also writes a time; this has none. `predicate`
    says what the statement in it is: a signature, or an attestation, which is none. With
    `signature` in an annotation, too, a node has all with the list of referrers."""
    blob = describe(bundle, BUNDLE_TYPE)
    annotations = {ANNOTATION_CONTENT: "dsse-envelope", ANNOTATION_PREDICATE: predicate}
    if signature:
        annotations[ANNOTATION_SIGNATURE] = _text_of(signature)
    subject = Descriptor(top.media_type, top.digest, top.size)
    raw = serialize_manifest(
        Manifest(EMPTY_DESCRIPTOR, (blob,), annotations, BUNDLE_TYPE, subject, MANIFEST)
    )
    return describe(raw, MANIFEST, annotations, artifact_type=BUNDLE_TYPE), raw, blob


def listed_bundle(entry: Descriptor, image: Digest) -> bytes:
    """The bundle that signs `image`, made of what the list of referrers says of it; b"" where that
    is not all: cosign's have to be fetched. Proves nothing yet."""
    text = entry.annotations.get(ANNOTATION_SIGNATURE, "")
    try:
        signature = _bytes(text, MAX_SIGNATURE_SIZE, "signature")
    except FormatError:
        return b""
    return make_bundle(make_statement(image), signature, "") if signature else b""


def is_attestation(entry: Descriptor) -> bool:
    """Does a list of referrers say that this bundle is no signature?"""
    return entry.annotations.get(ANNOTATION_PREDICATE, PREDICATE) != PREDICATE


def signature_tag(image: Digest) -> str:
    """The tag at which the older form lies."""
    return f"sha256-{image.hex}.sig"


def is_signature_tag(tag: str) -> bool:
    """Does a tag name signatures, and no image?"""
    return _SIGNATURE_TAG.fullmatch(tag) is not None


# --- reading ---------------------------------------------------------------------------------


def list_signatures(manifest: Manifest) -> list[Signature]:
    """The claims that a signature's manifest points at; what is none of them is left out."""
    found = []
    for layer in manifest.layers[:MAX_LAYERS]:
        if layer.size > MAX_BUNDLE_SIZE:
            continue
        text = layer.annotations.get(ANNOTATION_SIMPLE, "")
        if layer.media_type == SIMPLE_TYPE and text:
            found.append(Signature(layer, text))
        elif layer.media_type == BUNDLE_TYPE:
            found.append(Signature(layer, ""))
    return found


def parse_signature(where: Signature, raw: bytes) -> Claim:
    """The claim in the blob that `where` points at."""
    return parse_simple(raw, where.text) if where.text else parse_bundle(raw)


def parse_bundle(raw: bytes) -> Claim:
    """A sigstore bundle that signs images. One that says other things of them (an attestation), or
    signs a file, is a FormatError: it is no signature of an image."""
    what = "signature bundle"
    bundle = _load(raw, what)
    if bundle.get("mediaType") != BUNDLE_TYPE:
        raise FormatError(f"{what}: media type is not {BUNDLE_TYPE}")
    envelope = _object(bundle.get("dsseEnvelope"), f"{what}: dsseEnvelope")
    if envelope.get("payloadType") != PROVENANCE_TYPE:
        raise FormatError(f"{what}: payload type is not {PROVENANCE_TYPE}")
    signatures = envelope.get("signatures")
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise FormatError(f"{what}: there is not one signature")
    signature = _bytes(_object(signatures[0], what).get("sig"), MAX_SIGNATURE_SIZE, what)
    payload = _bytes(envelope.get("payload"), MAX_BUNDLE_SIZE, what)
    return Claim(_subjects(payload), signed_bytes(payload), signature)


def parse_simple(raw: bytes, text: str) -> Claim:
    """A "simple signing" document and its signature in base64."""
    what = "simple signing document"
    critical = _object(_load(raw, what).get("critical"), f"{what}: critical")
    if critical.get("type") not in SIMPLE_KINDS:
        raise FormatError(f"{what}: type is not a container image signature")
    image = _object(critical.get("image"), f"{what}: image")
    identity = _object(critical.get("identity"), f"{what}: identity")
    name = identity.get("docker-reference")
    if not isinstance(name, str):
        raise FormatError(f"{what}: docker-reference is not a string")
    digest = _digest(image.get("docker-manifest-digest"), what)
    return Claim((digest,), bytes(raw), _bytes(text, MAX_SIGNATURE_SIZE, what), name)


def _subjects(payload: bytes) -> tuple[Digest, ...]:
    """The images that a statement signs."""
    what = "signed statement"
    statement = _load(payload, what)
    if statement.get("_type") != STATEMENT or statement.get("predicateType") != PREDICATE:
        raise FormatError(f"{what}: it is not a signature of images ({PREDICATE})")
    subjects = statement.get("subject")
    if not isinstance(subjects, list) or not 1 <= len(subjects) <= MAX_SUBJECTS:
        raise FormatError(f"{what}: there are not 1 to {MAX_SUBJECTS} subjects")
    found = []
    for subject in subjects:
        digests = _object(_object(subject, what).get("digest"), f"{what}: digest")
        if "sha256" in digests:
            found.append(_digest(f"sha256:{digests['sha256']}", what))
    return tuple(found)


def _load(raw: bytes, what: str) -> Json:
    """A JSON object no key of which comes twice: parsers differ in which one they take."""
    if len(raw) > MAX_BUNDLE_SIZE:
        raise FormatError(f"{what} is over its limit: {len(raw)} bytes, want <= {MAX_BUNDLE_SIZE}")
    try:
        document = json.loads(bytes(raw).decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as exc:
        raise FormatError(f"{what} is not JSON", offset=getattr(exc, "pos", 0)) from exc
    return _object(document, what)


def _unique(pairs: list[tuple[str, object]]) -> Json:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _object(value: object, what: str) -> Json:
    if not isinstance(value, dict):
        raise FormatError(f"{what} is not an object")
    return value


def _digest(value: object, what: str) -> Digest:
    if not isinstance(value, str):
        raise FormatError(f"{what}: digest is not a string")
    digest = Digest.parse(value)
    if digest.algorithm != "sha256":
        raise FormatError(f"{what}: digest {digest.short} is not sha256")
    return digest


def _bytes(value: object, limit: int, what: str) -> bytes:
    if not isinstance(value, str) or len(value) > limit * 4 // 3 + 4:
        raise FormatError(f"{what}: not base64 of at most {limit} bytes")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise FormatError(f"{what}: not base64") from exc


def _text_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
