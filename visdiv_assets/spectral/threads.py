"""Settings of the whole process that results depend on: changed for as long as they are needed.

Here: such changes, and linear algebra on one thread; the process is left as it was, also where
several threads need a change at once.
Not here: which results need them, PyTorch's settings (`similarity/exact_torch.py`).
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from threadpoolctl import OpenBLASController, ThreadpoolController


class WhileNeeded:
    """A change to the whole process, made by the first that needs it and undone after the last.

    If each saved and restored for itself, the first to end would undo the change under the others,
    and the last would restore what it found: the change.

    Args:
        change: makes the change, and returns what undoes it.

    Example:
        >>> said = []
        >>> def change():
        ...     said.append("changed")
        ...     return lambda: said.append("undone")
        >>> needed = WhileNeeded(change)
        >>> with needed():
        ...     with needed():
        ...         said.append("used")
        >>> said
        ['changed', 'used', 'undone']
    """

    def __init__(self, change: Callable[[], Callable[[], object]]) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._users = 0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The change holds within a `with` block."""
        with self._lock:
            if not self._users:
                self._undo = self._change()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._undo()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit NumPy's products and decompositions to one thread within a `with` block.

    LAPACK's last bits depend on the number of threads.

    Example:
        >>> import numpy as np
        >>> with one_blas_thread():
        ...     np.linalg.eigvalsh(np.eye(2)).tolist()
        [1.0, 1.0]
    """
    with _one_blas_thread(), _blas(openmp=True).limit(limits=1, user_api="blas"):
        yield


def _limit_blas() -> Callable[[], object]:
    _take_control()
    limits = _blas(openmp=False).limit(limits=1, user_api="blas")

    def undo() -> None:
        _take_control()
        limits.restore_original_limits()
        _take_control()  # leaves it to whoever comes next

    return undo


def _take_control() -> None:
    """Let this thread set the number: threadpoolctl ignores all threads but one, while that lives.

    That one may be any thread of the program, or one of ours that came first and has left.
    """
    if hasattr(OpenBLASController, "clear_controlling_thread"):  # since threadpoolctl 3.7
        OpenBLASController.clear_controlling_thread(force=True)


@functools.cache
def _blas(*, openmp: bool) -> ThreadpoolController:
    """The libraries whose number each thread has for itself, or the others.

    Cached, since scanning a process's libraries takes longer than a small decomposition.
    """
    libraries = ThreadpoolController().select(user_api="blas")
    layers = {each.get("threading_layer") for each in libraries.info()}
    chosen = [layer for layer in layers if (layer == "openmp") == openmp]
    return libraries.select(threading_layer=chosen)


_one_blas_thread = WhileNeeded(_limit_blas)
