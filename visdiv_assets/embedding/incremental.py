"""Manifest → committed embeddings: only missing ones go through the model.

Here: what can be skipped, and the resulting index.
Not here: reading, decoding and embedding images concurrently (`pipeline.py`).
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from visdiv_assets.embedding.decoding import is_passing
from visdiv_assets.embedding.pipeline import (
    NOT_FINITE,
    Embedder,
    Failure,
    OnProgress,
    Outcome,
    Waits,
    embed_stream,
)
from visdiv_assets.embedding.preprocess import Decoding
from visdiv_assets.errors import VisdivError
from visdiv_assets.sources.containers import whole_pieces
from visdiv_assets.sources.manifest import TEXT, Manifest
from visdiv_assets.sources.pieces import Gathering, Pieces, Reader
from visdiv_assets.sources.source import Source
from visdiv_assets.store.files import DamagedError
from visdiv_assets.store.index import (
    INDEX_SCHEMA,
    JUDGE,
    KEY_BYTES,
    EmbeddingIndex,
    Keys,
    to_keys,
)
from visdiv_assets.store.key_index import KeyIndex
from visdiv_assets.store.plans import parts_of
from visdiv_assets.store.segments import SEGMENT_SECONDS
from visdiv_assets.store.store import Store

logger = logging.getLogger(__name__)

# Other processes may embed the same contents. What they have committed is looked for this often;
# they commit as often.
LOOK_AGAIN_SECONDS = SEGMENT_SECONDS

# Key files that are read at the same time, and that are in memory at a time.
READERS = 4
READ_AT_ONCE = 64

NO_KEY = b""  # in an array of keys: the content was not read


def embed_manifest(
    dataset: str,
    manifest: Manifest,
    source: Source,
    embedder: Embedder,
    store: Store,
    *,
    reread: bool = False,
    on_progress: OnProgress | None = None,
) -> tuple[EmbeddingIndex, int]:
    """Embed every decodable image of a manifest that is not in the store yet.

    Unchanged images are not opened, unless all are to be read again.

    Returns:
        the index, which is also written to the store, and the number of images that went through
        the model.
    """
    earlier = Earlier(store, dataset, embedder.decoding)
    judge = {JUDGE: embedder.decoding.judge.encode()}
    gathering, done, embedded = Gathering(INDEX_SCHEMA.with_metadata(judge)), 0, 0

    for piece in whole_pieces(manifest.pieces, source):
        images = Manifest(piece, manifest.fingerprint)
        index, new = embed_images(
            images,
            source,
            embedder,
            store,
            earlier.of(images),
            reread=reread,
            on_progress=as_part(on_progress, done, len(manifest), embedded),
        )
        gathering.add(index.table)
        done, embedded = done + len(images), embedded + new
    whole = EmbeddingIndex(gathering.pieces())
    store.write_index(dataset, embedder.model_id, manifest.fingerprint, whole)
    return whole, embedded


def as_part(
    on_progress: OnProgress | None, done: int, total: int, embedded: int
) -> OnProgress | None:
    """What tells of a part, for one who wants to know of the whole; so far, this much was done."""

    def tell(of_part: int, _: int, new: int, bottleneck: str) -> None:
        assert on_progress is not None
        on_progress(done + of_part, total, embedded + new, bottleneck)

    return None if on_progress is None else tell


@dataclass(frozen=True, eq=False)
class Found:
    """What is known of images before they are read.

    Attributes:
        indexes: earlier indexes of them, the newest first.
        undecodable: content that the same decoder failed on before, and would fail on again;
            what is found while images are read is added.
    """

    indexes: Sequence[EmbeddingIndex] = ()
    undecodable: dict[bytes, Failure] = field(default_factory=dict)


class Earlier:
    """What earlier evaluations of a dataset, and units of work, have found of its images.

    It is read a piece at a time, as the manifest is.

    Args:
        store: holds the indexes.
        dataset: its name.
        decoding: with which images are decoded now.
    """

    def __init__(self, store: Store, dataset: str, decoding: Decoding) -> None:
        found = [*parts_of(store, dataset), *store.earlier_indexes(dataset)]
        indexes = [EmbeddingIndex(_while_it_is_there(index.pieces)) for index in found]
        self._undecodable = _failures_that_stay(indexes, decoding)
        first = ((_first_id(index), number) for number, index in enumerate(indexes))
        # The last one is the next to be read.
        self._waiting = sorted(((at, n) for at, n in first if at is not None), reverse=True)
        self._indexes, self._readers = indexes, dict[int, Reader]()

    def of(self, images: Manifest) -> Found:
        """What is known of a piece of the manifest; each begins where the one before ends."""
        last = images.table["image_id"][-1].as_py()
        while self._waiting and self._waiting[-1][0] <= last:
            _, number = self._waiting.pop()
            self._readers[number] = Reader(self._indexes[number].pieces)
        found = []
        for number, reader in sorted(self._readers.items()):
            if rows := reader.up_to(last):
                found.append(EmbeddingIndex(rows))
            if reader.is_over and reader.last is None:
                del self._readers[number]
        return Found(found, self._undecodable)


def _while_it_is_there(pieces: Pieces) -> Pieces:
    """Rows of an index that somebody else may delete meanwhile; what is gone is read again."""

    def read(columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
        try:
            yield from pieces.read(columns, rows)
        except (DamagedError, FileNotFoundError) as error:
            logger.warning("images are read again, since what was known of them is gone: %s", error)

    return replace(pieces, read=read)


def _first_id(index: EmbeddingIndex) -> str | None:
    ids = next(index.pieces(["image_id"], 1), None)
    return None if ids is None else ids["image_id"][0].as_py()


def images_to_read(
    manifest: Manifest, embedder: Embedder, store: Store, found: Found
) -> NDArray[np.int64]:
    """Positions of the images of which it is not known that the store has them, ascending.

    Args:
        manifest: images.
        embedder: of which only the model id and the decoding are used.
        store: what is there already.
        found: what is known of them.
    """
    known = _Known(store, embedder.model_id, found.indexes)
    return _to_read(_keys_of_unchanged(manifest, found.indexes), known, found.undecodable)


def _to_read(
    keys: Keys, known: "_Known", undecodable: Mapping[bytes, Failure]
) -> NDArray[np.int64]:
    missing = known.places(keys, undecodable).row < 0
    given_up = np.isin(keys, list(undecodable)) if undecodable else np.zeros(len(keys), dtype=bool)
    return np.flatnonzero((keys == NO_KEY) | (missing & ~given_up))


def embed_images(
    manifest: Manifest,
    source: Source,
    embedder: Embedder,
    store: Store,
    found: Found | None = None,
    *,
    reread: bool = False,
    on_progress: OnProgress | None = None,
) -> tuple[EmbeddingIndex, int]:
    """Embed the images of a manifest, or of a part of one.

    Content that was embedded before, in any dataset, is not embedded again. Content that could not
    be decoded before is not tried again, unless the failure may be temporary. Rows are committed
    along the way, so an interrupted call loses little.

    Args:
        manifest: the images.
        source: where they are.
        embedder: what embeds them.
        store: gets the rows.
        found: what is known of them. What has not changed since is not opened.
        reread: open it nevertheless.
        on_progress: told of progress.

    Returns:
        the index, and the number of images that went through the model.
    """
    model_id = embedder.model_id
    found = found or Found()
    older = _OlderVersion(embedder, store)
    known = _Known(store, model_id, found.indexes)
    keys = _keys_of_unchanged(manifest, () if reread else found.indexes)
    # By content, since many files may share it.
    undecodable = found.undecodable
    to_read = _to_read(keys, known, undecodable)
    ids = manifest.table["image_id"].take(pa.array(to_read))
    waits = Waits()
    done, embedded, adopted = len(manifest) - len(to_read), 0, 0

    def tell() -> None:
        if on_progress is not None:
            on_progress(done, len(manifest), embedded, waits.bottleneck)

    unreadable: dict[int, Failure] = {}  # by position
    writer = store.segment_writer(model_id)
    known.own = lambda: writer.committed

    def add(outcome: Outcome) -> bool:
        key = outcome.content_key or NO_KEY
        vector = older.vector(key) if outcome.adopted else outcome.vector
        if vector is None:
            return False
        with waits.on("writing"):
            writer.add(key, vector, flat=outcome.flat)
        return True

    claim = _Claim(known, undecodable)
    stream = embed_stream(
        source,
        (value.as_py() for value in ids),
        embedder,
        wanted=claim,
        look_up=claim.look_up,
        adoptable=older.has,
        waits=waits,
        on_pause=tell,
        on_end=add,
    )
    with writer, contextlib.closing(stream):
        for outcome in stream:
            at = int(to_read[outcome.at])
            keys[at] = outcome.content_key or NO_KEY
            if add(outcome):
                embedded += not outcome.adopted
                adopted += outcome.adopted
            elif outcome.failure is not None and outcome.content_key is None:
                unreadable[at] = outcome.failure
            elif outcome.failure is not None:
                # NumPy strips trailing zero bytes from keys, here and below.
                undecodable[keys[at]] = outcome.failure
            done += 1
            tell()
    places = known.places(keys, undecodable)
    if embedded or adopted or known.is_outdated:
        places = known.together(places, _Known(store, model_id).places(keys, undecodable))

    gone = Failure("its embedding is missing from the store", "")

    def failure(at: int) -> Failure:
        return unreadable.get(at) or undecodable.get(keys[at], gone)

    table = _index_table(manifest, keys, failure, places)
    judge = {JUDGE: embedder.decoding.judge.encode()}
    return EmbeddingIndex(table.replace_schema_metadata(judge)), embedded


def _failures_that_stay(
    previous: Sequence[EmbeddingIndex], decoding: Decoding
) -> dict[bytes, Failure]:
    """Content that the same decoder failed to decode before, and would fail on again."""
    stay: dict[bytes, Failure] = {}
    for index in previous:
        if index.judge != decoding.judge:
            continue
        for piece in index.pieces(["content_key", "row", "reason", "exception"]):
            failed = piece.filter(
                pc.and_(pc.is_null(piece["row"]), pc.is_valid(piece["content_key"]))
            )
            reasons, exceptions = (failed[name].to_pylist() for name in ("reason", "exception"))
            for key, *said in zip(to_keys(failed["content_key"]), reasons, exceptions, strict=True):
                failure = Failure(*said)
                passing = failure == NOT_FINITE or is_passing(failure.exception, failure.reason)
                if failure.exception and not passing:
                    stay.setdefault(key, failure)
    return stay


@dataclass(frozen=True, eq=False)
class _Places:
    """Where contents are in the store.

    Attributes:
        segments: names of segments, sorted.
        segment: for each content, a position in `segments`; -1 if it is not in the store.
        row: for each content, its row in that segment, or -1.
        flat: for each content, whether its picture is one flat colour, as far as is known.
    """

    segments: list[str]
    segment: NDArray[np.int32]
    row: NDArray[np.int32]
    flat: NDArray[np.bool_]


class _Known:
    """Where content is: where the dataset's own indexes say, or else the store's key index.

    The key index is opened when it is first needed, which for an unchanged dataset is never. What
    either of them says holds if the segment is there and sound. Threads may share it.

    Attributes:
        own: segments that this process has committed since.
    """

    def __init__(
        self, store: Store, model_id: str, previous: Sequence[EmbeddingIndex] = ()
    ) -> None:
        self._store, self._model_id = store, model_id
        self._lock = threading.Lock()
        self._all: KeyIndex | None = None
        # The keys that others have committed since, sorted.
        self._since: Keys = np.empty(0, dtype=f"S{KEY_BYTES}")
        self._looked_at, self._looking = set[str](), False
        self._next_look = time.monotonic() + LOOK_AGAIN_SECONDS
        self.own: Callable[[], Collection[str]] = tuple
        self._flat: dict[str, NDArray[np.bool_] | None] = {}  # None: gone or damaged
        self._own = self._confirmed(previous)

    def __contains__(self, key: bytes) -> bool:
        return self.has([key])[0]

    def has(self, keys: Sequence[bytes]) -> list[bool]:
        """Whether each content is there."""
        asked = np.array(keys, dtype=f"S{KEY_BYTES}")
        there = self._own.find(asked)[1] >= 0
        # Threads ask this for every image, so what is not needed is left out.
        if not there.all():
            left = np.flatnonzero(~there)
            there[left] = self._index().find(asked[left])[1] >= 0
            found = left[there[left]]  # of these, damaged segments are left out
            if len(found):
                there[found] = self._looked_up(asked[found])[1] >= 0
        if not there.all() and len(since := self._committed_since()):
            at = np.searchsorted(since, asked).clip(max=len(since) - 1)
            there |= since[at] == asked
        return [bool(each) for each in there]

    @property
    def is_outdated(self) -> bool:
        """Whether others have committed segments since."""
        return len(self._since) > 0

    def _committed_since(self) -> Keys:
        """The keys that others have committed since, looked for now and then by one thread."""
        with self._lock:
            if self._looking or self._all is None or time.monotonic() < self._next_look:
                return self._since
            self._looking = True
            self._looked_at.update(self._all.segments, self.own())
        try:
            new = [name for name in self._listed() if name not in self._looked_at]
            found = (self._store.segment_keys(self._model_id, name) for name in new)
            keys = [each[0] for each in found if each is not None]
            if keys:
                self._since = np.unique(np.concatenate([self._since, *keys]))
            self._looked_at.update(new)
        except (OSError, VisdivError) as error:  # looking only saves work; writing will tell
            logger.debug("what others have committed cannot be seen now: %s", error)
        finally:
            self._next_look = time.monotonic() + LOOK_AGAIN_SECONDS
            self._looking = False
        return self._since

    def _listed(self) -> list[str]:
        return self._store.segment_names(self._model_id)

    def places(self, keys: Keys, given_up: Collection[bytes] = ()) -> _Places:
        """Where each content is.

        Args:
            keys: content keys, or NO_KEY.
            given_up: keys that are not looked up in the key index.
        """
        segment, row = self._own.find(keys)
        sought = (row < 0) & (keys != NO_KEY)
        if given_up and sought.any():
            sought &= ~np.isin(keys, list(given_up))
        names = list(self._own.segments)
        if sought.any():
            there, row[sought] = self._looked_up(keys[sought])
            segment[sought] = np.where(there < 0, -1, there + len(names))
            names += self._index().segments
        return self._placed(names, segment, row)

    def together(self, before: _Places, now: _Places) -> _Places:
        """The places as they were, and those of what has been embedded since.

        A clean-up may have set a segment aside meanwhile; it is there as long as it is named.
        """
        with ThreadPoolExecutor(READERS, thread_name_prefix="confirm") as threads:
            held = list(threads.map(partial(self._store.holds, self._model_id), before.segments))
        there = np.array([*held, False])[before.segment]  # the last is for -1
        segment = np.where(there, before.segment, now.segment + len(before.segments))
        segment[~there & (now.row < 0)] = -1
        row = np.where(there, before.row, now.row)
        return self._placed([*before.segments, *now.segments], segment.astype(np.int32), row)

    def _placed(
        self, names: Sequence[str], segment: NDArray[np.int32], row: NDArray[np.int32]
    ) -> _Places:
        """The places, with the names that they use, each once."""
        used = [int(at) for at in np.unique(segment) if at >= 0]
        distinct = sorted({names[at] for at in used})
        numbers = {name: at for at, name in enumerate(distinct)}
        number = np.full(len(names) + 1, -1, dtype=np.int32)  # the last is for -1
        number[used] = [numbers[names[at]] for at in used]
        segment = number[segment]
        flat = np.zeros(len(row), dtype=np.bool_)
        for at, mine in _by_segment(segment):
            if (flats := self._flats(distinct[at])) is not None:
                flat[mine] = flats[row[mine]]
        return _Places(distinct, segment, row, flat)

    def _looked_up(self, keys: Keys) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The places of keys in the segments of the key index, without those that are damaged."""
        index = self._index()
        while True:
            segment, row = index.find(keys)
            named = [index.segments[at] for at in np.unique(segment) if at >= 0]
            damaged = [name for name in named if self._flats(name) is None]
            if not damaged:
                return segment, row
            index.leave_out(damaged)

    def _index(self) -> KeyIndex:
        with self._lock:
            if self._all is None:
                self._all = self._store.key_index(self._model_id)
            return self._all

    def _flats(self, segment: str) -> NDArray[np.bool_] | None:
        """Which pictures of a segment are flat; None if it is gone or damaged."""
        if segment not in self._flat:
            found = self._store.segment_keys(self._model_id, segment)
            self._flat[segment] = None if found is None else found[1]
        return self._flat[segment]

    def _confirmed(self, previous: Sequence[EmbeddingIndex]) -> KeyIndex:
        """The places in indexes of the dataset, as far as the segments of this model say the same.

        The indexes may be of another model.
        """
        keys, names, segment, row = _places_in(previous)
        sound = np.zeros(len(keys), dtype=np.bool_)
        placed = list(_by_segment(segment))
        keys_of = partial(self._store.segment_keys, self._model_id)
        with ThreadPoolExecutor(READERS, thread_name_prefix="confirm") as threads:
            for start in range(0, len(placed), READ_AT_ONCE):
                some = placed[start : start + READ_AT_ONCE]
                read = threads.map(keys_of, [names[at] for at, _ in some])
                for (at, mine), found in zip(some, read, strict=True):
                    self._flat[names[at]] = None if found is None else found[1]
                    if found is not None:
                        there = mine[row[mine] < len(found[0])]
                        sound[there] = found[0][row[there]] == keys[there]
        return KeyIndex.of(names, keys[sound], segment[sound], row[sound])


def _places_in(
    indexes: Sequence[EmbeddingIndex],
) -> tuple[Keys, list[str], NDArray[np.int64], NDArray[np.int64]]:
    """The keys of all embedded images, names of segments, and each key's segment and row."""
    numbers: dict[str, int] = {}  # the newest index comes first, and so do its segments
    keys, segments, rows = [np.empty(0, f"S{KEY_BYTES}")], [], []
    for index in indexes:
        table = index.table.filter(pc.is_valid(index.table["row"]))
        keys.append(to_keys(table["content_key"]))
        rows.append(table["row"].to_numpy())
        for chunk in table["segment"].chunks:
            own = [numbers.setdefault(name, len(numbers)) for name in chunk.dictionary.to_pylist()]
            segments.append(np.array(own, dtype=np.int64)[chunk.indices.to_numpy()])
    nothing = np.empty(0, dtype=np.int64)
    return (
        np.concatenate(keys),
        list(numbers),
        np.concatenate([nothing, *segments]),
        np.concatenate([nothing, *rows]),
    )


def _by_segment(segment: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Each number of a segment that occurs, and where it does; without -1."""
    order = np.argsort(segment, kind="stable")
    for mine in np.split(order, np.flatnonzero(np.diff(segment[order])) + 1):
        if len(mine) and segment[mine[0]] >= 0:
            yield int(segment[mine[0]]), mine


class _OlderVersion:
    """Vectors of the same model by an older version, which decoded some images differently."""

    def __init__(self, embedder: Embedder, store: Store) -> None:
        decoding = embedder.decoding
        self._store, self._own = store, embedder.model_id
        self._model_id = embedder.model_id.replace(decoding.name, decoding.older_name)

    @cached_property
    def _known(self) -> _Known:
        return _Known(self._store, self._model_id)

    def has(self, key: bytes) -> bool:
        """Whether there is one for this content."""
        return self._model_id != self._own and key in self._known

    def vector(self, key: bytes) -> NDArray[np.float32]:
        """The vector of a content that it has, shape (D,), float32."""
        places = self._known.places(np.array([key], dtype=f"S{KEY_BYTES}"))
        [segment] = places.segments
        rows = self._store.rows(self._model_id, segment)
        vector: NDArray[np.float32] = rows[places.row[0]].astype(np.float32)
        return vector


class _Claim:
    """Whether to embed content: not in the store, not known to fail, and first as this image.

    So rows are in the same order every time, whichever thread comes first.
    """

    def __init__(self, known: _Known, given_up: Iterable[bytes]) -> None:
        self._known = known
        # The number of the image by which each content is claimed.
        self._by = {key.ljust(KEY_BYTES, b"\0"): -1 for key in given_up}
        # What `look_up` has found and nobody has asked for yet.
        self._there = dict[bytes, bool]()
        self._lock = threading.Lock()

    def look_up(self, keys: Sequence[bytes]) -> None:
        """Look several up at once, shortly before each of them is asked for."""
        new = [key for key in dict.fromkeys(keys) if key not in self._by]
        if new:
            self._there.update(zip(new, self._known.has(new), strict=True))

    def __call__(self, key: bytes, number: int) -> bool:
        if key not in self._by:
            there = self._there.pop(key, None)
            if key in self._known if there is None else there:
                return False
        with self._lock:
            if number < self._by.setdefault(key, number):
                self._by[key] = number
            return self._by[key] == number


def _keys_of_unchanged(manifest: Manifest, previous: Sequence[EmbeddingIndex]) -> Keys:
    """Content keys of the images with unchanged size and version; NO_KEY for all others."""
    keys = np.full(len(manifest), NO_KEY, dtype=f"S{KEY_BYTES}")
    for index in reversed(previous):  # the newest has the last word
        before = index.table.filter(pc.is_valid(index.table["content_key"]))
        at = pc.index_in(manifest.table["image_id"], value_set=before["image_id"])
        same = pc.is_valid(at)
        for column in ("size", "version"):
            now, then = manifest.table[column], before[column].take(at)
            both_unknown = pc.and_(pc.is_null(now), pc.is_null(then))  # a size, in some sources
            same = pc.and_(same, pc.or_(pc.fill_null(pc.equal(now, then), False), both_unknown))
        unchanged = pc.fill_null(same, False).to_numpy()
        keys[unchanged] = to_keys(before["content_key"].take(at.filter(pa.array(unchanged))))
    return keys


def _index_table(
    manifest: Manifest, keys: Keys, failure: Callable[[int], Failure], places: _Places
) -> pa.Table:
    missing = places.row < 0
    failures = [failure(at) for at in np.flatnonzero(missing).tolist()]
    names = pa.DictionaryArray.from_arrays(
        pa.array(places.segment, mask=missing), pa.array(places.segments, type=pa.string())
    )
    buffer = pa.Array.from_buffers(
        pa.binary(KEY_BYTES), len(keys), [None, pa.py_buffer(keys.tobytes())]
    )
    return pa.table(
        {
            "image_id": manifest.table["image_id"],
            "size": manifest.table["size"],
            "version": manifest.table["version"],
            "content_key": pc.if_else(pa.array(keys != NO_KEY), buffer, None),
            "segment": names,
            "row": pa.array(places.row, mask=missing),
            "reason": _told([each.reason for each in failures], missing),
            "exception": _told([each.exception for each in failures], missing),
            "flat": pa.array(places.flat),
        },
        schema=INDEX_SCHEMA,
    )


def _told(texts: Sequence[str], missing: NDArray[np.bool_]) -> pa.Array:
    """The texts at the positions of missing images, in order; null for the others."""
    at = np.cumsum(missing) - 1
    return pa.array(texts, type=TEXT).take(pa.array(at, mask=~missing))
