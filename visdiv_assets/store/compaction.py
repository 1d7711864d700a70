"""Few large segments instead of many small ones.

Here: which segments are worth joining, and joining them. Not here: removing what is no longer
needed (`cleaning.py`).

Rows that no index names stay behind. The indexes that name the rest get new places; one that is
younger than the grace period may be in use, and is left alone: the next evaluation of its dataset
finds the new places by itself. The old segments are only set aside, as a clean-up does it: whoever
refers to them still reads them, and a later clean-up removes them. So nothing is lost, however it
ends, and what was begun is found again, since segments are named by their content.
"""

import io
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visdiv_assets.errors import Unreachable, VisdivError
from visdiv_assets.store.cleaning import GRACE_SECONDS, files_of, is_index
from visdiv_assets.store.files import (
    DamagedError,
    noticing_damage,
    read_table,
    stored_pieces,
    writing,
)
from visdiv_assets.store.index import KEY_BYTES, content_key
from visdiv_assets.store.objects import StoredFile
from visdiv_assets.store.segments import write_segment
from visdiv_assets.store.store import Store

# Rows of a joined segment, 256 MiB at 512 dimensions: what one damaged byte may cost.
MOST_ROWS = 262_144
# A segment of which less is named is written anew, without the rest.
WORTH_KEEPING = 0.5
# What is done about an index that is damaged.
LEFT_ALONE = "its segments are left alone"
# Segments that have fewer rows together than this are always joined.
FEW_ROWS = 4096
# So many new segments are made at a time: the keys of all their rows are in memory, some 200 MiB,
# and then all indexes that name them are written anew.
AT_ONCE = 16
READERS = 8


@dataclass
class _Use:
    """What is known of a segment: which of its rows indexes name, and whose those are."""

    named: NDArray[np.bool_]
    datasets: set[str] = field(default_factory=set)

    @property
    def n_named(self) -> int:
        return int(self.named.sum())


@dataclass(frozen=True)
class Join:
    """Segments of one model that become fewer.

    Attributes:
        model_id: their model.
        datasets: whose indexes name them.
        segments: their names, sorted.
        named: of each, which of its rows are kept.
        size: bytes that they take now.
    """

    model_id: str
    datasets: tuple[str, ...]
    segments: tuple[str, ...]
    named: tuple[NDArray[np.bool_], ...]
    size: int

    @property
    def n_rows(self) -> int:
        """Rows that are kept."""
        return sum(int(each.sum()) for each in self.named)


@dataclass
class CompactionPlan:
    """What a compaction would do.

    Attributes:
        joins: segments that become fewer.
        problems: what was left alone, and why.
    """

    joins: list[Join] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def n_segments(self) -> int:
        """Segments that are replaced."""
        return sum(len(join.segments) for join in self.joins)


def plan_compaction(
    store: Store, *, now: float, grace: float = GRACE_SECONDS, most_rows: int = MOST_ROWS
) -> CompactionPlan:
    """Which segments are worth joining.

    Joined are those of the same datasets, as long as each is no larger than all smaller ones
    together, so that a row is written anew once for each doubling.

    Args:
        store: nothing in it is changed.
        now: Unix time.
        grace: seconds; younger segments are left alone.
        most_rows: of a joined segment.
    """
    plan, files = CompactionPlan(), files_of(store)
    sizes = _old_segments(files, now, grace)
    for model_id in sorted({model_id for model_id, _ in sizes}):
        names = [name for of, name in sizes if of == model_id]
        uses = _uses(store, model_id, names, files, plan)
        if uses is None:
            continue
        groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for name, use in uses.items():
            if use.datasets:  # else a clean-up removes it
                groups[tuple(sorted(use.datasets))].append(name)
        for datasets, members in groups.items():
            chosen = worth_joining(
                {name: (uses[name].n_named, len(uses[name].named)) for name in members}, most_rows
            )
            n_named = {name: uses[name].n_named for name in chosen}
            for names_at_once in _batches(n_named, AT_ONCE * most_rows):
                named = tuple(uses[name].named for name in names_at_once)
                size = sum(sizes[model_id, name] for name in names_at_once)
                plan.joins.append(Join(model_id, datasets, names_at_once, named, size))
    return plan


def _batches(rows: Mapping[str, int], most: int) -> Iterator[tuple[str, ...]]:
    """The names in parts that have so many rows at most, unless one alone has more."""
    batch, n = list[str](), 0
    for name, more in rows.items():
        if batch and n + more > most:
            yield tuple(batch)
            batch, n = [], 0
        batch.append(name)
        n += more
    if batch:
        yield tuple(batch)


def worth_joining(rows: Mapping[str, tuple[int, int]], most_rows: int) -> tuple[str, ...]:
    """The segments that are worth writing anew together, sorted.

    Args:
        rows: of each segment, how many rows are named, and how many there are.
        most_rows: of a joined segment.

    Example:
        >>> worth_joining({"a": (3, 3), "b": (4, 4), "large": (900, 900)}, 1000)
        ('a', 'b')
        >>> worth_joining({"a": (3, 3), "b": (1, 900)}, 1000)
        ('a', 'b')
        >>> worth_joining({"a": (3000, 3000), "b": (9000, 9000)}, 100_000)
        ()
    """
    sparse = {name for name, (named, n) in rows.items() if named < WORTH_KEEPING * n}
    small = sorted(
        (name for name, (_, n) in rows.items() if name in sparse or n <= most_rows // 2),
        key=lambda name: (rows[name][0], name),
    )
    sums = list(itertools.accumulate((rows[name][0] for name in small), initial=0))
    alike = [
        at
        for at in range(1, len(small))
        if rows[small[at]][0] <= sums[at] or sums[at + 1] <= FEW_ROWS
    ]
    chosen = set(small[: alike[-1] + 1] if alike else ()) | sparse
    return tuple(sorted(chosen))


def compact(
    store: Store,
    plan: CompactionPlan,
    *,
    now: float,
    grace: float = GRACE_SECONDS,
    most_rows: int = MOST_ROWS,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Carry a plan out; what could not be done. May be ended at any moment, and done again.

    Args:
        store: where.
        plan: made for it.
        now: Unix time.
        grace: seconds; younger indexes are left alone.
        most_rows: of a joined segment.
        on_progress: told how many segments of how many were replaced.

    Raises:
        Unreachable: the store cannot be reached any more.
    """
    problems, done = list(plan.problems), 0
    written = set[str]()  # indexes that were written here
    for join in plan.joins:

        def is_idle(file: StoredFile) -> bool:
            return now - file.changed > grace or file.name in written

        try:
            written.update(_carry_out(store, join, is_idle, most_rows))
        except Unreachable:
            raise
        except (OSError, VisdivError) as error:
            problems.append(str(getattr(error, "strerror", None) or error))
        done += len(join.segments)
        if on_progress is not None:
            on_progress(done, plan.n_segments)
    return problems


def _old_segments(
    files: Sequence[StoredFile], now: float, grace: float
) -> dict[tuple[str, str], int]:
    """Bytes of the committed segments that are old enough, by model id and name."""
    parts: dict[tuple[str, str], dict[str, StoredFile]] = defaultdict(dict)
    for file in files:
        kind, *within, last = file.name.split("/")
        if kind == "embeddings" and len(within) == 1 and not last.startswith("."):
            name, dot, suffix = last.rpartition(".")
            parts[within[0], name][dot + suffix] = file
    return {
        segment: sum(file.size for file in both.values())
        for segment, both in sorted(parts.items())
        if both.keys() >= {".npy", ".parquet"}
        and all(now - file.changed > grace for file in both.values())
    }


def _uses(
    store: Store,
    model_id: str,
    names: Sequence[str],
    files: Sequence[StoredFile],
    plan: CompactionPlan,
) -> dict[str, _Use] | None:
    """By name, what indexes name of these segments; None if an index cannot be read."""

    def use_of(name: str) -> _Use | None:
        n = store.segment_rows(model_id, name)
        return None if n is None else _Use(np.zeros(n, dtype=np.bool_))

    with ThreadPoolExecutor(READERS, thread_name_prefix="compact") as threads:
        found = zip(names, threads.map(use_of, names), strict=True)
    uses = {name: use for name, use in found if use is not None}
    for file in _indexes_of(files, model_id):
        dataset = file.name.split("/")[1]
        try:
            with noticing_damage(store.objects.shown(file.name), LEFT_ALONE):
                index = stored_pieces(partial(store.reading, file.name, LEFT_ALONE))
                for piece in index(["segment", "row"]):
                    for name, rows in _by_segment(piece):
                        if name not in uses:
                            continue
                        if rows.max() >= len(uses[name].named):  # its head is damaged
                            del uses[name]
                            continue
                        uses[name].named[rows] = True
                        uses[name].datasets.add(dataset)
        except FileNotFoundError:
            continue
        except DamagedError as error:
            plan.problems.append(str(error))
            return None
    return uses


def _indexes_of(files: Sequence[StoredFile], model_id: str) -> list[StoredFile]:
    return [file for file in files if is_index(file) and file.name.split("/")[-2] == model_id]


def _by_segment(table: pa.Table) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Each segment that a table of an index names, and the rows that it names."""
    table = table.filter(pc.is_valid(table["row"]))
    for chunk in table.combine_chunks().to_batches():
        column = chunk["segment"]
        names, codes = column.dictionary.to_pylist(), column.indices.to_numpy()
        rows = chunk["row"].to_numpy().astype(np.int64)
        order = np.argsort(codes, kind="stable")
        for mine in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
            if len(mine):
                yield names[codes[mine[0]]], rows[mine]


def _carry_out(
    store: Store, join: Join, is_idle: Callable[[StoredFile], bool], most_rows: int
) -> set[str]:
    """Write new segments, name them in the idle indexes, and set the old ones aside.

    Returns:
        the names of the indexes that were written.
    """
    found = _keys_of(store, join)
    if found is None:
        return set()
    keys, flat = found
    kept = [np.flatnonzero(each) for each in join.named]
    # Contents that were embedded twice become one row.
    _, first, same = np.unique(keys, return_index=True, return_inverse=True)
    order = np.sort(first)
    place = np.searchsorted(order, first)[same]  # of each old row, its number among the new ones
    offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in kept])])

    def rows_of(start: int, end: int) -> Iterator[NDArray[np.float16]]:
        """The rows of new numbers, a segment of origin at a time."""
        wanted = order[start:end]
        for at, name in enumerate(join.segments):
            mine = wanted[(wanted >= offsets[at]) & (wanted < offsets[at + 1])] - offsets[at]
            if len(mine):
                yield store.rows(join.model_id, name)[kept[at][mine]]

    new = []
    for start in range(0, len(order), most_rows):
        end = min(start + most_rows, len(order))
        new.append(
            write_segment(
                store.objects,
                f"embeddings/{join.model_id}",
                [bytes(key).ljust(KEY_BYTES, b"\0") for key in keys[order[start:end]]],
                partial(rows_of, start, end),
                flat[order[start:end]],
            )
        )
    moved = {}
    for at, name in enumerate(join.segments):
        places = place[offsets[at] : offsets[at + 1]]
        moved[name] = (kept[at], places // most_rows, places % most_rows)
    # An index of another dataset that names them since is young, and would be left alone.
    files = [file for each in join.datasets for file in store.objects.files(f"indexes/{each}")]
    written = {
        file.name
        for file in _indexes_of(files, join.model_id)
        if is_idle(file) and _move(store, file, moved, new)
    }
    for name in set(join.segments) - set(new):
        store.set_aside(join.model_id, name)
    return written


def _keys_of(store: Store, join: Join) -> tuple[NDArray[np.bytes_], NDArray[np.bool_]] | None:
    """Content keys of the rows that are kept, and which of their pictures are flat.

    None if another compaction has joined some of them meanwhile.
    """
    keys, flat = [], []
    for name, named in zip(join.segments, join.named, strict=True):
        found = store.segment_keys(join.model_id, name)
        if (
            found is None
            and store.holds(join.model_id, name)
            and name not in store.segment_names(join.model_id)
        ):
            return None
        if found is None or len(found[0]) != len(named):
            raise DamagedError(f"segment {name} of {join.model_id} is damaged; it is left alone")
        keys.append(found[0][named])
        flat.append(found[1][named])
    return np.concatenate(keys), np.concatenate(flat)


def _move(
    store: Store,
    file: StoredFile,
    moved: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]],
    new: Sequence[str],
) -> bool:
    """Give an index the new places of its images; whether it names any that have moved."""
    shown = store.objects.shown(file.name)
    try:
        with noticing_damage(shown, "its segments are left alone"):
            path = store.objects.local(file.name)
            names = pc.unique(read_table(path, ["segment"])["segment"]).to_pylist()
            if not moved.keys() & set(names):
                return False
            before, table = content_key(path.read_bytes()), read_table(path)
    except FileNotFoundError:
        return False
    column = table["segment"].combine_chunks()
    names = column.dictionary.to_pylist()
    codes = column.indices.fill_null(-1).to_numpy().astype(np.int32)
    rows = table["row"].fill_null(-1).to_numpy().copy()
    all_names = list(dict.fromkeys([*names, *new]))
    for code, name in enumerate(names):
        if name not in moved:
            continue
        mine = np.flatnonzero(codes == code)
        old, segment, row = moved[name]
        at = np.searchsorted(old, rows[mine])
        if not len(mine):
            continue
        if (at == len(old)).any() or (old[at] != rows[mine]).any():
            raise VisdivError(f"{shown} was written anew meanwhile; its segments are left alone")
        numbers = np.array([all_names.index(each) for each in new], dtype=np.int32)
        codes[mine], rows[mine] = numbers[segment[at]], row[at]
    used, codes_now = np.unique(codes[codes >= 0], return_inverse=True)
    codes[codes >= 0] = codes_now
    gone = codes < 0
    segments = pa.DictionaryArray.from_arrays(
        pa.array(codes, pa.int32(), mask=gone),
        pa.array([all_names[code] for code in used], pa.string()),
    )
    for name, values in (("segment", segments), ("row", pa.array(rows, pa.int32(), mask=gone))):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(name), values)
    content = io.BytesIO()
    writing(table)(content)
    done = False

    def replaced(now: bytes | None) -> bytes | None:
        # Nobody has written to it for long; but an evaluation of the same images may do so now.
        nonlocal done
        done = now is not None and content_key(now) == before
        return content.getvalue() if done else None

    store.objects.update(file.name, replaced)
    if not done:
        raise VisdivError(f"{shown} was written anew meanwhile; its segments are left alone")
    return True
