"""Finding content keys in the segments of a model.

Not here: reading the keys of segments (`store.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visdiv_assets.store.index import KEY_BYTES, Keys


@dataclass(frozen=True, eq=False)
class KeyIndex:
    """Maps content keys to rows in the segments of one model. Takes 33 bytes per key."""

    segments: tuple[str, ...]
    _keys: Keys  # sorted
    _heads: NDArray[np.uint64]  # the first halves of the keys: numbers are faster to search
    _segment: NDArray[np.int32]
    _row: NDArray[np.int32]
    _flat: NDArray[np.bool_]

    @classmethod
    def of(
        cls,
        keys_by_segment: Mapping[str, Keys],
        flat_by_segment: Mapping[str, NDArray[np.bool_]] | None = None,
    ) -> "KeyIndex":
        """Build from the content keys of each segment, in order of rows.

        If two rows have the same key, `find` returns the one in the first segment.

        Args:
            keys_by_segment: content keys.
            flat_by_segment: whether each picture is one flat colour; unknown segments count as no.
        """
        flats = flat_by_segment or {}
        lengths = [len(keys) for keys in keys_by_segment.values()]
        all_keys = np.concatenate([np.empty(0, dtype=f"S{KEY_BYTES}"), *keys_by_segment.values()])
        segment = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        rows = [np.arange(length, dtype=np.int32) for length in lengths]
        row = np.concatenate([np.empty(0, dtype=np.int32), *rows])
        flat = [
            flats.get(name, np.zeros(len(keys), dtype=np.bool_))
            for name, keys in keys_by_segment.items()
        ]
        all_flat = np.concatenate([np.empty(0, dtype=np.bool_), *flat])
        order = np.argsort(all_keys, kind="stable")
        keys = all_keys[order]
        return cls(
            tuple(keys_by_segment),
            keys,
            _heads(keys),
            segment[order],
            row[order],
            all_flat[order],
        )

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: bytes) -> bool:
        return bool(self.find(np.array([key], dtype=f"S{KEY_BYTES}"))[0][0] >= 0)

    def find(self, keys: Keys) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """For each key, the position of its segment in `segments` and its row; -1 if unknown."""
        at, found = self._places(keys)
        if not len(self):
            missing = np.full(len(keys), -1, dtype=np.int32)
            return missing, missing
        return (
            np.where(found, self._segment[at], -1).astype(np.int32),
            np.where(found, self._row[at], -1).astype(np.int32),
        )

    def is_flat(self, keys: Keys) -> NDArray[np.bool_]:
        """For each key, whether its picture is one flat colour; False if unknown."""
        at, found = self._places(keys)
        return found & self._flat[at] if len(self) else found

    def _places(self, keys: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """For each key, a position in the arrays, and whether the key is there."""
        if not len(self):
            return np.full(len(keys), -1), np.zeros(len(keys), dtype=np.bool_)
        heads, last = _heads(keys), len(self._keys) - 1
        at = np.minimum(np.searchsorted(self._heads, heads), last)
        found = self._keys[at] == keys
        if len(alike := np.flatnonzero(~found & (self._heads[at] == heads))):
            at[alike] = np.minimum(np.searchsorted(self._keys, keys[alike]), last)
            found[alike] = self._keys[at[alike]] == keys[alike]
        return at, found


def _heads(keys: Keys) -> NDArray[np.uint64]:
    """The first 8 bytes of each key as a number, which sorts like the keys."""
    return np.frombuffer(keys.tobytes(), dtype=">u8")[::2].astype(np.uint64)
