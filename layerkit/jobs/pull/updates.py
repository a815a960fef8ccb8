"""An update on the node: one request for all that lies between what is held and what is wanted.

Everything in it is checked as if it had come the plain way; any refusal means that way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

from layerkit.digest import Digest, sha256_digest
from layerkit.edges import held
from layerkit.edges.store import ARTIFACT_KIND
from layerkit.errors import IntegrityError, NotFoundError
from layerkit.formats import oci
from layerkit.formats.update import Update, parse_update, update_old
from layerkit.formats.updating import NewLayer, apply_update
from layerkit.jobs.pull.documents import REFUSED, WantedImage
from layerkit.jobs.pull.fetching import Fetcher

__all__ = ["measure_update", "try_update"]

_log = logging.getLogger(__name__)


def measure_update(image: WantedImage) -> int | None:
    """Bytes of the update that a pull would get; None if it would get none."""
    have = held.list_held(image.store, image.ref)
    if not have:
        return None
    try:
        return image.remote.measure_update(
            image.ref.repository, image.ref_text, have, str(image.platform)
        )
    except NotFoundError:
        return None


def try_update(image: WantedImage, fetcher: Fetcher, take: Callable[[NewLayer], None]) -> bool:
    """One request for all that lies between the images held here, of this repository and of
    others, and the wanted one. False when there is no such update, or it is refused: then the
    pull goes its plain way. `take` gets each layer that came."""
    have = held.list_held(image.store, image.ref)
    if not have or (image.ref.digest and image.store.is_complete(image.ref.digest)):
        return False
    try:
        raw = image.remote.fetch_update(
            image.ref.repository, image.ref_text, have, str(image.platform)
        )
        if raw is None:
            image.use_top(have[0], image.store.get_blob(have[0]))
            return True
        old = update_old(raw)
        if old not in have:
            raise IntegrityError("update builds on another image", got=str(old))
        update = parse_update(raw, held.read_documents(image.store, old).as_list())
        for made in _take_update(image, old, update, have):
            take(made)
            fetcher.put_form(made.chunk_manifest, made.form)
    except REFUSED as exc:
        _log.info("no update: %s", exc.message)
        image.blobs.clear()
        image.artifact = None
        return False
    return True


def _take_update(
    image: WantedImage, old: Digest, update: Update, have: Sequence[Digest]
) -> list[NewLayer]:
    """Check everything that an update brings."""
    top = sha256_digest(update.top)
    if image.ref.digest not in (None, top):
        raise IntegrityError("update of another image", got=str(top), want=str(image.ref.digest))
    image.blobs[top] = (update.top, "")
    for data, kind in ((update.manifest, ""), (update.config, "")):
        if data:
            image.blobs[sha256_digest(data)] = (data, kind)
    image.use_top(top, update.top)
    artifact = oci.parse_manifest(update.artifact)
    if artifact.subject is None or artifact.subject.digest != image.image.digest:
        raise IntegrityError("update: chunks artifact of another image")
    image.blobs[sha256_digest(update.artifact)] = (update.artifact, ARTIFACT_KIND)
    image.artifact = artifact
    listed = held.read_chunk_manifests(image.store, old)
    named = [old, *(digest for digest in have if digest != old)]
    find = partial(held.find_form, image.store, named)
    return apply_update(update, listed, find, partial(held.read_form, image.store))
