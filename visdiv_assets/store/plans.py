"""Plans of what is to be embedded in units of work, and what has come of each unit.

Here: writing and reading both. Not here: where to cut (`embedding/work.py`), doing it
(`workflows/plan.py`).

    plans/<dataset>/current                            JSON: of which images, with which model
    plans/<dataset>/<hash of the units>.parquet        what is to be read, a row group for each unit
    indexes/<dataset>/<model id>/<fingerprint>+<unit>.parquet   what came of a unit: its commit

What came of a unit is an index like any other. So a clean-up keeps its rows, and an evaluation
finds in it what it need not read again.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from visdiv_assets.errors import PlanGone, VisdivError
from visdiv_assets.sources.manifest import SCHEMA
from visdiv_assets.store.files import DamagedError, noticing_damage, stored_pieces, writing
from visdiv_assets.store.index import INDEX_SCHEMA, PART_MARK, EmbeddingIndex, content_key
from visdiv_assets.store.store import Store, below

CURRENT = "current"


@dataclass(frozen=True)
class Plan:
    """What is to be embedded, cut into units of work.

    Attributes:
        dataset: whose images these are.
        model_id: the model.
        fingerprint: of the manifest of all images.
        before: of the manifest that was scored last when this was planned; empty if none was.
        units: the id of each unit.
        sizes: how many images each has.
        by_engine: whether an engine has made it for itself; else people mean to merge it.
    """

    dataset: str
    model_id: str
    fingerprint: str
    before: str
    units: tuple[str, ...]
    sizes: tuple[int, ...]
    by_engine: bool = False

    @property
    def images(self) -> str:
        """Name of the file with the images of the units; other units have another."""
        return content_key(" ".join(self.units).encode()).hex()


def write_plan(store: Store, plan: Plan, units: Callable[[], Iterable[pa.Table]]) -> None:
    """Store a plan, in place of an earlier one of the dataset.

    Args:
        store: where to.
        plan: of these units.
        units: for each, its images, as in the manifest.
    """

    def write(file: IO[bytes]) -> None:
        with pq.ParquetWriter(file, SCHEMA, write_page_checksum=True) as writer:
            for unit in units():
                writer.write_table(unit, row_group_size=max(1, len(unit)))

    store.objects.write(_images(plan), write)
    told = json.dumps(asdict(plan)).encode()
    store.objects.write(_current(plan.dataset), lambda file: file.write(told))


def read_plan(store: Store, dataset: str) -> Plan | None:
    """The plan of a dataset; None if there is none, or it is damaged."""
    name = _current(dataset)
    try:
        with noticing_damage(store.objects.shown(name), "plan again"):
            told = json.loads(store.objects.local(name, fresh=True).read_bytes())
            plan = Plan(**{**told, "units": tuple(told["units"]), "sizes": tuple(told["sizes"])})
            named = [plan.dataset, plan.model_id, plan.fingerprint, plan.before, *plan.units]
            sound = all(isinstance(each, str) for each in named) and plan.dataset == dataset
            if not sound or [*map(type, plan.sizes)] != [int] * len(plan.units):
                raise ValueError("it is no plan of this dataset")
    except (FileNotFoundError, DamagedError):
        return None
    return plan


def read_unit(store: Store, plan: Plan, number: int) -> pa.Table:
    """The images of a unit, as in a manifest.

    Raises:
        VisdivError: they cannot be read, or are gone.
    """
    name, cure = _images(plan), f"run `visdiv plan {plan.dataset}` again"
    try:
        with (
            noticing_damage(store.objects.shown(name), cure),
            pq.ParquetFile(store.objects.local(name), page_checksum_verification=True) as file,
        ):
            return file.read_row_group(number).select(SCHEMA.names).cast(SCHEMA)
    except FileNotFoundError:
        raise PlanGone(f"the plan of {plan.dataset} was merged or replaced meanwhile") from None


def write_result(store: Store, plan: Plan, number: int, index: EmbeddingIndex) -> None:
    """Commit a unit; whoever does it twice writes as good a result."""
    store.objects.write(_part(plan, number), writing(index.pieces))


def done_units(store: Store, plan: Plan) -> set[int]:
    """The numbers of the units that are committed."""
    folder = below("indexes", plan.dataset, plan.model_id)
    there = {file.name for file in store.objects.files(folder)}
    return {number for number in range(len(plan.units)) if _part(plan, number) in there}


def parts_of(store: Store, dataset: str) -> list[EmbeddingIndex]:
    """What came of units of any plan of a dataset that is not merged yet.

    Their rows are read when they are needed.
    """
    found = []
    for name in sorted(_parts(store, dataset)):
        cure = "its images are read again"
        try:
            with noticing_damage(store.objects.shown(name), cure):
                pieces = stored_pieces(partial(store.reading, name, cure))
                for piece in pieces(INDEX_SCHEMA.names):
                    if piece.schema.types != INDEX_SCHEMA.types:
                        raise ValueError("columns of other types")
                found.append(EmbeddingIndex(pieces))
        except (FileNotFoundError, DamagedError):
            continue
    return found


def forget_plan(store: Store, plan: Plan) -> None:
    """Delete a plan that was merged, and what came of its units and of those of earlier plans.

    If the dataset was planned again meanwhile, all of it stays: the new plan builds on it.

    Raises:
        VisdivError: something cannot be deleted.
    """
    parts = [*_parts(store, plan.dataset)]
    if read_plan(store, plan.dataset) != plan:
        return
    plans = (file.name for file in store.objects.files(below("plans", plan.dataset)))
    for name in [*sorted(plans, reverse=True), *parts]:
        try:
            store.objects.delete(name)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise VisdivError(
                f"cannot delete {store.objects.shown(name)}: {error.strerror}"
            ) from error


def _parts(store: Store, dataset: str) -> Iterator[str]:
    for file in store.objects.files(below("indexes", dataset)):
        last = file.name.rpartition("/")[2]
        if PART_MARK in last and last.endswith(".parquet") and not last.startswith("."):
            yield file.name


def _current(dataset: str) -> str:
    return below("plans", dataset, CURRENT)


def _images(plan: Plan) -> str:
    return below("plans", plan.dataset, f"{plan.images}.parquet")


def _part(plan: Plan, number: int) -> str:
    part = f"{plan.fingerprint}{PART_MARK}{plan.units[number]}.parquet"
    return below("indexes", plan.dataset, plan.model_id, part)
