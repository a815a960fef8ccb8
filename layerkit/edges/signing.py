"""Keys that sign images, and keys that prove it: the only place that touches cryptography.

Keys are files in PEM. Public: SubjectPublicKeyInfo, as `cosign generate-key-pair` and openssl
write. Private: cosign's encrypted one (scrypt and NaCl secretbox around PKCS#8), or PKCS#8 and SEC1
in the clear. Kinds: ECDSA on P-256 (what cosign makes), and RSA of 2048 bits or more; to verify
P-384 and P-521, too. cosign 3.1.3 cannot verify what it signs with Ed25519 or the larger curves
without a log, so nothing is signed with them here.

ECDSA signatures are deterministic (RFC 6979): a push that is run again gives the same signature,
and no bad random number gives the key away. No log and no certificate authority is asked: who has
the public key trusts that key.

Sources: cosign v3.1.3 pkg/cosign/keys.go; go-securesystemslib v0.11 encrypted/encrypted.go.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nacl.bindings
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from nacl.exceptions import CryptoError

from layerkit.digest import Digest
from layerkit.edges.disk import map_os_error
from layerkit.errors import FormatError, NotFoundError, UsageError
from layerkit.formats.signature import Claim

__all__ = ["Signer", "Verifier"]

MAX_KEY_SIZE: Final = 64 << 10  # bytes of a key file
PASSWORD_HINT: Final = "set COSIGN_PASSWORD to the key's password"
_ENCRYPTED: Final = ("ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY")
# N of scrypt that are taken, r = 8, p = 1: a key file must not make this take gigabytes
_SCRYPT_COSTS: Final = (1 << 15, 1 << 16, 1 << 17)
_SCRYPT_MEMORY: Final = 256 << 20  # bytes; the largest takes 128 MiB
_CURVE_HASHES: Final[dict[str, Callable[[], hashes.HashAlgorithm]]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192


class Signer:
    """A private key."""

    def __init__(self, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
        self._key = key
        # how sigstore names a key: SHA-256 of its SubjectPublicKeyInfo
        public = key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.hint = base64.b64encode(hashlib.sha256(public).digest()).decode("ascii")

    @classmethod
    def load(cls, path: Path, password: str | None) -> Signer:
        """The private key in a file. Raises NotFoundError, UsageError (of a kind that does not
        sign here, or the wrong password), FormatError."""
        raw = _read(path)
        kind = _pem_kind(raw, path)
        if kind == "PUBLIC KEY":
            raise UsageError(f"{path} is a public key", hint="name the private key to sign with")
        der = _open_box(raw, path, password) if kind in _ENCRYPTED else b""
        secret = (password or "").encode() or None
        try:
            if der:
                key = serialization.load_der_private_key(der, None)
            else:
                encrypted = kind == "ENCRYPTED PRIVATE KEY"
                key = serialization.load_pem_private_key(raw, secret if encrypted else None)
        except TypeError as exc:
            raise UsageError(f"{path} is encrypted", hint=PASSWORD_HINT) from exc
        except (ValueError, UnsupportedAlgorithm) as exc:
            if kind == "ENCRYPTED PRIVATE KEY" and "password" in str(exc):
                what = f"the password does not open {path}"
                raise UsageError(what, hint=PASSWORD_HINT) from exc
            raise FormatError(f"{path} does not hold a private key", cause=str(exc)[:200]) from exc
        if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp256r1":
            return cls(key)
        if isinstance(key, rsa.RSAPrivateKey) and MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            return cls(key)
        raise UsageError(
            f"{path}: this kind of key does not sign images",
            cause="cosign verifies ECDSA on P-256, and RSA of 2048 bits or more",
            hint="make a key with 'cosign generate-key-pair'",
        )

    def sign(self, data: bytes) -> bytes:
        """The signature, as cosign's: ECDSA in DER, or RSA PKCS #1 v1.5, over SHA-256."""
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        return self._key.sign(data, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


@dataclass(frozen=True, slots=True)
class _PublicKey:
    name: str  # the file
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey

    def proves(self, claim: Claim) -> bool:
        try:
            if isinstance(self.key, rsa.RSAPublicKey):
                self.key.verify(claim.signature, claim.signed, padding.PKCS1v15(), hashes.SHA256())
            else:
                algorithm = _CURVE_HASHES[self.key.curve.name]()
                self.key.verify(claim.signature, claim.signed, ec.ECDSA(algorithm))
        except InvalidSignature:
            return False
        return True


class Verifier:
    """Public keys, any of which may have signed. Each is one that its owner is trusted with."""

    def __init__(self, keys: Sequence[_PublicKey]) -> None:
        self._keys = tuple(keys)

    @classmethod
    def load(cls, paths: Iterable[Path]) -> Verifier:
        """Keys of files, one in each. Raises NotFoundError, UsageError, FormatError."""
        keys = [_PublicKey(str(path), _load_public(path)) for path in paths]
        if not keys:
            raise UsageError("there is no key to verify with")
        return cls(keys)

    @property
    def names(self) -> str:
        """The files, for people."""
        return ", ".join(key.name for key in self._keys)

    def find_signer(self, image: Digest, claim: Claim) -> str:
        """The file of the key that signed `image` with this claim; "" if none did."""
        if image not in claim.images:
            return ""
        return next((key.name for key in self._keys if key.proves(claim)), "")


def _load_public(path: Path) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    raw = _read(path)
    if "PRIVATE KEY" in _pem_kind(raw, path):
        raise UsageError(
            f"{path} is a private key", hint="verify with its public key, as cosign.pub"
        )
    try:
        key = serialization.load_pem_public_key(raw)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise FormatError(f"{path} does not hold a public key", cause=str(exc)[:200]) from exc
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVE_HASHES:
        return key
    if isinstance(key, rsa.RSAPublicKey) and MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        return key
    raise UsageError(
        f"{path}: this kind of key does not verify images",
        cause="known are ECDSA on P-256, P-384 and P-521, and RSA of 2048 bits or more",
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_KEY_SIZE + 1)
    except FileNotFoundError as exc:
        raise NotFoundError(f"key {path} does not exist") from exc
    except OSError as exc:
        raise map_os_error(exc, "read", path) from exc
    if len(raw) > MAX_KEY_SIZE:
        raise FormatError(f"{path} is over {MAX_KEY_SIZE} bytes, which no key has")
    return raw


def _pem_kind(raw: bytes, path: Path) -> str:
    """What the first PEM block says that it is."""
    head, found, rest = raw.partition(b"-----BEGIN ")
    kind, ends, _ = rest.partition(b"-----")
    if not found or not ends or len(kind) > 64:
        raise FormatError(f"{path} is not a key in PEM", offset=len(head))
    return kind.decode("ascii", "replace")


def _open_box(raw: bytes, path: Path, password: str | None) -> bytes:
    """PKCS#8 out of cosign's encrypted key."""
    if password is None:
        raise UsageError(f"{path} is encrypted", hint=PASSWORD_HINT)
    try:
        box = json.loads(base64.b64decode(b"".join(raw.split(b"-----")[2].split()), validate=True))
        costs = {key: box["kdf"]["params"][key] for key in ("N", "r", "p")}
        salt, nonce, sealed = (
            base64.b64decode(text, validate=True)
            for text in (box["kdf"]["salt"], box["cipher"]["nonce"], box["ciphertext"])
        )
        names = (box["kdf"]["name"], box["cipher"]["name"])
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error, RecursionError) as exc:
        raise FormatError(f"{path} is not cosign's encrypted key", cause=str(exc)[:200]) from exc
    if names != ("scrypt", "nacl/secretbox") or len(nonce) != 24:
        raise FormatError(f"{path}: its encryption is not scrypt and nacl/secretbox")
    if costs["N"] not in _SCRYPT_COSTS or (costs["r"], costs["p"]) != (8, 1):
        raise FormatError(f"{path}: cost of scrypt is {costs}, want one that cosign writes")
    facts: dict[str, Any] = {"salt": salt, "n": costs["N"], "r": 8, "p": 1, "dklen": 32}
    key = hashlib.scrypt(password.encode(), maxmem=_SCRYPT_MEMORY, **facts)
    try:
        opened: bytes = nacl.bindings.crypto_secretbox_open(sealed, nonce, key)
    except (CryptoError, ValueError) as exc:
        raise UsageError(f"the password does not open {path}", hint=PASSWORD_HINT) from exc
    return opened
