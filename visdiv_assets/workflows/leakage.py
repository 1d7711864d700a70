"""Images of one dataset that another one has, too: near-duplicates across datasets, leakage.

Here: what `visdiv leakage`, `visdiv duplicates --against` and the asset `benchmark_leakage` share.
Not here: contact sheets (`sheets.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import Settings
from visdiv_assets.similarity.exact import Pairs, Similarities
from visdiv_assets.similarity.pairs import similar_pairs
from visdiv_assets.sources.manifest import TEXT
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.catalogue import (
    REPORTED,
    Catalogue,
    OnProgress,
    known_share,
    rows_of,
    step,
)
from visdiv_assets.workflows.project import EvaluatedDataset, record

# Why a benchmark was not compared whose settings cannot be used; they may name another model.
FAULTY = "its settings are wrong"

MATCHES = pa.schema(
    [
        ("image_id", TEXT),
        ("other_image_id", TEXT),
        ("similarity", pa.float32()),
        ("exact", pa.bool_()),
    ]
)


@dataclass(frozen=True, eq=False)
class Overlap:
    """Images of a dataset that another one has, too.

    Attributes:
        evaluation: of the one.
        other: of the other.
        threshold: cosine similarity from which two images are taken for one.
        images: for each image of the one that is in the other, the image there that is most like
            it; columns as in MATCHES, in order of ids.
        counts: how many images of the one there are at each threshold.
        n_exact: how many of them have the same bytes there.
        n_other: how many images of the other are in the one.
        method: "exact" or "index".
        recall: share of all pairs that were found; None where an index was used and that could
            not be measured.
    """

    evaluation: Evaluation
    other: Evaluation
    threshold: float
    images: pa.Table
    counts: Mapping[float, int]
    n_exact: int
    n_other: int
    method: str
    recall: float | None

    @property
    def rate(self) -> float:
        """Share of the images of the one that are in the other."""
        return len(self.images) / self.evaluation.n_images

    @property
    def other_rate(self) -> float:
        """Share of the images of the other that are in the one."""
        return self.n_other / self.other.n_images


@dataclass(frozen=True, eq=False)
class Leakage:
    """The images of a dataset that benchmarks have, too.

    Attributes:
        overlaps: with each benchmark that could be compared.
        not_compared: why others could not, by name.
    """

    overlaps: Sequence[Overlap]
    not_compared: Mapping[str, str]


def leakage_of(
    dataset: EvaluatedDataset,
    *,
    threshold: float | None = None,
    on_progress: OnProgress | None = None,
) -> Leakage:
    """Which images of a dataset benchmarks have; recorded if found with the settings' threshold.

    Args:
        dataset: what to look at.
        threshold: cosine similarity, 0 to 1; as in the settings when None.
        on_progress: told of progress.

    Raises:
        VisdivError: an index is gone.
    """
    project, wanted = dataset.project, dataset.settings.leakage.threshold
    level = wanted if threshold is None else threshold
    names = benchmarks_of(project.settings, dataset.name)
    usable = [name for name in names if name not in project.settings.faults]
    benchmarks, not_compared = comparable(dataset.evaluation, usable, project.warehouse)
    not_compared |= {name: FAULTY for name in names if name not in usable}
    overlaps = overlaps_of(dataset, benchmarks, level, on_progress)
    if level == wanted:
        record_leakage(dataset.name, overlaps, not_compared, project.warehouse)
    return Leakage(overlaps, not_compared)


def overlaps_of(
    dataset: EvaluatedDataset,
    others: Sequence[Evaluation],
    threshold: float,
    on_progress: OnProgress | None = None,
) -> list[Overlap]:
    """`find_overlap` of a dataset with each of others."""
    return [
        find_overlap(
            dataset.evaluation,
            other,
            dataset.project.store,
            threshold=threshold,
            device=dataset.device,
            on_progress=on_progress,
        )
        for other in others
    ]


def find_overlap(
    evaluation: Evaluation,
    other: Evaluation,
    store: Store,
    *,
    threshold: float,
    device: str = "cpu",
    on_progress: OnProgress | None = None,
) -> Overlap:
    """Which images of one dataset are in another, or so like one there that they may be.

    Args:
        evaluation: of the one.
        other: of the other, of the same model.
        store: holds the embeddings of both.
        threshold: cosine similarity, 0 to 1.
        device: as `similar_pairs` has it.
        on_progress: told of progress.

    Raises:
        VisdivError: different models, or an index that is gone.
        ValueError: the threshold is not between 0 and 1.
    """
    if evaluation.model_id != other.model_id:
        raise VisdivError(
            f"{evaluation.dataset} and {other.dataset} were embedded with different models, so "
            f"they cannot be compared: {evaluation.model_id}, {other.model_id}"
        )
    index, rows = rows_of(evaluation, store)
    other_index, others = rows_of(other, store)
    best = np.full(len(rows), -1, dtype=np.float32)
    match = np.zeros(len(rows), dtype=np.int64)
    seen = np.zeros(len(others), dtype=np.bool_)

    def keep_best(pairs: Pairs, similarities: Similarities) -> None:
        seen[pairs[similarities >= np.float32(threshold), 1]] = True
        order = np.lexsort((pairs[:, 1], -similarities, pairs[:, 0]))
        first = order[np.unique(pairs[order, 0], return_index=True)[1]]
        row, found, at = pairs[first, 0], similarities[first], pairs[first, 1]
        better = (found > best[row]) | ((found == best[row]) & (at < match[row]))
        best[row[better]], match[row[better]] = found[better], at[better]

    levels = sorted({threshold, *REPORTED})
    found = similar_pairs(
        rows,
        min(levels),
        others=others,
        strongest=True,
        device=device,
        on_pairs=keep_best,
        on_progress=step(on_progress, f"comparing with {other.dataset}"),
    )
    # The same bytes are the same image, whatever an index finds.
    _, here, there = np.intersect1d(rows.keys, others.keys, return_indices=True)
    best[here], match[here], seen[there] = 1.0, there, True
    exact = np.zeros(len(rows), dtype=np.bool_)
    exact[here] = True

    catalogue, other_catalogue = Catalogue(index, rows), Catalogue(other_index, others)
    chosen = np.flatnonzero(best >= np.float32(threshold))
    of, images = catalogue.images_of(chosen)
    order = np.argsort(images)
    at, images = chosen[of[order]], images[order]
    table = pa.table(
        [
            catalogue.ids.take(pa.array(images)),
            other_catalogue.ids.take(pa.array(others.first[match[at]])),
            pa.array(best[at]),
            pa.array(exact[at]),
        ],
        schema=MATCHES,
    )
    return Overlap(
        evaluation=evaluation,
        other=other,
        threshold=threshold,
        images=table,
        counts={level: int(catalogue.counts[best >= np.float32(level)].sum()) for level in levels},
        n_exact=int(catalogue.counts[here].sum()),
        n_other=int(other_catalogue.counts[seen].sum()),
        method=found.method,
        recall=known_share(found.recall),
    )


def comparable(
    evaluation: Evaluation, names: Iterable[str], warehouse: Warehouse
) -> tuple[list[Evaluation], dict[str, str]]:
    """The newest evaluations of other datasets that can be compared, and why others cannot."""
    latest = {each.dataset: each for each in warehouse.latest_evaluations()}
    others, reasons = [], {}
    for name in dict.fromkeys(names):
        if name == evaluation.dataset:
            continue
        if name not in latest:
            reasons[name] = "it has never been evaluated"
        elif latest[name].model_id != evaluation.model_id:
            reasons[name] = f"it was embedded with another model, {latest[name].model_id}"
        else:
            others.append(latest[name])
    return others, reasons


def benchmarks_of(settings: Settings, dataset: str) -> list[str]:
    """The datasets that a dataset must have no image of: none, for one that is held out itself.

    With those that may be benchmarks, but whose settings are wrong.
    """
    registered = settings.datasets.get(dataset)
    if registered is not None and registered.role == "benchmark":
        return []
    benchmarks = [name for name, each in settings.datasets.items() if each.role == "benchmark"]
    return [*benchmarks, *sorted(settings.may_be_benchmarks)]


def record_leakage(
    dataset: str,
    overlaps: Sequence[Overlap],
    not_compared: Mapping[str, str],
    warehouse: Warehouse,
) -> None:
    """Replace what the warehouse says of a dataset's images in benchmarks, and export it."""
    now = datetime.now(UTC)
    compared: list[dict[str, object]] = [
        {
            "benchmark": each.other.dataset,
            "found_at": now,
            "model_id": each.evaluation.model_id,
            "threshold": each.threshold,
            "n_images": each.evaluation.n_images,
            "n_leaked": len(each.images),
            "n_exact": each.n_exact,
            "n_benchmark_images": each.other.n_images,
            "n_benchmark_seen": each.n_other,
            "method": each.method,
            "recall": each.recall,
        }
        for each in overlaps
    ]
    skipped: list[dict[str, object]] = [
        {"benchmark": name, "found_at": now, "not_compared": reason}
        for name, reason in not_compared.items()
    ]
    leaks = [
        each.images.rename_columns({"other_image_id": "benchmark_image_id"}).add_column(
            0, "benchmark", pa.array([each.other.dataset] * len(each.images), pa.string())
        )
        for each in overlaps
        if len(each.images)
    ]
    names = list(dict.fromkeys(name for row in [*compared, *skipped] for name in row))
    rows = [{name: row.get(name) for name in names} for row in [*compared, *skipped]]
    findings = {
        "leaks": pa.concat_tables(leaks) if leaks else pa.table({}),
        "leakage": pa.Table.from_pylist(rows),
    }
    record(dataset, findings, warehouse)
