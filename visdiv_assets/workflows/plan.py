"""Embedding in units of work, by several processes or machines that share a store.

Here: making a plan, embedding units of it, whether it is done. Not here: where to cut
(`embedding/work.py`), scoring what came of it (`evaluate.py`).

Nobody hands out the work: each process takes the units of its share that are not committed. Two
that take the same unit do it twice, and lose nothing.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from visdiv_assets.embedding.incremental import (
    Earlier,
    as_part,
    embed_images,
    images_to_read,
)
from visdiv_assets.embedding.pipeline import Embedder, OnProgress
from visdiv_assets.embedding.work import cut, unit_id
from visdiv_assets.errors import PlanGone, UnreadableUnit, VisdivError, counted
from visdiv_assets.sources.containers import ContainerSource, whole_pieces
from visdiv_assets.sources.manifest import SCHEMA, Manifest
from visdiv_assets.sources.pieces import Gathering, Pieces
from visdiv_assets.sources.source import Source
from visdiv_assets.store.plans import (
    Plan,
    done_units,
    read_plan,
    read_unit,
    write_plan,
    write_result,
)
from visdiv_assets.store.store import Store

UNITS_NAMED = 10


@dataclass(frozen=True)
class Done:
    """What a process has made of its units.

    Attributes:
        units: how many it has committed.
        there: how many of its own had been committed before.
        embedded: images that went through the model.
        failed: images that could not be embedded.
    """

    units: int
    there: int
    embedded: int
    failed: int


def make_plan(
    dataset: str,
    manifest: Manifest,
    source: Source,
    embedder: Embedder,
    store: Store,
    most: Callable[[int], int],
    *,
    by_engine: bool = False,
    fewest: int = 0,
) -> Plan:
    """Cut what is not in the store yet of a dataset into units of work.

    The same images, model and store give the same plan. What came of the units of an earlier plan
    is not planned again.

    Args:
        dataset: its name.
        manifest: its images, or some of them.
        source: where they are.
        embedder: what is to embed them; the model is not loaded.
        store: gets the plan.
        most: how many images a unit has, given how many are to be embedded; images of one archive
            or table stay together.
        by_engine: whether an engine makes it for itself.
        fewest: with fewer units than this, the plan is not stored.
    """
    earlier, left = Earlier(store, dataset, embedder.decoding), Gathering(SCHEMA)
    for piece in manifest.pieces():
        some = Manifest(piece, manifest.fingerprint)
        left.add(piece.take(pa.array(images_to_read(some, embedder, store, earlier.of(some)))))
    images = left.pieces()
    units = partial(_units, images, source, most(images.length))
    told = [(unit_id(embedder.model_id, unit), len(unit)) for unit in units()]
    plan = Plan(
        dataset,
        embedder.model_id,
        manifest.fingerprint,
        store.latest_fingerprint(dataset) or "",
        tuple(of for of, _ in told),
        tuple(size for _, size in told),
        by_engine,
    )
    if len(told) >= fewest:
        write_plan(store, plan, units)
    return plan


def _units(images: Pieces, source: Source, most: int) -> Iterator[pa.Table]:
    """The images of each unit; memory holds no more than a piece of them, or one container's."""

    def parts(some: pa.Table) -> list[range]:
        files = [""] * len(some)
        if isinstance(source, ContainerSource):
            files = [source.file_of(image_id) for image_id in some["image_id"].to_pylist()]
        return cut(files, most)

    left = images.schema.empty_table()
    for piece in whole_pieces(images, source):
        left = pa.concat_tables([left, piece])
        *whole, last = parts(left)
        for rows in whole:
            yield left.slice(rows.start, len(rows))
        left = left.slice(last.start)  # the next piece may have more for it
    if len(left):
        yield left


def plan_of(dataset: str, store: Store) -> Plan:
    """The plan of a dataset.

    Raises:
        VisdivError: there is none.
    """
    plan = read_plan(store, dataset)
    if plan is None:
        raise VisdivError(f"there is no plan of {dataset}; run `visdiv plan {dataset}`")
    return plan


def embed_units(
    plan: Plan,
    numbers: Iterable[int],
    source: Source,
    embedder: Embedder,
    store: Store,
    on_progress: OnProgress | None = None,
) -> Done:
    """Embed units of a plan that are not committed yet, one after the other, and commit each.

    Args:
        plan: what is to be done.
        numbers: of the units.
        source: where the images are.
        embedder: what embeds them.
        store: gets rows and results.
        on_progress: told of the progress in all of them together.

    Raises:
        VisdivError: the plan is for another model, or was made again meanwhile; no image of a unit
            can be read; or what the source, the model or the store says. What was committed before
            stays.
    """
    if embedder.model_id != plan.model_id:
        raise VisdivError(
            f"the plan of {plan.dataset} is for the model {plan.model_id}, but here the settings "
            f"give {embedder.model_id}; use the same settings, versions and devices everywhere, "
            f"or run `visdiv plan {plan.dataset}` again"
        )
    numbers = list(numbers)
    there = done_units(store, plan)
    own = [number for number in numbers if number not in there]
    total, before = sum(plan.sizes[number] for number in own), 0
    embedded = failed = 0

    for number in own:
        images = Manifest(read_unit(store, plan, number), plan.units[number])
        if unit_id(plan.model_id, images.table) != plan.units[number]:
            raise PlanGone(
                f"the plan of {plan.dataset} was made again meanwhile, or is damaged; run `visdiv "
                f"plan {plan.dataset}` again"
            )
        tell = as_part(on_progress, before, total, embedded)
        index, new = embed_images(images, source, embedder, store, on_progress=tell)
        if index.table["content_key"].null_count == len(index):
            _, reason = index.failures()[0]
            raise UnreadableUnit(
                f"not one image of unit {number + 1} can be read from {source.uri} (the first: "
                f"{reason}), so it is left for another try; does this machine see them?"
            )
        write_result(store, plan, number, index)
        embedded += new
        failed += index.n_failed
        before += plan.sizes[number]
    return Done(len(own), len(numbers) - len(own), embedded, failed)


def planned_images(plan: Plan, store: Store) -> Manifest:
    """All images of a plan, once each of its units is committed.

    Raises:
        VisdivError: some are not, or other images have been scored since.
    """
    scored = store.latest_fingerprint(plan.dataset) or ""
    if scored not in (plan.before, plan.fingerprint):
        raise VisdivError(
            f"{plan.dataset} has been scored since it was planned, with other images; run `visdiv "
            f"plan {plan.dataset}` again, which leaves out what is done"
        )
    there = done_units(store, plan)
    missing = [number + 1 for number in range(len(plan.units)) if number not in there]
    if missing:
        named = ", ".join(map(str, missing[:UNITS_NAMED]))
        more = f" and {len(missing) - UNITS_NAMED:,} more" if len(missing) > UNITS_NAMED else ""
        raise VisdivError(
            f"{len(missing):,} of {counted(len(plan.units), 'unit')} of {plan.dataset} are not "
            f"embedded yet ({named}{more}); run `visdiv embed {plan.dataset}` for all of them, or "
            "the shares that have failed again"
        )
    return store.read_manifest(plan.dataset, plan.fingerprint)
