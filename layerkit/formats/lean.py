"""Chunks artifacts without the forms of some layers: lean ones, for where bytes are sent.

A form follows from its layer: it is the tar itself, or is made of the tar and the labels blob. So
it need not lie beside the image: only who makes updates or serves chunks wants it, and he can make
it. The chunk manifest's descriptor then says in an annotation which form blob was left out, so that
a form has one name whichever way it is had. Pure. Spec: docs/format.md "Chunks artifact".
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from typing import Final

from layerkit.digest import Digest
from layerkit.formats.oci import (
    ANNOTATION_FORM,
    ANNOTATION_LAYER,
    CHUNK_MANIFEST,
    FORM_ZSTD,
    Descriptor,
    Manifest,
)

__all__ = ["find_left_out", "leave_out"]

_LEFT_OUT: Final = re.compile(r"(sha256:[0-9a-f]{64}) ([1-9][0-9]{0,11})")


def leave_out(artifact: Manifest, layers: Collection[str]) -> Manifest:
    """The artifact without the form blobs of these layers, named by their diff_ids."""
    forms = {
        blob.annotations.get(ANNOTATION_LAYER, ""): blob
        for blob in artifact.layers
        if blob.media_type == FORM_ZSTD
    }
    kept = []
    for blob in artifact.layers:
        layer = blob.annotations.get(ANNOTATION_LAYER, "")
        is_out = layer in layers and layer in forms
        if is_out and blob.media_type == FORM_ZSTD:
            continue
        if is_out and blob.media_type == CHUNK_MANIFEST:
            name = f"{forms[layer].digest} {forms[layer].size}"
            blob = replace(blob, annotations={**blob.annotations, ANNOTATION_FORM: name})
        kept.append(blob)
    return replace(artifact, layers=tuple(kept))


def find_left_out(listed: Descriptor) -> Descriptor | None:
    """The form blob that was left out beside this chunk manifest, if one was."""
    found = _LEFT_OUT.fullmatch(listed.annotations.get(ANNOTATION_FORM, ""))
    if listed.media_type != CHUNK_MANIFEST or found is None:
        return None
    layer = listed.annotations.get(ANNOTATION_LAYER, "")
    annotations = {ANNOTATION_LAYER: layer} if layer else {}
    return Descriptor(FORM_ZSTD, Digest.parse(found[1]), int(found[2]), annotations)
