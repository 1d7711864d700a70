"""How assets speak to the people who watch them: progress, failures, pictures, errors.

Here: turning values into Dagster's log lines and metadata. Not here: computing the values.
"""

import base64
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import dagster as dg

from visdiv_assets.errors import Unreachable, VisdivError
from visdiv_assets.guidance.augmentation import more_than_chance, verdict
from visdiv_assets.guidance.comparison import Difference
from visdiv_assets.guidance.drift import Drift
from visdiv_assets.guidance.mixtures import Mixture
from visdiv_assets.guidance.slices import Slice
from visdiv_assets.quality.verdicts import count_reasons
from visdiv_assets.report.compact import compact
from visdiv_assets.settings.secrets import redacted, redacted_traceback
from visdiv_assets.spectral.score import TOO_FEW
from visdiv_assets.store.store import Store
from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.workflows.augment import Measured
from visdiv_assets.workflows.drift import DatasetDrift
from visdiv_assets.workflows.duplicates import Duplicates
from visdiv_assets.workflows.leakage import Overlap

FAILURES_SHOWN = 50
DIFFERENCES_SHOWN = 50
CLUSTERS_SHOWN = 50
PROGRESS_SECONDS = 10.0

# A step whose source is out of reach is tried again: after 30 seconds, then after 60, give or take
# a third. While it waits, it holds no place in its pool.
RETRIES = 2
RETRY_SECONDS = 30.0

_MARKDOWN = {ord(character): f"&#{ord(character)};" for character in "&<>\\`*_[]|!#~:"}


@contextmanager
def clear_errors(attempt: int | None = None) -> Iterator[None]:
    """Show what is wrong with the input as one sentence, without retries that could not help.

    Args:
        attempt: how often this step was tried before in this run; it is tried again if a source is
            out of reach. None tries nothing again.

    Raises:
        Failure: what is wrong, in one sentence.
        RetryRequested: a source is out of reach. A retry policy of the asset would do the same to
            steps that somebody ends: Dagster starts them again.
    """
    with nothing_secret():
        try:
            yield
        except Unreachable as error:
            failure = dg.Failure(description=redacted(str(error)), allow_retries=False)
            if attempt is None:
                raise failure from None
            raise dg.RetryRequested(RETRIES, _retry_delay(attempt)) from failure
        except VisdivError as error:
            raise dg.Failure(description=redacted(str(error)), allow_retries=False) from None
        except OSError as error:  # of the store: read-only, full, gone; it may be better later
            told = f"{error.filename or 'the store'}: {error.strerror or error}"
            raise dg.Failure(description=redacted(told)) from None


def _retry_delay(attempt: int) -> float:
    # Not all at once, when one server has many datasets.
    return RETRY_SECONDS * 2.0**attempt * random.uniform(2 / 3, 4 / 3)  # noqa: S311


@contextmanager
def nothing_secret() -> Iterator[None]:
    """Keep secrets out of what Dagster records of an error, causes and traceback included."""
    told = None
    try:
        yield
    except Exception as error:
        told = redacted_traceback(error)
        if told is None:
            raise
    if told is not None:  # outside, so that the new error has no context
        raise dg.Failure(description=told)


def log_steps(context: dg.AssetExecutionContext) -> Callable[[str, int, int], None]:
    """A callback that logs what is being done and how far it is, every few seconds."""
    last = time.monotonic()

    def report(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_SECONDS:
            last = now
            context.log.info(f"{what}: {done / max(total, 1):.0%} of {total:,}")

    return report


def log_progress(context: dg.AssetExecutionContext) -> Callable[[int, int, int, str], None]:
    """A callback that logs how far the embedding is and what limits it, every few seconds."""
    started = last = time.monotonic()

    def report(done: int, total: int, embedded: int, bottleneck: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < PROGRESS_SECONDS:
            return
        last = now
        rate = embedded / (now - started)
        left = f", {(total - done) / rate / 60:.0f} min left" if rate else ""
        context.log.info(
            f"{done:,} of {total:,} images, {rate:.1f} images/s, limit: {bottleneck}{left}"
        )

    return report


def failures_table(failures: Sequence[tuple[str, str]]) -> dg.MarkdownMetadataValue:
    """The images that could not be embedded, with reasons, as a table."""
    if not failures:
        return dg.MetadataValue.md("none")
    shown = failures[:FAILURES_SHOWN]
    rows = [f"| {_cell(image_id)} | {_cell(reason)} |" for image_id, reason in shown]
    more = len(failures) - FAILURES_SHOWN
    if more > 0:
        rows.append(f"| … and {more:,} more | |")
    return dg.MetadataValue.md("\n".join(["| image | reason |", "|---|---|", *rows]))


def reasons_table(failures: Sequence[tuple[str, str]]) -> dg.MarkdownMetadataValue:
    """How many images failed for which reason, the most frequent first."""
    if not failures:
        return dg.MetadataValue.md("none")
    counts = count_reasons(reason for _, reason in failures)
    rows = [f"| {count:,} | {_cell(reason)} |" for reason, count in counts[:FAILURES_SHOWN]]
    return dg.MetadataValue.md("\n".join(["| images | reason |", "|---|---|", *rows]))


def slices_table(slices: Sequence[Slice]) -> dg.MarkdownMetadataValue:
    """Each part of a dataset: its share, its own score, what it does to the whole."""
    rows = [
        f"| {_cell(each.name)} | {each.n:,} | {each.share:.1%} | {_score(each)} "
        f"| {each.left_out:+.4f} | {each.doubled:+.4f} |"
        for each in slices
    ]
    head = "| slice | images | share | score | change without it | change with it twice |"
    return dg.MetadataValue.md("\n".join([head, "|---|--:|--:|--:|--:|--:|", *rows]))


def _score(part: Slice) -> str:
    fair = part.corrected
    return TOO_FEW if fair.too_few else f"{fair.score:.3f} ({fair.low:.3f} to {fair.high:.3f})"


def leaderboard_table(ranked: Sequence[Evaluation]) -> dg.MarkdownMetadataValue:
    """Datasets by corrected score."""
    rows = []
    for each in ranked:
        fair = TOO_FEW
        if each.corrected_score is not None:
            interval = f"{each.corrected_low:.3f} to {each.corrected_high:.3f}"
            fair = f"{each.corrected_score:.3f} ({interval})"
        rows.append(
            f"| {_cell(each.dataset)} | {each.diversity_score:.3f} | {fair} | {_rating(each)} "
            f"| {each.n_images:,} |"
        )
    head = "| dataset | score as it is | corrected (95 %) | rating | images |"
    return dg.MetadataValue.md("\n".join([head, "|---|--:|---|---|--:|", *rows]))


def _rating(evaluation: Evaluation) -> str:
    return " ".join(filter(None, [evaluation.rated.text, evaluation.rating]))


def differences_table(differences: Sequence[Difference]) -> dg.MarkdownMetadataValue:
    """Pairs of datasets, the surest difference first."""
    rows = [
        f"| {_cell(each.first)} | {_cell(each.second)} | {each.ratio:.3f} | "
        f"{'more than chance' if each.sure else 'may be chance'} |"
        for each in differences[:DIFFERENCES_SHOWN]
    ]
    head = "| higher | lower | times | |"
    return dg.MetadataValue.md("\n".join([head, "|---|---|--:|---|", *rows]) if rows else "none")


def mixture_table(plan: Mixture) -> dg.MarkdownMetadataValue:
    """Weight of each dataset in the best mixture, and what the mixture is without it."""
    rows = [
        f"| {_cell(name)} | {weight:.1%} | {TOO_FEW if math.isnan(adds) else f'{0 - adds:+.4f}'} |"
        for name, weight, adds in zip(plan.names, plan.weights, plan.adds, strict=True)
    ]
    head = "| dataset | weight | change of the score without it |"
    return dg.MetadataValue.md("\n".join([head, "|---|--:|--:|", *rows]))


def drift_table(found: Sequence[DatasetDrift]) -> dg.MarkdownMetadataValue:
    """What came to each dataset and went from it, and how far it has moved."""
    rows = []
    for each in found:
        name = _cell(each.now.dataset)
        if not each.measured:
            rows.append(f"| {name} | | | | | | | {each.finding} |")
        rows += [
            f"| {name} | {before.evaluated_at:%Y-%m-%d %H:%M} "
            f"| {_about(drift, drift.came.images)} | {_about(drift, drift.went.images)} "
            f"| {drift.centroid:.4f} | {drift.frechet:.4f} | {drift.angles[0]:.0f}° to "
            f"{drift.angles[-1]:.0f}° | {drift.finding(each.comparisons)} |"
            for before, drift in each.measured
        ]
    head = "| dataset | since (UTC) | came | went | means | Fréchet | angles | |"
    return dg.MetadataValue.md("\n".join([head, "|---|---|--:|--:|--:|--:|--:|---|", *rows]))


def _about(drift: Drift, images: int) -> str:
    return f"{'' if drift.exact else 'about '}{images:,}"


def clusters_table(found: Duplicates) -> dg.MarkdownMetadataValue:
    """The largest clusters of a dataset: how many images, how far apart, which to keep."""
    rows = []
    for each in found.clusters[:CLUSTERS_SHOWN]:
        kept = found.images_of(each)["image_id"][0].as_py()
        rows.append(
            f"| {each.number} | {each.n_images:,} | {each.n_contents:,} "
            f"| {each.smallest:.3f} | {_cell(kept)} |"
        )
    if len(found.clusters) > CLUSTERS_SHOWN:
        rows.append(f"| … and {len(found.clusters) - CLUSTERS_SHOWN:,} more | | | | |")
    head = "| cluster | images | different contents | smallest similarity | keep |"
    return dg.MetadataValue.md(
        "\n".join([head, "|--:|--:|--:|--:|---|", *rows]) if rows else "none"
    )


def leakage_table(overlaps: Sequence[Overlap]) -> dg.MarkdownMetadataValue:
    """How much of a dataset is in each benchmark, and of each benchmark in the dataset."""
    rows = [
        f"| {_cell(each.other.dataset)} | {len(each.images):,} | {each.rate:.2%} "
        f"| {each.n_exact:,} | {each.n_other:,} | {each.other_rate:.2%} | {_how(each)} |"
        for each in overlaps
    ]
    head = (
        "| benchmark | leaked images | share | same bytes | benchmark images seen "
        "| share of benchmark | pairs compared |"
    )
    return dg.MetadataValue.md("\n".join([head, "|---|--:|--:|--:|--:|--:|---|", *rows]))


def leaks_table(overlaps: Sequence[Overlap]) -> dg.MarkdownMetadataValue:
    """The images that are in benchmarks, as a table."""
    rows = [
        f"| {_cell(row['image_id'])} | {_cell(each.other.dataset)} "
        f"| {_cell(row['other_image_id'])} | {row['similarity']:.3f} |"
        for each in overlaps
        for row in each.images.slice(0, FAILURES_SHOWN).to_pylist()
    ]
    more = sum(len(each.images) for each in overlaps) - len(rows)
    if more:
        rows.append(f"| … and {more:,} more | | | |")
    head = "| image | benchmark | its image | similarity |"
    return dg.MetadataValue.md("\n".join([head, "|---|---|---|--:|", *rows]) if rows else "none")


def _how(found: Overlap) -> str:
    if found.method == "exact":
        return "all"
    return f"{'unknown' if found.recall is None else format(found.recall, '.1%')} (by index)"


def effects_table(measured: Sequence[Measured]) -> dg.MarkdownMetadataValue:
    """What augmentations do to the corrected score, the largest gain first."""
    sure = more_than_chance({each.augmentation.name: each.effect for each in measured})
    rows = []
    for each in sorted(measured, key=lambda each: -each.effect.change):
        name, effect = each.augmentation.name, each.effect
        change, interval = TOO_FEW, ""
        if not math.isnan(effect.change):
            change = f"{effect.change * 100:+.1f} %"
            interval = f"{effect.low * 100:+.1f} to {effect.high * 100:+.1f}"
        word = verdict(effect, sure=name in sure)
        rows.append(f"| {name} | {change} | {interval} | {effect.similarity:.2f} | {word} |")
    head = "| augmentation | change of the score | 95 % | cosine with the image | |"
    return dg.MetadataValue.md("\n".join([head, "|---|--:|--:|--:|---|", *rows]))


def sentences(said: Sequence[str]) -> dg.MarkdownMetadataValue:
    """Sentences as a list; they may hold names from outside."""
    return dg.MetadataValue.md("\n".join(f"- {_cell(sentence)}" for sentence in said))


def picture(png: bytes, description: str) -> dg.MarkdownMetadataValue:
    """A picture that Dagster's UI shows; it has no metadata type of its own for pictures.

    Dagster keeps metadata twice and for ever, so the picture is made small.
    """
    small, media_type = compact(png)
    encoded = base64.b64encode(small).decode("ascii")
    return dg.MetadataValue.md(f"![{description}](data:{media_type};base64,{encoded})")


def kept_picture(
    png: bytes, description: str, store: Store, dataset: str, name: str
) -> dg.MarkdownMetadataValue:
    """A picture that is too fine to be small: in full in the store, with its place below it."""
    place = store.write_picture(dataset, name, png)
    shown = picture(png, description).value
    return dg.MetadataValue.md(f"{shown}\n\nfull size: {_cell(place)}")


def _cell(text: str) -> str:
    """Text from outside, so that it cannot be taken for markdown or HTML."""
    return " ".join(text.translate(_MARKDOWN).split())
