"""Charts as PNG bytes.

Here: drawing. Not here: Markdown, HTML or Dagster metadata around a chart.
"""

import functools
import io
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import ParamSpec

import numpy as np

from visdiv_assets.guidance.augmentation import Effect, more_than_chance, verdict
from visdiv_assets.guidance.comparison import Published
from visdiv_assets.spectral.score import Diversity
from visdiv_assets.warehouse.records import Evaluation

_Arguments = ParamSpec("_Arguments")


def _in_own_style(draw: Callable[_Arguments, bytes]) -> Callable[_Arguments, bytes]:
    """Draw the same picture whatever `matplotlibrc` lies in the current folder or at home."""

    @functools.wraps(draw)
    def drawn(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> bytes:
        import matplotlib  # here, because importing it takes two seconds

        with matplotlib.rc_context(matplotlib.rcParamsDefault):
            return draw(*args, **kwargs)

    return drawn


@_in_own_style
def spectrum_png(measured: Diversity) -> bytes:
    """The spectrum of a dataset: share of variance by direction, on logarithmic axes.

    Marks the effective rank and the participation ratio, from which the score is computed.

    Args:
        measured: what to draw; a dataset without variance gives empty axes.

    Returns:
        a PNG of 720 × 360 pixels.
    """
    from matplotlib.figure import Figure  # here, because importing it takes two seconds

    figure = Figure(figsize=(7.2, 3.6), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    total = measured.spectrum.sum()
    axes.set_xlabel("direction (eigenvalue, largest first)")
    axes.set_ylabel("share of variance")
    axes.spines[["top", "right"]].set_visible(False)
    if total > 0:
        shares = measured.spectrum / total
        # Values of directions without variance are rounding errors.
        shares = shares[shares > 1e-12]
        ranks = np.arange(1, len(shares) + 1)
        axes.loglog(ranks, shares, color="#3b5bdb", linewidth=2)
        axes.fill_between(ranks, shares, shares.min(), color="#3b5bdb", alpha=0.12, linewidth=0)
        axes.set_xlim(1, max(measured.dimension, 2))
        for value, colour in (
            (measured.participation_ratio, "#e8590c"),
            (measured.effective_rank, "#2b8a3e"),
        ):
            axes.axvline(value, color=colour, linestyle="--", linewidth=1.5)
    axes.set_title(
        f"score {measured.score:.3f}   PR {measured.participation_ratio:.1f} (orange)   "
        f"ER {measured.effective_rank:.1f} (green)   of D = {measured.dimension},   "
        f"N = {measured.n:,}",
        fontsize=10,
        loc="left",
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


@_in_own_style
def leaderboard_png(ranked: Sequence[Evaluation], published: Sequence[Published]) -> bytes:
    """Scores as they are and corrected, highest at the top; below them, published scores.

    Args:
        ranked: evaluations; of those with too few images, only the score as it is.
        published: published scores for comparison.

    Returns:
        a PNG, 720 pixels wide, taller with more datasets.
    """
    from matplotlib.figure import Figure  # here, because importing it takes two seconds

    own: list[tuple[float, Evaluation | Published]] = [
        (-1.0 if each.corrected_score is None else each.corrected_score, each) for each in ranked
    ]
    theirs = [(each.score, each) for each in published]
    # From the bottom: published ones, then, apart from them, your own.
    entries = [*sorted(theirs, key=itemgetter(0)), *sorted(own, key=itemgetter(0))]
    figure = Figure(figsize=(7.2, 0.9 + 0.26 * len(entries)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for place, (score, each) in enumerate(entries):
        if isinstance(each, Evaluation):
            if each.corrected_score is not None:
                interval = np.array([each.corrected_low, each.corrected_high], dtype=float)
                axes.plot(interval, [place] * 2, color="#3b5bdb")
                axes.plot(score, place, "o", color="#3b5bdb")
            axes.plot(each.diversity_score, place, "D", color="#3b5bdb", markersize=5)
        else:
            axes.plot(score, place, "D", color="#adb5bd", markersize=5)
    names = [
        each.dataset if isinstance(each, Evaluation) else f"{each.name} (published)"
        for _, each in entries
    ]
    if own and theirs:
        axes.axhline(len(theirs) - 0.5, color="#868e96", linewidth=0.8)
    axes.set_yticks(range(len(entries)), names, fontsize=8, parse_math=False)
    axes.set_xlim(0, 1)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        "● corrected, with 95 % interval   ◆ as it is (grey: published, of other images)",
        fontsize=10,
        loc="left",
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


@_in_own_style
def history_png(dataset: str, evaluations: Sequence[Evaluation]) -> bytes:
    """The scores of a dataset over time, one line per model.

    Args:
        dataset: name of the dataset, for the title.
        evaluations: at least one, oldest first.

    Returns:
        a PNG of 720 × 360 pixels.
    """
    from matplotlib.figure import Figure  # here, because importing it takes two seconds

    figure = Figure(figsize=(7.2, 3.6), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    # Scores of another model, or estimated in another way, are not one line.
    alike: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        alike.setdefault(_made_by(evaluation), []).append(evaluation)
    for label, made in alike.items():
        # NumPy dates, because matplotlib's type hints do not accept lists of datetimes.
        times = np.array([each.evaluated_at.replace(tzinfo=None) for each in made], "datetime64[s]")
        plain = [each.diversity_score for each in made]
        scores, low, high = (
            np.array([getattr(each, name) for each in made], dtype=float)
            for name in ("corrected_score", "corrected_low", "corrected_high")
        )
        [line] = axes.plot(times, scores, marker="o", markersize=4, linewidth=1.5, label=label)
        axes.fill_between(times, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
        axes.plot(times, plain, linestyle=":", linewidth=1, color=line.get_color())
    axes.set_ylim(bottom=0)
    axes.set_ylabel("diversity score")
    title = f"{dataset}   corrected, with 95 % interval; dotted: as it is"
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    figure.autofmt_xdate()
    if len(alike) > 1:
        axes.legend(fontsize=6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _made_by(evaluation: Evaluation) -> str:
    if evaluation.estimator is None:
        return evaluation.model_id
    unit = evaluation.sampling_unit or "row"
    return f"{evaluation.model_id}, by {unit}, estimator {evaluation.estimator}"


@_in_own_style
def effects_png(effects: Mapping[str, Effect]) -> bytes:
    """The effect of augmentations on the corrected score, with intervals, largest gain on top.

    Green raises the score and red lowers it, both by more than chance. Grey may be chance, or an
    augmentation that SSCD hardly sees.

    Args:
        effects: by name of the augmentation; those with too few images are left out.

    Returns:
        a PNG, 720 pixels wide, taller with more augmentations.
    """
    from matplotlib.figure import Figure  # here, because importing it takes two seconds

    sure = more_than_chance(effects)
    told = {name: each for name, each in effects.items() if not np.isnan(each.change)}
    names = sorted(told, key=lambda name: told[name].change)
    figure = Figure(figsize=(7.2, 0.9 + 0.26 * max(len(names), 1)), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    colours = {"adds": "#2b8a3e", "takes away": "#c92a2a"}
    for place, name in enumerate(names):
        each = told[name]
        colour = colours.get(verdict(each, sure=name in sure), "#868e96")
        axes.barh(place, 100 * each.change, color=colour, alpha=0.35)
        axes.plot([100 * each.low, 100 * each.high], [place] * 2, color=colour)
    axes.axvline(0, color="#212529", linewidth=1)
    axes.set_yticks(range(len(names)), names, fontsize=8, parse_math=False)
    axes.set_xlabel("change of the corrected score, %, with 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(
        "one augmented copy of each image added; grey: may be chance, or SSCD hardly sees it",
        fontsize=10,
        loc="left",
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
