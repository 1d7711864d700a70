"""Visual diversity of image datasets: the public Python API.

Names are loaded on first use, so importing the package stays fast.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visdiv_assets.embedding.embedder import SSCDEmbedder
    from visdiv_assets.errors import VisdivError
    from visdiv_assets.similarity.coreset import select_diverse_samples
    from visdiv_assets.similarity.pairs import find_near_duplicates
    from visdiv_assets.spectral.corrected import CorrectedScore, corrected_score
    from visdiv_assets.spectral.score import (
        DiversityCalculator,
        get_diversity_components,
    )
    from visdiv_assets.workflows.evaluate import evaluate_diversity

__version__ = "0.2.0"

_HOMES = {
    "CorrectedScore": "visdiv_assets.spectral.corrected",
    "DiversityCalculator": "visdiv_assets.spectral.score",
    "SSCDEmbedder": "visdiv_assets.embedding.embedder",
    "VisdivError": "visdiv_assets.errors",
    "corrected_score": "visdiv_assets.spectral.corrected",
    "evaluate_diversity": "visdiv_assets.workflows.evaluate",
    "find_near_duplicates": "visdiv_assets.similarity.pairs",
    "get_diversity_components": "visdiv_assets.spectral.score",
    "select_diverse_samples": "visdiv_assets.similarity.coreset",
}

__all__ = [
    "CorrectedScore",
    "DiversityCalculator",
    "SSCDEmbedder",
    "VisdivError",
    "corrected_score",
    "evaluate_diversity",
    "find_near_duplicates",
    "get_diversity_components",
    "select_diverse_samples",
]


def refuse_windows() -> None:
    """Raise VisdivError on Windows, which has neither flock nor limits for a process."""
    from visdiv_assets.errors import VisdivError

    if sys.platform == "win32":
        raise VisdivError(
            "visdiv_assets runs on Linux and macOS; on Windows, use it in the Windows Subsystem "
            "for Linux (WSL)"
        )


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name != "VisdivError":
        refuse_windows()
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
