"""One dataset from its source to its score: the four steps, as plain functions.

Here: what the Dagster assets and the command line share. Not here: how a step works (`sources/`,
`embedding/`, `spectral/`, `warehouse/`), Dagster.
"""

import hashlib
import itertools
import logging
import math
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np

from visdiv_assets.embedding.embedder import SSCDEmbedder
from visdiv_assets.embedding.incremental import embed_manifest
from visdiv_assets.embedding.pipeline import Embedder, OnProgress
from visdiv_assets.errors import VisdivError, counted
from visdiv_assets.quality.conditions import RECOVERY
from visdiv_assets.quality.ratings import Reading, rated
from visdiv_assets.settings.model import SamplingUnit, Slices, unit_name
from visdiv_assets.sources.manifest import SAMPLE_MARK, Manifest, list_images
from visdiv_assets.sources.source import Source
from visdiv_assets.spectral.corrected import ESTIMATOR, corrected
from visdiv_assets.spectral.progressive import precise_enough, sample_sizes
from visdiv_assets.spectral.sampling import units_of
from visdiv_assets.spectral.score import Diversity, DiversityCalculator, diversity
from visdiv_assets.spectral.vendi import alikeness
from visdiv_assets.store.contents import Contents
from visdiv_assets.store.index import EmbeddingIndex
from visdiv_assets.store.plans import Plan, forget_plan, read_plan
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation, FailedImage
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.engine import Engine, Work
from visdiv_assets.workflows.moments import accumulate_moments
from visdiv_assets.workflows.plan import make_plan
from visdiv_assets.workflows.project import export, note_results, state_beside
from visdiv_assets.workflows.watch import judged

logger = logging.getLogger(__name__)

# With fewer, there is nothing to share.
FEWEST_UNITS = 2


@dataclass(frozen=True)
class Embedded:
    """What came of embedding a dataset.

    Attributes:
        index: which row belongs to each image, and why others have none.
        n_new: images that went through the model; all others were in the store.
        manifest: the images that were looked at: all of them, or a sample.
        work: what workers have done of it; None if it was this process alone.
    """

    index: EmbeddingIndex
    n_new: int
    manifest: Manifest
    work: Work | None = None


def list_dataset(dataset: str, source: Source, store: Store) -> Manifest:
    """List a dataset's images and keep the list; it is the latest one once it is scored."""
    manifest = list_images(source)
    for note in manifest.notes:
        logger.warning("%s: %s", source.uri, note)
    store.remove_leftovers(time.time())
    store.write_manifest(dataset, manifest)
    return manifest


def embed_dataset(
    dataset: str,
    manifest: Manifest,
    source: Source,
    embedder: Embedder,
    store: Store,
    warehouse: Warehouse | None = None,
    *,
    precision: float | None = None,
    sampling_unit: SamplingUnit = "near-duplicates",
    reread: bool = False,
    engine: Engine | None = None,
    on_progress: OnProgress | None = None,
) -> Embedded:
    """Embed what is missing of a manifest, and note in the warehouse what failed.

    All rows that the result stands on are verified; those of damaged segments are made again.

    Args:
        dataset: its name.
        manifest: its images, as `list_dataset` stored them.
        source: where its images are.
        embedder: what embeds them.
        store: gets the embeddings.
        warehouse: gets the failures.
        precision: embed random samples, each larger than the one before, until half the width of
            the corrected score's 95 % interval is no more than this; everything when None.
        sampling_unit: what that score takes for one piece of evidence.
        reread: read and hash every image again, also where size and time are unchanged; this
            process does that alone.
        engine: who embeds what is missing; None is this process.
        on_progress: told of progress.

    Raises:
        VisdivError: not one image can be decoded, or the engine has failed.
    """
    n_new, work = 0, None
    if reread and engine is not None:
        logger.warning("%s: one process reads all images again, without the engine", dataset)
        engine = None
    for chosen in [manifest] if precision is None else _growing(manifest):
        plan, done = _by_workers(dataset, chosen, source, embedder, store, engine, on_progress)
        index, embedded = _embed_soundly(
            dataset, chosen, source, embedder, store, on_progress, reread=reread
        )
        if plan is not None:
            forget_plan(store, plan)
        if done is not None:
            work, embedded = done, embedded + done.embedded
        n_new += embedded
        if precision is None or chosen is manifest or not index.n_images:
            break
        contents = Contents.of(index)
        moments, _ = contents.moments(store, embedder.model_id)
        if moments is None:
            continue
        sample = contents.sample(store, embedder.model_id, moments)
        # A folder or column is not looked at before all are chosen; near-duplicates come close.
        units = units_of(sample, "row") if sampling_unit == "row" else None
        if precise_enough(corrected(sample, units), precision):
            break
    if chosen is not manifest:
        store.write_manifest(dataset, chosen)
    if warehouse is not None:
        failed = index.failed().select(["image_id", "reason", "exception", "size"]).to_pylist()
        images = (FailedImage(*row.values()) for row in failed)
        warehouse.record_failures(dataset, embedder.model_id, images, datetime.now(UTC))
    if not index.n_images:
        _, reason = index.failures()[0]
        raise VisdivError(
            f"none of the {counted(len(index), 'image')} in {source.uri} can be decoded "
            f"(the first: {reason})"
        )
    return Embedded(index, n_new, chosen, work)


def _by_workers(
    dataset: str,
    manifest: Manifest,
    source: Source,
    embedder: Embedder,
    store: Store,
    engine: Engine | None,
    on_progress: OnProgress | None,
) -> tuple[Plan | None, Work | None]:
    """What an engine has done of a manifest, if there are units for several workers.

    Returns:
        the plan to forget once the index is written, and what was done.
    """
    if engine is None:
        return None, None
    before = read_plan(store, dataset)
    if before is not None and not before.by_engine:
        logger.warning(
            "%s: this process embeds alone, so as not to disturb the plan that `visdiv plan` has "
            "made; `visdiv merge` ends it",
            dataset,
        )
        return None, None
    size = engine.unit_images
    plan = make_plan(
        dataset, manifest, source, embedder, store, size, by_engine=True, fewest=FEWEST_UNITS
    )
    if len(plan.units) < FEWEST_UNITS:
        return before, None
    return plan, engine(plan, on_progress)


def _embed_soundly(
    dataset: str,
    manifest: Manifest,
    source: Source,
    embedder: Embedder,
    store: Store,
    on_progress: OnProgress | None,
    *,
    reread: bool,
) -> tuple[EmbeddingIndex, int]:
    """`embed_manifest`, and once more if rows that it found in the store are damaged."""
    index, embedded = embed_manifest(
        dataset, manifest, source, embedder, store, reread=reread, on_progress=on_progress
    )
    if not store.retire_damaged(embedder.model_id, index.segments()):
        return index, embedded
    index, again = embed_manifest(
        dataset, manifest, source, embedder, store, on_progress=on_progress
    )
    return index, embedded + again


def _growing(manifest: Manifest) -> Iterator[Manifest]:
    """Ever larger random samples of a manifest, each holding the one before; the last is all.

    Which images come first is decided by a hash of their ids, so that it is the same every time.
    """
    ids = itertools.chain.from_iterable(manifest.pieces.column("image_id"))
    digests = (hashlib.blake2b(each.as_py().encode(), digest_size=8).digest() for each in ids)
    order = np.argsort(np.frombuffer(b"".join(digests), dtype=">u8"), kind="stable")
    for size in sample_sizes(len(manifest)):
        yield manifest.sample(np.sort(order[:size]))


def score_dataset(
    dataset: str,
    model_id: str,
    fingerprint: str,
    store: Store,
    warehouse: Warehouse,
    *,
    listed: str,
    started: float,
    threshold: float | None = None,
    basis: str = "corrected",
    sampling_unit: SamplingUnit = "near-duplicates",
    recovery: timedelta = RECOVERY,
    run_id: str | None = None,
) -> tuple[Evaluation, Diversity]:
    """Score moments and record the evaluation.

    Args:
        dataset: its name.
        model_id: of the embeddings.
        fingerprint: of the manifest that was embedded: all images, or a sample.
        store: holds the moments.
        warehouse: gets the evaluation.
        listed: fingerprint of the manifest of all images; the latest one from now on.
        started: Unix time at which the evaluation began.
        threshold: score below which an alert is due; no alerts at all when None.
        basis: which score the threshold is for, `corrected` or `plain`.
        sampling_unit: what the moments were kept with.
        recovery: how long a score must stay above its threshold to count as recovered.
        run_id: Dagster's, if it is a run of Dagster's.

    Raises:
        VisdivError: fewer than 2 images were embedded. Nothing is recorded then.
    """
    sample = store.read_sample(dataset, model_id, fingerprint)
    if sample.moments.n < 2:
        images = counted(sample.moments.n, "decodable image")
        raise VisdivError(f"{dataset} has only {images}; diversity needs at least 2")
    measured = diversity(sample.moments)
    fair = corrected(sample)
    by_row = sampling_unit == "row"
    other = corrected(sample, units_of(sample, "near-duplicates" if by_row else "row"))
    alike = alikeness(sample.moments)
    reading = Reading(_known(fair.score), _known(fair.low), _known(fair.high))
    rating = rated(reading, fair.n_units, alike.spread, measured.n)
    index = store.index_of(dataset, model_id, fingerprint)
    evaluation = Evaluation(
        evaluation_id=uuid.uuid4().hex,
        dataset=dataset,
        evaluated_at=datetime.now(UTC),
        run_id=run_id,
        model_id=model_id,
        n_images=measured.n,
        n_failed=index.n_failed,
        dimension=measured.dimension,
        effective_rank=measured.effective_rank,
        participation_ratio=measured.participation_ratio,
        diversity_score=measured.score,
        rating=rating.name,
        stars=rating.stars,
        manifest_fingerprint=fingerprint,
        seconds=time.time() - started,
        n_distinct=index.n_distinct,
        corrected_score=_known(fair.score),
        corrected_low=_known(fair.low),
        corrected_high=_known(fair.high),
        corrected_effective_rank=_known(fair.effective_rank),
        corrected_participation_ratio=_known(fair.participation_ratio),
        n_listed=store.manifest_length(dataset, listed),
        basis=basis,
        n_flat=index.n_flat,
        estimator=None if fair.too_few else ESTIMATOR,
        sampling_unit=unit_name(sampling_unit),
        n_units=fair.n_units,
        other_score=_known(other.score),
        other_low=_known(other.low),
        other_high=_known(other.high),
        effective_rank_low=_known(fair.effective_rank_interval[0]),
        effective_rank_high=_known(fair.effective_rank_interval[1]),
        participation_ratio_low=_known(fair.participation_ratio_interval[0]),
        participation_ratio_high=_known(fair.participation_ratio_interval[1]),
        spread=alike.spread,
        vendi=alike.vendi,
        rke=alike.rke,
        threshold=threshold,
    )
    with judged(warehouse, state_beside(warehouse), recovery):
        evaluation = warehouse.record(evaluation, measured.spectrum)
    try:
        store.name_latest(dataset, partial(_scored_last, warehouse, dataset))
        note_results(store, warehouse)
    except (OSError, VisdivError) as error:  # the disk is full; the sensors ask for one more
        reason = getattr(error, "strerror", None) or error
        logger.warning("%s is scored, but that cannot be noted (%s)", dataset, reason)
    export(warehouse)
    return evaluation, measured


def _scored_last(warehouse: Warehouse, dataset: str) -> str:
    """The fingerprint of the images that were scored last, or that the sample was drawn from."""
    [newest] = warehouse.newest_evaluations([dataset])
    return newest.manifest_fingerprint.partition(SAMPLE_MARK)[0]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def evaluate(
    dataset: str,
    source: Source,
    embedder: Embedder,
    store: Store,
    warehouse: Warehouse,
    *,
    threshold: float | None = None,
    basis: str = "corrected",
    recovery: timedelta = RECOVERY,
    slices: Slices = None,
    sampling_unit: SamplingUnit = "near-duplicates",
    precision: float | None = None,
    reread: bool = False,
    manifest: Manifest | None = None,
    engine: Engine | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[Evaluation, Embedded]:
    """All four steps, one after the other; arguments as theirs. With a manifest, all but the first.

    Raises:
        VisdivError: no images, or fewer than 2 that can be decoded. Nothing is recorded then.
    """
    started = time.time()
    if manifest is None:
        manifest = list_dataset(dataset, source, store)
    embedded = embed_dataset(
        dataset,
        manifest,
        source,
        embedder,
        store,
        warehouse,
        precision=precision,
        sampling_unit=sampling_unit,
        reread=reread,
        engine=engine,
        on_progress=on_progress,
    )
    scored = embedded.manifest.fingerprint
    accumulate_moments(
        dataset, embedder.model_id, scored, store, slices=slices, sampling_unit=sampling_unit
    )
    evaluation, _ = score_dataset(
        dataset,
        embedder.model_id,
        scored,
        store,
        warehouse,
        listed=manifest.fingerprint,
        started=started,
        threshold=threshold,
        basis=basis,
        sampling_unit=sampling_unit,
        recovery=recovery,
    )
    return evaluation, embedded


def evaluate_diversity(path: str | Path, embedder: SSCDEmbedder | None = None) -> float:
    """The plain diversity score of a folder of images, in [0, 1]. Nothing is stored.

    Args:
        path: a folder, searched recursively.
        embedder: what embeds the images; `SSCDEmbedder()` when None.

    Raises:
        VisdivError: no such folder, no decodable image in it, or no weights.
        ValueError: fewer than 2 images can be decoded.

    References:
        FineVision (HuggingFaceM4), section "How diverse are the datasets?".

    Example:
        >>> evaluate_diversity("photos/")                              # doctest: +SKIP
        0.2892
    """
    return DiversityCalculator().calculate((embedder or SSCDEmbedder()).extract(path))
