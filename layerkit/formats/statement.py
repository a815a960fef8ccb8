"""In-toto statements, in as far as signatures and provenance share them: types, and whose they are.

Light: what makes an SBOM (`supplychain`) loads a large library. Specs: in-toto Statement v1; SLSA
provenance v1.
"""

from __future__ import annotations

import json
from typing import Final

from layerkit.digest import Digest

__all__ = [
    "BUILDER",
    "PROVENANCE",
    "PROVENANCE_TYPE",
    "SBOM_TYPE",
    "STATEMENT",
    "is_own_provenance",
]

SBOM_TYPE: Final = "application/vnd.cyclonedx+json"
PROVENANCE_TYPE: Final = "application/vnd.in-toto+json"  # of any statement
STATEMENT: Final = "https://in-toto.io/Statement/v1"
PROVENANCE: Final = "https://slsa.dev/provenance/v1"  # a predicate type
BUILDER: Final = "https://layerkit.dev/builder"


def is_own_provenance(raw: bytes, image: Digest) -> bool:
    """Is it a statement of provenance about `image` as `supplychain.make_provenance` writes it?"""
    try:
        statement = json.loads(raw)
        builder = statement["predicate"]["runDetails"]["builder"]["id"]
        subjects = [subject["digest"]["sha256"] for subject in statement["subject"]]
        kinds = (statement["_type"], statement["predicateType"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return (builder, *kinds) == (BUILDER, STATEMENT, PROVENANCE) and subjects == [image.hex]
