"""What a store holds, what of it nothing needs any more, and whether it is sound.

Here: listing its files, retention, unused segments, leftovers, verifying. Not here: which
evaluations are kept (`workflows/maintenance.py`), reading and writing in general (`store.py`).

A segment that no index names is not deleted at once. First its key file is hidden, so that nothing
new refers to it; whoever refers to it already can still read it. If no index has named it for as
long again, it is deleted; else it is brought back. So a run that was going on meanwhile loses
nothing, however the clean-up ends.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow.compute as pc

from visdiv_assets.errors import Unreachable, VisdivError
from visdiv_assets.store.files import DamagedError, noticing_damage, read_table
from visdiv_assets.store.index import PART_MARK
from visdiv_assets.store.objects import StoredFile
from visdiv_assets.store.plans import CURRENT, Plan, read_plan
from visdiv_assets.store.store import SAFE_NAME, UNUSED, Store, hidden

# Whatever is younger may belong to a run that is still at work: one is ended after a day.
GRACE_SECONDS = 7 * 86_400.0

# What a store is made of, as folders; Dagster's own folder is not ours to clean.
KINDS = ("manifests", "plans", "indexes", "moments", "embeddings", "pictures", "exports")
LEFTOVERS, SLICES = "leftovers", "slices"

# A dataset, a model id and a fingerprint: what an evaluation is of.
Where = tuple[str, str, str]


@dataclass
class CleaningPlan:
    """What a clean-up would do.

    Attributes:
        remove: files to delete.
        hide: key files of segments that no index names, to be hidden.
        restore: hidden key files of segments that an index names after all.
        problems: what was left alone, and why.
    """

    remove: list[StoredFile] = field(default_factory=list)
    hide: list[StoredFile] = field(default_factory=list)
    restore: list[StoredFile] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def freed(self) -> int:
        """Bytes that are freed."""
        return sum(file.size for file in self.remove)


def files_of(store: Store) -> list[StoredFile]:
    """All files of a store but its databases and Dagster's, in order of their names."""
    return sorted(file for kind in KINDS for file in store.objects.files(kind))


def kind_of(file: StoredFile) -> str:
    """The folder in the store that a file belongs to, or "leftovers" if its name is hidden.

    Example:
        >>> kind_of(StoredFile("moments/birds/m/f.npz", 1, 0.0, ""))
        'moments'
        >>> kind_of(StoredFile("moments/birds/m/.tmp-x", 1, 0.0, ""))
        'leftovers'
    """
    kind, *_, last = file.name.split("/")
    return LEFTOVERS if last.startswith(".") and not last.startswith(UNUSED) else kind


def plan_cleaning(
    store: Store,
    needed: Collection[Where],
    newest: Collection[Where],
    *,
    now: float,
    grace: float = GRACE_SECONDS,
) -> CleaningPlan:
    """What of a store can go.

    Nothing that changed within the grace period goes, and nothing of a dataset of which nothing is
    needed: such a dataset is unknown to the results, perhaps because these were lost.

    Args:
        store: nothing in it is changed.
        needed: what the evaluations are of that are kept.
        newest: those among them whose slices are kept, too.
        now: Unix time.
        grace: seconds.
    """
    plan = CleaningPlan()
    files = files_of(store)
    datasets = {dataset for dataset, _, _ in needed}
    images = {(dataset, fingerprint) for dataset, _, fingerprint in needed}
    planned = _planned(store, files)
    images |= {(name, each.fingerprint) for name, each in planned.items() if each}
    # They know the images that have not changed.
    kept_indexes = {name for dataset in datasets for name in store.newest_indexes(dataset)}

    def is_needed(file: StoredFile) -> bool:
        kind, *within, last = file.name.split("/")
        stem, dot, suffix = last.rpartition(".")
        fingerprint = stem if dot else suffix
        if kind_of(file) == LEFTOVERS:
            return False
        if kind == "manifests" and len(within) == 1 and suffix == "parquet":
            return within[0] not in datasets or (within[0], fingerprint) in images
        if kind == "plans" and len(within) == 1:
            current = planned.get(within[0])
            return not dot or current is None or current.images == fingerprint
        if kind not in ("indexes", "moments") or len(within) != 2:
            return True  # segments have rules of their own
        where = (*within, fingerprint)
        if PART_MARK in fingerprint and where[0] in planned:
            return True  # the plan leaves out what was done of earlier ones
        if where[0] not in datasets or file.name in kept_indexes:
            return True
        return where in (newest if suffix == SLICES else needed)

    plan.remove += [file for file in files if now - file.changed > grace and not is_needed(file)]
    gone = {file.name for file in plan.remove}
    indexes = [file for file in files if is_index(file) and file.name not in gone]
    _plan_segments(plan, files, _named_segments(store, indexes, plan), now, grace)
    return plan


def _planned(store: Store, files: Iterable[StoredFile]) -> dict[str, Plan | None]:
    """The plan of each dataset that has one; None if it cannot be read."""
    names = (file.name.split("/") for file in files if kind_of(file) == "plans")
    datasets = {parts[1] for parts in names if parts[2:] == [CURRENT]}
    return {name: read_plan(store, name) for name in datasets if SAFE_NAME.fullmatch(name)}


def is_index(file: StoredFile) -> bool:
    """Whether a file is an index of some images."""
    return kind_of(file) == "indexes" and file.name.endswith(".parquet")


def _named_segments(
    store: Store, indexes: Iterable[StoredFile], plan: CleaningPlan
) -> dict[str, set[str] | None]:
    """By model id, the segments that indexes name; None where an index cannot be read."""
    named: dict[str, set[str] | None] = defaultdict(set)
    for file in indexes:
        model_id = file.name.split("/")[-2]
        so_far = named[model_id]
        if so_far is None:
            continue
        try:
            with noticing_damage(store.objects.shown(file.name), "its segments are kept"):
                column = read_table(store.objects.local(file.name), ["segment"])["segment"]
            so_far.update(name for name in pc.unique(column).to_pylist() if name is not None)
        except FileNotFoundError:  # another clean-up was faster, or a copy has gone
            shown = store.objects.shown(file.name)
            plan.problems.append(f"{shown} has gone meanwhile; its segments are kept")
            named[model_id] = None
        except DamagedError as error:
            plan.problems.append(str(error))
            named[model_id] = None
    return named


def _plan_segments(
    plan: CleaningPlan,
    files: Iterable[StoredFile],
    named: Mapping[str, set[str] | None],
    now: float,
    grace: float,
) -> None:
    stored: dict[tuple[str, str], dict[str, StoredFile]] = defaultdict(dict)
    for file in files:
        _, *within, last = file.name.split("/")
        if kind_of(file) == "embeddings" and len(within) == 1:
            name, dot, suffix = last.rpartition(".")
            part = "unused" if last.startswith(UNUSED) else dot + suffix
            stored[within[0], name.removeprefix(UNUSED)][part] = file
    for (model_id, name), parts in sorted(stored.items()):
        segments = named.get(model_id, set())
        if segments is None:
            continue
        keys, unused = parts.get(".parquet"), parts.get("unused")
        old = {part for part, file in parts.items() if now - file.changed > grace}
        if unused is not None and keys is not None:
            plan.remove.append(unused)  # it was embedded again
        elif unused is not None and name in segments:
            if "unused" in old:  # else whoever names it may have moved on by then
                plan.restore.append(unused)
        elif unused is not None and old == set(parts):  # nobody is embedding it again
            plan.remove += [unused, *([parts[".npy"]] if ".npy" in parts else [])]
        elif keys is None and unused is None and old == set(parts):
            plan.remove += parts.values()  # it was never committed
        elif keys is not None and name not in segments and {".parquet", ".npy"} <= old:
            plan.hide.append(keys)


def clean(store: Store, plan: CleaningPlan) -> list[str]:
    """Carry a plan out; what could not be done. May be ended at any moment, and done again.

    What somebody has written anew since it was planned is left alone.
    """
    problems, objects = list(plan.problems), store.objects

    def hide(name: str) -> None:
        objects.rename(name, hidden(name, UNUSED))

    def restore(name: str) -> None:
        folder, _, last = name.rpartition("/")
        objects.rename(name, f"{folder}/{last.removeprefix(UNUSED)}")

    steps = ((hide, plan.hide), (restore, plan.restore), (objects.delete, plan.remove))
    for act, files in steps:
        for file in files:
            try:
                if _is_as_it_was(store, file):
                    act(file.name)
            except FileNotFoundError:
                pass  # somebody else was faster
            except Unreachable:
                raise
            except OSError as error:
                problems.append(f"{objects.shown(file.name)}: {error.strerror}")
            except VisdivError as error:
                problems.append(str(error))
    return problems


def _is_as_it_was(store: Store, file: StoredFile) -> bool:
    """Whether nobody has written a file since it was listed, nor committed its segment again.

    In a bucket, the version is that of the content, and times are whole seconds.
    """
    now = store.objects.about(file.name)
    if now.version != file.version or int(now.changed) != int(file.changed):
        return False
    rows = file.name.startswith("embeddings/") and file.name.endswith(".npy")
    if rows and not file.name.rpartition("/")[2].startswith("."):
        try:
            store.objects.about(f"{file.name.removesuffix('.npy')}.parquet")
        except FileNotFoundError:
            return True
        return False
    return True


def forget(store: Store, dataset: str) -> int:
    """Delete everything of a dataset but its embeddings, which others may share; bytes freed.

    Raises:
        VisdivError: something cannot be deleted.
    """
    files = [file for folder in store.folders_of(dataset) for file in store.objects.files(folder)]
    problems = clean(store, CleaningPlan(remove=files))
    if problems:
        raise VisdivError(f"not everything could be deleted: {problems[0]}")
    return sum(file.size for file in files)


def verify(store: Store, on_progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Read everything that has a checksum; what is damaged, in words. Nothing is changed.

    Args:
        store: to read.
        on_progress: told how many files of how many were read.
    """
    files = [file for file in files_of(store) if kind_of(file) in KINDS[:5]]
    problems = []
    for done, file in enumerate(files):
        if on_progress is not None:
            on_progress(done, len(files))
        try:
            with noticing_damage(store.objects.shown(file.name), _cure(file)):
                _read_whole(file, store)
        except FileNotFoundError:
            continue
        except Unreachable:
            raise
        except (OSError, VisdivError) as error:
            problems.append(str(error))
    return problems


def _cure(file: StoredFile) -> str:
    kind, dataset, *_ = file.name.split("/")
    if kind == "embeddings":
        return "its images are embedded again by the next evaluation"
    return f"run `visdiv score {dataset}`"


def _read_whole(file: StoredFile, store: Store) -> None:
    kind, *within, last = file.name.split("/")
    if last.endswith(".parquet"):
        read_table(store.objects.local(file.name, fresh=True))
    elif kind == "moments":
        with np.load(store.objects.local(file.name, fresh=True), allow_pickle=False) as arrays:
            for name in arrays.files:
                arrays[name]
    elif kind == "embeddings" and last.endswith(".npy"):
        store.check_segment(within[0], last.removesuffix(".npy"))
