"""What augmentations would add to a dataset, measured on a sample of its images.

Here: what `visdiv augment` and the asset `augmentation_guidance` share. Not here: the augmentations
(`embedding/augmentations.py`), and what a change means (`guidance/augmentation.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from visdiv_assets.embedding.augmentations import CATALOGUE, Augmentation, augment, pairs
from visdiv_assets.embedding.pictures import pictures_of
from visdiv_assets.embedding.pipeline import Embedder
from visdiv_assets.embedding.preprocess import Decoding, Pixels
from visdiv_assets.embedding.runtime import Vectors
from visdiv_assets.errors import VisdivError, counted
from visdiv_assets.guidance.augmentation import (
    ENOUGH_IMAGES,
    Effect,
    augmentation_effect,
    more_than_chance,
    verdict,
)
from visdiv_assets.report.sheets import SheetRow, Thumbnail
from visdiv_assets.sources.source import Source
from visdiv_assets.store.rows import DatasetRows
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.project import record

SAMPLE = 200

# The decoded images of a sample are in memory at once: 307 kB each.
LARGEST_SAMPLE = 2000

EXAMPLES = 6

OnProgress = Callable[[int, int], None]
"""Told how many images are embedded, and of how many."""


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
            f"a sample needs {ENOUGH_IMAGES} to {LARGEST_SAMPLE:,} images; got {size:,}"
        )
    where = evaluation.where
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
        images = counted(len(decoded), "different image")
        raise VisdivError(
            f"{evaluation.dataset} has {images} that can be read; "
            f"measuring augmentations needs {ENOUGH_IMAGES}"
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
            f"{embedder.model_id}; run `visdiv score {evaluation.dataset}` to evaluate it again"
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
                vectors.append(embedder.embed(batch))
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
    measured: Sequence[Measured], evaluation: Evaluation, warehouse: Warehouse
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
    record(evaluation.dataset, {"augmentation_effects": pa.Table.from_pylist(rows)}, warehouse)


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
