"""Publish an image of a layout: to a registry, a bucket or another layout.

Order: blobs, then manifests from the bottom up, then what refers to them, updates from what the tag
named included, then the name. A crash before the last step leaves what nobody sees; after it
everything is there, chunk manifests too. Updates are an extra: an image goes without them where
they cannot be made.
Within a step all goes at once, by a few threads, the largest blob first, while updates are made.
What is there is not sent, so a push that failed is run again, and one that is done changes nothing.
Each blob is checked against its digest before it is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from layerkit.digest import Digest
from layerkit.edges.layout import Layout
from layerkit.edges.storage.targets import HELD, MOUNTED, SENT, Document, Target
from layerkit.formats.oci import FORM_ZSTD, Descriptor
from layerkit.formats.reference import Reference
from layerkit.jobs.publish.content import Content, collect, find_repositories, open_checked
from layerkit.jobs.publish.wanted import UPDATE_COUNT, Extras, Progress

__all__ = ["PushResult", "publish"]

THREAD_COUNT: Final = 6  # requests at once: uploads wait for the line, the rest for answers
Sent = tuple[str, int]  # what became of a blob, its size


@dataclass(frozen=True, slots=True)
class PushResult:
    """What a push did. Counts are of blobs, sizes in bytes; manifests are not counted."""

    ref: str  # name@digest
    target: str
    digest: Digest
    platform_count: int
    referrer_count: int
    held_count: int
    mounted_count: int
    sent_count: int
    sent_size: int
    update_count: int  # updates from older images that were made
    update_size: int


def publish(
    layout: Layout,
    ref: Reference,
    target: Target,
    progress: Progress,
    *,
    update_count: int = UPDATE_COUNT,
    olds: Sequence[Reference] = (),
    packs: bool | None = None,
    forms: bool | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> PushResult:
    """Push what `ref` names in `layout`, with all its platforms and referrers, and updates to it
    from the last `update_count` images that the tag named in the target, and from `olds`. `packs`
    and `forms` as `Extras` has them.

    Raises NotFoundError and IntegrityError for what the layout lacks or has damaged, before
    anything is named; RemoteError and its kin as the target fails. What keeps an update from being
    made is told to `warn`.
    """
    ref = ref.tagged
    content = collect(layout, ref)
    size = sum(item.size for item in content.blobs.values())
    progress.total(size)
    extras = Extras(update_count, olds, packs, forms)
    with target.session(ref), ThreadPoolExecutor(THREAD_COUNT) as pool:
        near = find_repositories(layout, ref, content.blobs)

        def send(item: Descriptor) -> Sent:
            sources = near.get(item.digest, ())
            became = target.put_blob(ref, item, lambda: open_checked(layout, item), sources)
            progress.advance(item.size)
            return became, item.size

        is_lean = target.is_lean and not olds  # old images are looked up before anything is sent
        blobs = list(content.blobs.values())
        later = [item for item in blobs if item.media_type == FORM_ZSTD] if is_lean else blobs
        sending = _send(pool, send, [item for item in blobs if item not in later])
        try:
            # takes 0.2 s to load, in which blobs are sent
            from layerkit.jobs.publish.beside import Beside, find_old

            beside = Beside(layout, ref, target, content, size, progress, warn, extras)
            beside.prepare([find_old(layout, target, old) for old in olds])
            left = [item for item in later if item.digest in beside.lean.forms]
            sending += _send(pool, send, [item for item in later if item not in left])
            beside.make(lambda: _has_failed(sending))
            if beside.leaves_out:
                beside.lean.use(content)
                progress.advance(sum(item.size for item in left))
            else:
                sending += _send(pool, send, left)
            done = [future.result() for future in sending]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        _send_manifests(ref, target, content, beside.documents, pool)
        listed = [*(item for level in content.referrers for item, _ in level)]
        listed += [item for item, _ in beside.documents]
        target.commit(ref, content.manifests[-1], listed)
    return _result(ref, target, content, done, beside.sizes)


def _send(
    pool: ThreadPoolExecutor, send: Callable[[Descriptor], Sent], blobs: Iterable[Descriptor]
) -> list[Future[Sent]]:
    """The largest first: what it takes, the push takes."""
    ordered = sorted(blobs, key=lambda item: (-item.size, item.digest))
    return [pool.submit(send, item) for item in ordered]


def _has_failed(sending: Iterable[Future[Sent]]) -> bool:
    return any(future.done() and future.exception() is not None for future in sending)


def _send_manifests(
    ref: Reference,
    target: Target,
    content: Content,
    beside: Sequence[Document],
    pool: ThreadPoolExecutor,
) -> None:
    """First the image, then what refers to it, then what refers to that."""
    for document in content.manifests:
        target.put_manifest(ref, *document)
    first, *others = content.referrers or [[]]
    history = target.make_history(ref, content.top)
    for level in ([*first, *beside, *history], *others):
        list(pool.map(lambda document: target.put_manifest(ref, *document), level))


def _result(
    ref: Reference,
    target: Target,
    content: Content,
    done: Sequence[Sent],
    update_sizes: Sequence[int],
) -> PushResult:
    counts = {kind: sum(became == kind for became, _ in done) for kind in (HELD, MOUNTED, SENT)}
    return PushResult(
        str(ref.pinned(content.top.digest)),
        target.where,
        content.top.digest,
        content.image_count,
        sum(len(level) for level in content.referrers),
        counts[HELD],
        counts[MOUNTED],
        counts[SENT],
        sum(size for became, size in done if became == SENT),
        len(update_sizes),
        sum(update_sizes),
    )
