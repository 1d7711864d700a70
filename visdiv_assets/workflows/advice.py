"""What dominates a dataset, and what would make it more diverse: from store, source and model.

Here: what the Dagster assets and the command line share. Not here: the mathematics (`guidance/`),
the augmentations themselves (`embedding/augmentations.py`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from visdiv_assets.embedding.augmentations import CATALOGUE, Augmentation, augment, pairs
from visdiv_assets.embedding.pictures import pictures_of
from visdiv_assets.embedding.pipeline import Embedder
from visdiv_assets.embedding.preprocess import Decoding, Pixels
from visdiv_assets.embedding.runtime import Vectors
from visdiv_assets.errors import VisdivError
from visdiv_assets.guidance.augmentation import (
    ENOUGH_IMAGES,
    Effect,
    augmentation_effect,
    more_than_chance,
    verdict,
)
from visdiv_assets.guidance.axes import SIDES, Axes, find_axes
from visdiv_assets.guidance.comparison import Scored, compare
from visdiv_assets.guidance.mixtures import best_mixture
from visdiv_assets.report.sheets import SheetRow, Thumbnail
from visdiv_assets.sources.source import Source
from visdiv_assets.spectral.corrected import ENOUGH_ROWS, CorrectedScore, corrected
from visdiv_assets.store.rows import DatasetRows
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.warehouse import Evaluation, Warehouse
from visdiv_assets.workflows.portfolio import sample_of

SAMPLE = 200

# The decoded images of a sample are in memory at once: 307 kB each.
LARGEST_SAMPLE = 2000

EXAMPLES = 6

OnProgress = Callable[[int, int], None]
"""Told how many images are embedded, and of how many."""


# --- axes ---


@dataclass(frozen=True, eq=False)
class DatasetAxes:
    """The leading axes of a dataset's newest evaluation.

    Attributes:
        evaluation: which one.
        axes: what was found.
        image_ids: of each row at an end, the first image with that content.
    """

    evaluation: Evaluation
    axes: Axes
    image_ids: Mapping[int, str]


def axes_of(
    evaluation: Evaluation, store: Store, *, count: int = 5, per_end: int = 8
) -> DatasetAxes:
    """The leading axes of a dataset, and the images at their ends.

    Raises:
        VisdivError: its embeddings or moments are gone.
    """
    where = evaluation.dataset, evaluation.model_id, evaluation.manifest_fingerprint
    index = store.read_index(*where)
    rows = DatasetRows(store, evaluation.model_id, index)
    slices = {name: part.moments for name, part in store.read_slices(*where).items()}
    found = find_axes(store.read_moments(*where), rows, slices, count=count, per_end=per_end)
    ends = {int(row) for axis in found.axes for end in axis.ends for row in end.rows}
    ids = index.table["image_id"]
    names = {row: str(ids[int(rows.first[row])].as_py()) for row in sorted(ends)}
    return DatasetAxes(evaluation, found, names)


def record_axes(found: DatasetAxes, store: Store, warehouse: Warehouse) -> None:
    """Keep what lies at the ends of each axis in `bias_axes`, and export it."""
    now, rows = datetime.now(UTC), []
    for axis in found.axes.axes:
        for side, end in zip(SIDES, axis.ends, strict=True):
            placed = axis.slice_at(side)
            for rank, (row, position) in enumerate(zip(end.rows, end.positions, strict=True), 1):
                rows.append(
                    {
                        "axis": axis.number,
                        "share": axis.share,
                        "side": side,
                        "side_likeness": None if np.isnan(end.likeness) else end.likeness,
                        "side_share": end.beyond,
                        "rank": rank,
                        "image_id": found.image_ids[int(row)],
                        "position": float(position),
                        "between_slices": axis.between,
                        "slice": placed.name if placed else None,
                        "shared": found.axes.shared,
                        "model_id": found.evaluation.model_id,
                        "measured_at": now,
                    }
                )
    _record("bias_axes", found.evaluation.dataset, rows, store, warehouse)


def axes_sheet(found: DatasetAxes, source: Source, decoding: Decoding) -> list[SheetRow]:
    """The images at both ends of each axis, a row for each end."""
    pixels = {
        name: picture.pixels
        for name, _, picture in pictures_of(source, found.image_ids.values(), decoding)
    }
    sheet = []
    for axis in found.axes.axes:
        for side, end in zip(SIDES, axis.ends, strict=True):
            names = [found.image_ids[int(row)] for row in end.rows]
            title = f"{axis.number}{side}   one end of {axis.share * 100:.1f} % of all variation"
            if not np.isnan(end.likeness):
                title += f"   mean cosine {end.likeness:.2f}"
            if placed := axis.slice_at(side):
                title += f"   slice {placed.name}"
            sheet.append(SheetRow(title, [Thumbnail(pixels.get(name), name) for name in names]))
    return sheet


# --- augmentations ---


@dataclass(frozen=True, eq=False)
class Measured:
    """What one augmentation does to a dataset, and how its copies look.

    Attributes:
        augmentation: which one.
        effect: on the corrected score.
        examples: copies of the first images of the sample.
    """

    augmentation: Augmentation
    effect: Effect
    examples: Sequence[Pixels]


@dataclass(frozen=True, eq=False)
class AugmentationSample:
    """Images that augmentations are tried on: of a dataset, the first by content key.

    Attributes:
        evaluation: of the dataset.
        keys: content keys, ascending.
        pixels: the decoded images, in that order.
    """

    evaluation: Evaluation
    keys: Sequence[bytes]
    pixels: Sequence[Pixels]


def sample_images(
    evaluation: Evaluation, store: Store, source: Source, decoding: Decoding, size: int = SAMPLE
) -> AugmentationSample:
    """Decode a sample of a dataset's distinct images, the same one every time.

    Args:
        evaluation: the newest one of the dataset.
        store: knows its images.
        source: where they are.
        decoding: how to decode them.
        size: how many at most, from 53 to 2,000.

    Raises:
        VisdivError: a size out of range, or fewer than 53 images can be read.
    """
    if not ENOUGH_IMAGES <= size <= LARGEST_SAMPLE:
        raise VisdivError(
            f"a sample has {ENOUGH_IMAGES} to {LARGEST_SAMPLE:,} images, not {size:,}"
        )
    where = evaluation.dataset, evaluation.model_id, evaluation.manifest_fingerprint
    index = store.read_index(*where)
    rows = DatasetRows(store, evaluation.model_id, index)
    ids = index.table["image_id"]
    order = np.argsort(rows.keys, kind="stable")[:size]
    names = {str(ids[int(rows.first[row])].as_py()): bytes(rows.keys[row]) for row in order}
    decoded = [
        (names[name], picture.pixels) for name, _, picture in pictures_of(source, names, decoding)
    ]
    decoded.sort(key=lambda each: each[0])
    if len(decoded) < ENOUGH_IMAGES:
        raise VisdivError(
            f"{evaluation.dataset} has {len(decoded)} different images that can be read; it takes "
            f"{ENOUGH_IMAGES} to tell what augmentations add"
        )
    keys, pixels = zip(*decoded, strict=True)
    return AugmentationSample(evaluation, keys, pixels)


def measure_augmentations(
    sample: AugmentationSample,
    embedder: Embedder,
    augmentations: Sequence[Augmentation] = CATALOGUE,
    on_progress: OnProgress | None = None,
) -> Iterator[Measured]:
    """What each augmentation does to the corrected score of a dataset, one after the other.

    Args:
        sample: images of the dataset.
        embedder: the dataset's model.
        augmentations: what to try.
        on_progress: told of images embedded, of how many.

    Raises:
        VisdivError: the settings name another model than the one of the evaluation.
    """
    evaluation = sample.evaluation
    if embedder.model_id != evaluation.model_id:
        raise VisdivError(
            f"{evaluation.dataset} was evaluated with {evaluation.model_id}, but its model is now "
            f"{embedder.model_id}; visdiv score {evaluation.dataset} evaluates it anew"
        )
    n, done = len(sample.keys), 0
    total = n * (1 + len(augmentations))

    def embed(pixels: Iterator[Pixels]) -> tuple[Vectors, list[Pixels]]:
        nonlocal done
        vectors, examples, batch = [], [], []
        for at, image in enumerate(pixels):
            if at < EXAMPLES:
                examples.append(image)
            batch.append(image)
            if len(batch) == embedder.batch_size or at == n - 1:
                vectors.append(embedder.embed(np.stack(batch)))
                done += len(batch)
                batch = []
                if on_progress:
                    on_progress(done, total)
        return np.concatenate(vectors), examples

    originals, _ = embed(iter(sample.pixels))
    for each in augmentations:
        copies, examples = embed(augment(each, sample.pixels, sample.keys))
        effect = augmentation_effect(originals, copies, pairs(n) if each.mixes else None)
        yield Measured(each, effect, examples)


def record_augmentations(
    measured: Sequence[Measured], evaluation: Evaluation, store: Store, warehouse: Warehouse
) -> None:
    """Keep what augmentations do in `augmentation_effects`, and export it."""
    now, effects = datetime.now(UTC), {each.augmentation.name: each.effect for each in measured}
    sure = more_than_chance(effects)
    rows = [
        {
            "augmentation": name,
            **{
                key: None if np.isnan(value) else value
                for key, value in (
                    ("change", effect.change),
                    ("change_low", effect.low),
                    ("change_high", effect.high),
                    ("p_value", effect.p_value),
                )
            },
            "similarity": effect.similarity,
            "verdict": verdict(effect, sure=name in sure),
            "n_images": effect.n,
            "model_id": evaluation.model_id,
            "measured_at": now,
        }
        for name, effect in effects.items()
    ]
    _record("augmentation_effects", evaluation.dataset, rows, store, warehouse)


def augmentations_sheet(sample: AugmentationSample, measured: Sequence[Measured]) -> list[SheetRow]:
    """The first images of a sample, and below them the copies that each augmentation makes."""
    originals = [Thumbnail(pixels, "") for pixels in sample.pixels[:EXAMPLES]]
    return [
        SheetRow("originals, as the model sees them", originals),
        *(
            SheetRow(
                f"{each.augmentation.name}: {each.augmentation.what}",
                [Thumbnail(pixels, "") for pixels in each.examples],
            )
            for each in measured
        ),
    ]


# --- acquisitions ---


@dataclass(frozen=True)
class Acquisition:
    """What another dataset would add to one that is kept whole.

    Attributes:
        other: name of the other dataset.
        share: of the other in the most diverse mixture, in [0, 1).
        n_images: how many of its images that is, beside all of one's own.
        n_available: how many it has.
        corrected: score of the mixture.
        gain: change of the corrected score, relative; NaN where too few images tell.
        sure: whether it is more than chance.
    """

    other: str
    share: float
    n_images: int
    n_available: int
    corrected: CorrectedScore
    gain: float
    sure: bool


def acquisitions_of(
    name: str, others: Sequence[str], store: Store, warehouse: Warehouse
) -> tuple[Evaluation, list[Acquisition]]:
    """What each of some datasets would add to one, the most first; from moments and samples.

    The one keeps all its images; of the other as many are added as make the mixture most
    diverse, and no more than it has.

    Raises:
        VisdivError: no others, one that was never evaluated or with another model, or too few
            images to tell the score of `name`.
    """
    evaluation, *rest = warehouse.newest_evaluations([name, *others])
    if not rest:
        raise VisdivError(f"there is no other dataset that {name} could be mixed with")
    for other in rest:
        if other.model_id != evaluation.model_id:
            raise VisdivError(
                f"{other.dataset} and {name} were embedded with different models, which do not mix"
            )
    own = sample_of(evaluation, store)
    score = corrected(own)
    if score.too_few or len(own.keys) < ENOUGH_ROWS:
        raise VisdivError(
            f"{name} has too few different images to tell what would make it more diverse"
        )
    found = []
    for other in rest:
        most = other.n_images / (evaluation.n_images + other.n_images)
        theirs = sample_of(other, store)
        plan = best_mixture([name, other.dataset], [own, theirs], np.array([1.0, most]))
        share, mixed = float(plan.weights[1]), plan.corrected
        if len(theirs.keys) < ENOUGH_ROWS:  # no mixture with it can be judged
            share, mixed = 0.0, replace(mixed, score=np.nan, low=np.nan, high=np.nan)
        gain, sure = float("nan"), False
        if not mixed.too_few:
            gain = mixed.score / score.score - 1 if score.score > 0 else float("inf")
            scored = [
                Scored(label, each.score, each.low, each.high)
                for label, each in (("mixed", mixed), ("own", score))
            ]
            # They share images, so that their difference is surer than this test takes it to be.
            sure = share > 0 and compare(scored)[0].sure
        found.append(
            Acquisition(
                other.dataset,
                share,
                min(round(evaluation.n_images * share / (1 - share)), other.n_images),
                other.n_images,
                mixed,
                gain,
                sure,
            )
        )
    return evaluation, sorted(
        found, key=lambda each: (-np.nan_to_num(each.gain, nan=-1), each.other)
    )


def record_acquisitions(
    evaluation: Evaluation, found: Sequence[Acquisition], store: Store, warehouse: Warehouse
) -> None:
    """Keep what other datasets would add in `acquisitions`, and export it."""
    now = datetime.now(UTC)
    rows = [
        {
            "other": each.other,
            "share": each.share,
            "n_images": each.n_images,
            **{
                key: None if np.isnan(value) else value
                for key, value in (
                    ("gain", each.gain),
                    ("corrected_score", each.corrected.score),
                    ("corrected_low", each.corrected.low),
                    ("corrected_high", each.corrected.high),
                )
            },
            "sure": each.sure,
            "model_id": evaluation.model_id,
            "measured_at": now,
        }
        for each in found
    ]
    _record("acquisitions", evaluation.dataset, rows, store, warehouse)


def _record(
    table: str,
    dataset: str,
    rows: Sequence[Mapping[str, object]],
    store: Store,
    warehouse: Warehouse,
) -> None:
    warehouse.replace_rows(table, dataset, pa.Table.from_pylist(list(rows)))
    warehouse.export(store.root / "exports")
