"""edges/signing and formats/signature: what cosign wrote verifies, what is altered does not, and a
key file of any bytes is refused by name."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from keys import write_key

from layerkit.digest import Digest
from layerkit.edges.signing import Signer, Verifier
from layerkit.errors import FormatError, LayerkitError, NotFoundError, UsageError
from layerkit.formats.oci import MANIFEST, Descriptor, parse_manifest
from layerkit.formats.signature import (
    BUNDLE_TYPE,
    MAX_BUNDLE_SIZE,
    Claim,
    list_signatures,
    listed_bundle,
    make_bundle,
    make_signature_artifact,
    make_statement,
    parse_bundle,
    parse_signature,
    parse_simple,
    signed_bytes,
)

COSIGN = Path(__file__).parent / "cosign"
BUNDLE = (COSIGN / "bundle.json").read_bytes()
SIMPLE = (COSIGN / "simple.json").read_bytes()
SIMPLE_SIGNATURE = (COSIGN / "simple.sig").read_text()
IMAGE = Digest.parse("sha256:fc63cb18afee132d7b07f5eac53487be37e96f5df1aa2f238a0e88bb9a1523b1")
OTHER = Digest.parse("sha256:882aa8d44560b7e4813880c127810234ffd1a340b53037e74e43c5c7a8fb2bd7")
KEY = COSIGN / "cosign.pub"


def signed(signer: Signer, image: Digest = IMAGE) -> bytes:
    statement = make_statement(image)
    return make_bundle(statement, signer.sign(signed_bytes(statement)), signer.hint)


def test_what_cosign_signed_verifies() -> None:
    keys = Verifier.load([KEY])
    assert keys.find_signer(IMAGE, parse_bundle(BUNDLE)) == str(KEY)
    simple = parse_simple(SIMPLE, SIMPLE_SIGNATURE)
    assert keys.find_signer(OTHER, simple) == str(KEY)
    assert simple.name == "127.0.0.1:5161/app"


def test_a_statement_is_cosigns_to_the_byte() -> None:
    envelope = json.loads(BUNDLE)["dsseEnvelope"]
    assert base64.b64decode(envelope["payload"]) == make_statement(IMAGE)


def test_cosigns_encrypted_key_signs_and_does_so_the_same_way_again() -> None:
    signer = Signer.load(COSIGN / "cosign.key", "pw")
    bundle = signed(signer)
    assert Verifier.load([KEY]).find_signer(IMAGE, parse_bundle(bundle)) == str(KEY)
    assert bundle == signed(signer)
    assert signer.hint == json.loads(BUNDLE)["verificationMaterial"]["publicKey"]["hint"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: rsa.generate_private_key(65537, 2048),
    ],
)
def test_a_plain_key_signs(make: Callable[[], object], tmp_path: Path) -> None:
    secret, public = write_key(tmp_path, make())
    claim = parse_bundle(signed(Signer.load(secret, None)))
    assert Verifier.load([KEY, public]).find_signer(IMAGE, claim) == str(public)
    assert Verifier.load([KEY]).find_signer(IMAGE, claim) == ""


def test_a_signature_is_of_its_image_only() -> None:
    assert Verifier.load([KEY]).find_signer(OTHER, parse_bundle(BUNDLE)) == ""


def test_no_byte_of_what_is_signed_may_differ() -> None:
    keys, claim = Verifier.load([KEY]), parse_bundle(BUNDLE)
    for at in range(0, len(claim.signed), 7):
        raw = bytearray(claim.signed)
        raw[at] ^= 1
        assert keys.find_signer(IMAGE, Claim(claim.images, bytes(raw), claim.signature)) == ""
    for at in range(len(claim.signature)):
        raw = bytearray(claim.signature)
        raw[at] ^= 1
        assert keys.find_signer(IMAGE, Claim(claim.images, claim.signed, bytes(raw))) == ""


def changed(**envelope: object) -> bytes:
    bundle = json.loads(BUNDLE)
    bundle["dsseEnvelope"] |= envelope
    return json.dumps(bundle).encode()


def statement(**facts: object) -> str:
    found = json.loads(make_statement(IMAGE)) | facts
    return base64.b64encode(json.dumps(found).encode()).decode()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b"{" + b" " * MAX_BUNDLE_SIZE + b"}",
        b'{"mediaType":"a","mediaType":"b"}',
        BUNDLE.replace(b"v0.3", b"v9.9"),
        changed(payloadType="text/plain"),
        changed(signatures=[]),
        changed(signatures=[{"sig": "AA=="}, {"sig": "AA=="}]),
        changed(signatures=[{"sig": "*"}]),
        changed(signatures=[{"sig": "A" * 4000}]),
        changed(payload=statement(predicateType="https://slsa.dev/provenance/v1")),
        changed(payload=statement(_type="x")),
        changed(payload=statement(subject=[])),
        changed(payload=statement(subject=[{"digest": {"sha256": "abc"}}])),
        changed(payload=statement(subject=[{"digest": {"sha256": IMAGE.hex}}] * 65)),
    ],
)
def test_what_is_no_signature_of_an_image_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_bundle(raw)


@given(st.binary(max_size=300), st.text(max_size=20))
def test_any_bytes_are_a_format_error(raw: bytes, text: str) -> None:
    for call in (lambda: parse_bundle(raw), lambda: parse_simple(raw, text)):
        with pytest.raises(FormatError):
            call()


@given(st.data())
def test_a_damaged_document_is_a_format_error_or_proves_nothing(data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from([BUNDLE, SIMPLE])))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    keys = Verifier.load([KEY])
    for parse in (parse_bundle, lambda one: parse_simple(one, SIMPLE_SIGNATURE)):
        try:
            claim = parse(bytes(raw))
        except FormatError:
            continue
        proven = keys.find_signer(OTHER, claim) or keys.find_signer(IMAGE, claim)
        # only what is not signed may differ: the hint of the key, unknown fields
        assert not proven or claim.signed == parse_bundle(BUNDLE).signed


def test_the_artifact_is_a_referrer_whose_layer_is_the_bundle() -> None:
    top = Descriptor(MANIFEST, IMAGE, 423)
    signature = parse_bundle(BUNDLE).signature
    descriptor, raw, blob = make_signature_artifact(top, BUNDLE, signature=signature)
    manifest = parse_manifest(raw)
    assert manifest.subject is not None and manifest.subject.digest == IMAGE
    assert manifest.artifact_type == descriptor.artifact_type == BUNDLE_TYPE
    assert listed_bundle(descriptor, IMAGE)
    assert Verifier.load([KEY]).find_signer(IMAGE, parse_bundle(listed_bundle(descriptor, IMAGE)))
    assert not listed_bundle(Descriptor(MANIFEST, IMAGE, 1, {"dev.layerkit.signature": "*"}), IMAGE)
    (where,) = list_signatures(manifest)
    assert where.blob == blob
    assert parse_signature(where, BUNDLE).images == (IMAGE,)


@pytest.mark.parametrize(
    ("text", "password", "error"),
    [
        ("", None, FormatError),
        ("hello", None, FormatError),
        (KEY.read_text(), None, UsageError),
        ((COSIGN / "cosign.key").read_text(), None, UsageError),
        ((COSIGN / "cosign.key").read_text(), "no", UsageError),
        ("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\ne30=\n-----END", "pw", FormatError),
        ("-----BEGIN PRIVATE KEY-----\ne30=\n-----END PRIVATE KEY-----\n", None, FormatError),
        ("-----BEGIN " + "A" * 70_000, None, FormatError),
    ],
)
def test_a_key_that_does_not_sign_says_why(
    text: str, password: str | None, error: type[LayerkitError], tmp_path: Path
) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    with pytest.raises(error):
        Signer.load(path, password)


def test_scrypt_may_not_cost_what_a_file_says(tmp_path: Path) -> None:
    text = (COSIGN / "cosign.key").read_text()
    head, body, tail = (
        text.partition("\n")[0],
        "".join(text.splitlines()[1:-1]),
        text.splitlines()[-1],
    )
    box = json.loads(base64.b64decode(body))
    box["kdf"]["params"]["N"] = 1 << 30
    path = tmp_path / "key"
    path.write_text("\n".join([head, base64.b64encode(json.dumps(box).encode()).decode(), tail]))
    with pytest.raises(FormatError, match="cost of scrypt"):
        Signer.load(path, "pw")


def test_an_encrypted_pem_opens_with_its_password_only(tmp_path: Path) -> None:
    key, path = ec.generate_private_key(ec.SECP256R1()), tmp_path / "key"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"pw"),
        )
    )
    assert Signer.load(path, "pw").hint
    for password in (None, "", "no"):
        with pytest.raises(UsageError):
            Signer.load(path, password)


def test_kinds_that_cosign_cannot_verify_do_not_sign(tmp_path: Path) -> None:
    for key in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())):
        secret, _ = write_key(tmp_path, key)
        with pytest.raises(UsageError, match="does not sign images"):
            Signer.load(secret, None)


def test_public_keys_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        Verifier.load([tmp_path / "none.pub"])
    with pytest.raises(UsageError, match="private key"):
        Verifier.load([COSIGN / "cosign.key"])
    _, public = write_key(tmp_path, ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(UsageError, match="does not verify"):
        Verifier.load([public])
