"""What a store holds, what of it nothing needs any more, and whether it is sound.

Here: listing its files, retention, unused segments, leftovers, verifying. Not here: which
evaluations are kept (`workflows/maintenance.py`), reading and writing in general (`store.py`).

A segment that no index names is not deleted at once. First its key file is hidden, so that nothing
new refers to it; whoever refers to it already can still read it. If no index has named it for as
long again, it is deleted; else it is brought back. So a run that was going on meanwhile loses
nothing, however the clean-up ends.
"""

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.manifest import SAMPLE_MARK
from visdiv_assets.store.files import DamagedError, noticing_damage, read_table
from visdiv_assets.store.store import UNUSED, Store

# Whatever is younger may belong to a run that is still at work: one is ended after a day.
GRACE_SECONDS = 7 * 86_400.0

# What a store is made of, as folders; Dagster's own folder is not ours to clean.
KINDS = ("manifests", "indexes", "moments", "embeddings", "pictures", "exports")
LEFTOVERS, SLICES = "leftovers", ".slices"

# A dataset, a model id and a fingerprint: what an evaluation is of.
Where = tuple[str, str, str]


class StoredFile(NamedTuple):
    """A file of the store.

    Attributes:
        path: where it is.
        kind: its folder in the store, or "leftovers" if its name is hidden.
        size: bytes.
        changed: Unix time of the last change.
    """

    path: Path
    kind: str
    size: int
    changed: float


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
    """All files of a store but its databases and Dagster's, in order of their paths."""
    found = []
    for kind in KINDS:
        for folder, _, names in os.walk(store.root / kind):
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(OSError):  # it went meanwhile
                    stat = path.stat(follow_symlinks=False)
                    hidden = name.startswith(".") and not name.startswith(UNUSED)
                    its_kind = LEFTOVERS if hidden and Path(folder).name[0] != "." else kind
                    found.append(StoredFile(path, its_kind, stat.st_size, stat.st_mtime))
    return sorted(found)


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
    kept_indexes = _newest_indexes(files)

    def is_needed(file: StoredFile) -> bool:
        parts, fingerprint = file.path.parts, file.path.stem
        if file.kind == "manifests":
            dataset = parts[-2]
            is_list = file.path.suffix == ".parquet"  # else it names the latest one
            return dataset not in datasets or not is_list or (dataset, fingerprint) in images
        if file.kind not in ("indexes", "moments"):
            return file.kind != LEFTOVERS  # segments have rules of their own
        where = (parts[-3], parts[-2], fingerprint)
        if where[0] not in datasets or file.path in kept_indexes:
            return True
        return where in (newest if file.path.suffix == SLICES else needed)

    plan.remove += [file for file in files if now - file.changed > grace and not is_needed(file)]
    gone = {file.path for file in plan.remove}
    indexes = [file for file in files if file.kind == "indexes" and file.path not in gone]
    _plan_segments(plan, files, _named_segments(indexes, plan), now, grace)
    return plan


def _newest_indexes(files: Iterable[StoredFile]) -> set[Path]:
    """Of each dataset, the newest index, and the newest of all images: they know unchanged ones."""
    newest: dict[tuple[str, bool], StoredFile] = {}
    for file in sorted(
        (each for each in files if each.kind == "indexes"), key=attrgetter("changed")
    ):
        dataset = file.path.parts[-3]
        newest[dataset, False] = file
        if SAMPLE_MARK not in file.path.stem:
            newest[dataset, True] = file
    return {file.path for file in newest.values()}


def _named_segments(
    indexes: Iterable[StoredFile], plan: CleaningPlan
) -> dict[str, set[str] | None]:
    """By model id, the segments that indexes name; None where an index cannot be read."""
    named: dict[str, set[str] | None] = defaultdict(set)
    for file in indexes:
        model_id = file.path.parts[-2]
        so_far = named[model_id]
        if so_far is None:
            continue
        try:
            with noticing_damage(file.path, "its segments are kept"):
                column = read_table(file.path, ["segment"])["segment"]
            so_far.update(name for name in pc.unique(column).to_pylist() if name is not None)
        except FileNotFoundError:
            continue
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
        if file.kind == "embeddings" and file.path.parent.parent.name == "embeddings":
            name = file.path.stem.removeprefix(UNUSED)
            part = "unused" if file.path.name.startswith(UNUSED) else file.path.suffix
            stored[file.path.parent.name, name][part] = file
    for (model_id, name), parts in sorted(stored.items()):
        segments = named.get(model_id, set())
        if segments is None:
            continue
        keys, unused = parts.get(".parquet"), parts.get("unused")
        old = {part for part, file in parts.items() if now - file.changed > grace}
        if unused is not None and (name in segments or keys is not None):
            (plan.remove if keys is not None else plan.restore).append(unused)
        elif unused is not None and "unused" in old:
            plan.remove += [unused, *([parts[".npy"]] if ".npy" in parts else [])]
        elif keys is None and unused is None and old == set(parts):
            plan.remove += parts.values()  # it was never committed
        elif keys is not None and name not in segments and {".parquet", ".npy"} <= old:
            plan.hide.append(keys)


def clean(plan: CleaningPlan, *, now: float) -> list[str]:
    """Carry a plan out; what could not be done. May be ended at any moment, and done again.

    What somebody has written anew since it was planned is left alone.
    """
    problems = list(plan.problems)

    def hide(path: Path) -> None:
        os.utime(path, (now, now))  # first: it is not deleted before it has been hidden for long
        path.rename(path.with_name(UNUSED + path.name))

    def restore(path: Path) -> None:
        path.rename(path.with_name(path.name.removeprefix(UNUSED)))

    def remove(path: Path) -> None:
        path.unlink()
        with contextlib.suppress(OSError):  # not empty
            path.parent.rmdir()

    steps = ((hide, plan.hide), (restore, plan.restore), (remove, plan.remove))
    for act, files in steps:
        for file in files:
            try:
                if file.path.stat(follow_symlinks=False).st_mtime == file.changed:
                    act(file.path)
            except FileNotFoundError:
                pass  # somebody else was faster
            except OSError as error:
                problems.append(f"{file.path}: {error.strerror}")
    return problems


def forget(store: Store, dataset: str) -> int:
    """Delete everything of a dataset but its embeddings, which others may share; bytes freed.

    Raises:
        VisdivError: something cannot be deleted.
    """
    folders = store.folders_of(dataset)
    files = [file for file in files_of(store) if any(each in file.path.parents for each in folders)]
    problems = clean(CleaningPlan(remove=files), now=0.0)
    if problems:
        raise VisdivError(f"not everything could be deleted: {problems[0]}")
    for folder in folders:
        for empty, _, _ in os.walk(folder, topdown=False):
            with contextlib.suppress(OSError):  # somebody writes to it
                Path(empty).rmdir()
    return sum(file.size for file in files)


def verify(store: Store, on_progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Read everything that has a checksum; what is damaged, in words. Nothing is changed.

    Args:
        store: to read.
        on_progress: told how many files of how many were read.
    """
    files = [file for file in files_of(store) if file.kind in KINDS[:4]]
    problems = []
    for done, file in enumerate(files):
        if on_progress is not None:
            on_progress(done, len(files))
        try:
            with noticing_damage(file.path, _cure(file)):
                _read_whole(file, store)
        except FileNotFoundError:
            continue
        except (OSError, VisdivError) as error:
            problems.append(str(error))
    return problems


def _cure(file: StoredFile) -> str:
    if file.kind == "embeddings":
        return "its images are embedded again by the next evaluation"
    dataset = file.path.parts[-2 if file.kind == "manifests" else -3]
    return f"run `visdiv score {dataset}`"


def _read_whole(file: StoredFile, store: Store) -> None:
    if file.path.suffix == ".parquet":
        read_table(file.path)
    elif file.kind == "moments":
        with np.load(file.path, allow_pickle=False) as arrays:
            for name in arrays.files:
                arrays[name]
    elif file.path.suffix == ".npy" and file.path.parent.parent.name == "embeddings":
        store.check_segment(file.path.parent.name, file.path.stem)
