"""Linear algebra on one thread, for bit-identical results on any number of cores.

Not here: which results need it.
"""

import functools
from contextlib import AbstractContextManager

from threadpoolctl import ThreadpoolController


def one_blas_thread() -> AbstractContextManager[object]:
    """Limit NumPy's products and decompositions to one thread within a `with` block.

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
    """Cached, since scanning a process's libraries takes longer than a small decomposition."""
    return ThreadpoolController()
