"""How alike all images are: other measures of diversity, from the same moments.

Here: the Vendi score, its cousin of order 2, and the spread around the mean. Not here: the score of
FineVision (`score.py`), which leaves the mean out; these measures do not.
"""

from dataclasses import dataclass

import numpy as np

from visdiv_assets.spectral.moments import Moments
from visdiv_assets.spectral.spectrum import effective_rank, participation_ratio
from visdiv_assets.spectral.threads import one_blas_thread


@dataclass(frozen=True)
class Alikeness:
    """How alike the images of a set are.

    Attributes:
        spread: 1 − ‖mean‖², in [0, 1]: 0 if all are one image, 1 if their mean is 0. It is about 1
            minus the mean cosine similarity of two images.
        vendi: Vendi score, in [1, D]: the effective number of different images.
        rke: the same of order 2 (Rényi kernel entropy score), in [1, `vendi`]; common kinds of
            images weigh more in it.
    """

    spread: float
    vendi: float
    rke: float


def alikeness(moments: Moments) -> Alikeness:
    """How alike images are, from the moments of their unit vectors.

    With the cosine kernel, the eigenvalues of K/n are those of Σxxᵀ/n.

    Args:
        moments: of at least one vector; vectors of other lengths count by their squared length.

    Raises:
        ValueError: all vectors are 0.

    References:
        Friedman & Dieng, "The Vendi score", TMLR 2023; Jalali, Li & Farnia, "An
        information-theoretic evaluation of generative models in learning multi-modal
        distributions", NeurIPS 2023.

    Example:
        >>> import numpy as np
        >>> found = alikeness(Moments.of(np.eye(4)))
        >>> round(found.spread, 12), round(found.vendi, 12), round(found.rke, 12)
        (0.75, 4.0, 4.0)
        >>> round(alikeness(Moments.of(np.ones((9, 4)))).spread, 12)
        0.0
    """
    squares = float(np.trace(moments.outer)) / moments.n
    if squares <= 0:
        raise ValueError("alikeness needs a vector that is not 0")
    with one_blas_thread():
        eigenvalues = np.clip(np.linalg.eigvalsh(moments.outer), 0.0, None)
    spread = 1 - float(moments.mean @ moments.mean) / squares
    return Alikeness(
        min(max(spread, 0.0), 1.0), effective_rank(eigenvalues), participation_ratio(eigenvalues)
    )
