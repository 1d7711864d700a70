"""Keeping a store no larger than it needs to be.

Here: which evaluations are kept, a clean-up from beginning to end, and what it did. Not here: what
of the store belongs to them (`store/cleaning.py`), how segments are joined (`store/compaction.py`).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import KeepSettings
from visdiv_assets.store.cleaning import (
    GRACE_SECONDS,
    CleaningPlan,
    clean,
    files_of,
    kind_of,
    plan_cleaning,
)
from visdiv_assets.store.compaction import CompactionPlan, compact, plan_compaction
from visdiv_assets.store.objects import StoredFile
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.workflows.project import Project, other_results


def retained(
    evaluations: Iterable[Evaluation],
    pinned: Collection[Evaluation],
    keep: KeepSettings,
    now: datetime,
) -> list[Evaluation]:
    """The evaluations whose images and moments are kept.

    Of each dataset, those are the newest ones, all that are young enough, and the pinned baseline.

    Args:
        evaluations: all, in the order of recording.
        pinned: baselines that somebody has chosen.
        keep: how many, and how young.
        now: aware datetime.
    """
    by_dataset: dict[str, list[Evaluation]] = defaultdict(list)
    for each in evaluations:
        by_dataset[each.dataset].append(each)
    kept = list(pinned)
    for history in by_dataset.values():
        kept += history[-keep.evaluations :]
        young = now - timedelta(days=keep.days)
        kept += [each for each in history[: -keep.evaluations] if each.evaluated_at >= young]
    return kept


@dataclass(frozen=True)
class CleanUp:
    """What a clean-up did, or would do.

    Attributes:
        plan: what was found.
        before: bytes in the store.
        done: whether it was carried out.
        problems: what was left alone, and why.
    """

    plan: CleaningPlan
    before: int
    done: bool
    problems: list[str]

    @property
    def after(self) -> int:
        """Bytes in the store afterwards."""
        return self.before - self.plan.freed


def clean_up(
    project: Project, now: datetime, *, apply: bool, grace: float = GRACE_SECONDS
) -> CleanUp:
    """Remove what no kept evaluation needs from a store, or find out what that would be.

    Args:
        project: its store, and the results that say what is needed.
        now: aware datetime.
        apply: whether to do it.
        grace: seconds within which nothing goes.

    Raises:
        VisdivError: the results cannot be read, or others refer to the store as well, so nobody
            knows what is needed.
    """
    store, warehouse = project.store, project.warehouse
    if not warehouse.path.exists() and any(store.datasets()):
        raise VisdivError(
            f"{warehouse.path} is gone, and without it nobody knows what is needed; nothing was "
            "removed"
        )
    if others := other_results(store, warehouse):
        raise VisdivError(
            f"{others[0]} has results that refer to this store, too, and nobody here knows what "
            "they need; nothing was removed. If they are gone for good, delete their note in "
            f"{store.objects.shown('results')}"
        )
    evaluations = warehouse.evaluations_after(0)
    names = {each.dataset for each in evaluations}
    pinned = [each for name in sorted(names) if (each := warehouse.baseline(name)) is not None]
    kept = retained(evaluations, pinned, project.settings.keep, now)
    newest = {each.dataset: each.where for each in evaluations}
    # The list that was seen last; if a sample of it was scored, it has no evaluation of its own.
    seen = {(name, "", store.latest_fingerprint(name) or "") for name in names}
    files = files_of(store)
    plan = plan_cleaning(
        store,
        {each.where for each in kept} | set(newest.values()) | seen,
        set(newest.values()),
        now=now.timestamp(),
        grace=grace,
    )
    problems = clean(store, plan) if apply else plan.problems
    return CleanUp(plan, sum(file.size for file in files), apply, problems)


@dataclass(frozen=True)
class Compaction:
    """What a compaction did, or would do.

    Attributes:
        plan: what was found.
        done: whether it was carried out.
        problems: what was left alone, and why.
    """

    plan: CompactionPlan
    done: bool
    problems: list[str]


def compact_store(
    project: Project,
    now: datetime,
    *,
    apply: bool,
    grace: float = GRACE_SECONDS,
    on_progress: Callable[[int, int], None] | None = None,
) -> Compaction:
    """Join small segments of a store, or find out which could be joined.

    Args:
        project: its store.
        now: aware datetime.
        apply: whether to do it.
        grace: seconds within which nothing is touched.
        on_progress: told how many segments of how many were replaced.
    """
    store, moment = project.store, now.timestamp()
    plan = plan_compaction(store, now=moment, grace=grace)
    problems = plan.problems
    if apply:
        problems = compact(store, plan, now=moment, grace=grace, on_progress=on_progress)
    return Compaction(plan, apply, problems)


def sizes(files: Iterable[StoredFile]) -> dict[str, tuple[int, int]]:
    """Number of files and bytes, by kind.

    Example:
        >>> sizes(StoredFile(f"moments/x/m/{name}.npz", 3, 0.0, "") for name in "ab")
        {'moments': (2, 6)}
    """
    number, size = Counter[str](), Counter[str]()
    for file in files:
        number[kind_of(file)] += 1
        size[kind_of(file)] += file.size
    return {kind: (number[kind], size[kind]) for kind in number}
