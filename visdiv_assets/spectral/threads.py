"""Linear algebra on one thread, for results that are the same to the last bit on every machine.

Not here: which results those are.
"""

import functools
from contextlib import AbstractContextManager

from threadpoolctl import ThreadpoolController


def one_blas_thread() -> AbstractContextManager[object]:
    """Let NumPy's products and decompositions use one thread, within a `with` block.

    LAPACK's last bits depend on the number of threads.

    Example:
        >>> import numpy as np
        >>> with one_blas_thread():
        ...     np.linalg.eigvalsh(np.eye(2)).tolist()
        [1.0, 1.0]
    """
    limited: AbstractContextManager[object] = _controller().limit(limits=1, user_api="blas")
    return limited


@functools.cache
def _controller() -> ThreadpoolController:
    """Made once: to look through a process's libraries takes longer than a small decomposition."""
    return ThreadpoolController()
