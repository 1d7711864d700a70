"""The commands `visdiv duplicates` and `visdiv leakage`.

Here: arguments, progress, tables, lists. Not here: the search (`workflows/`, modules of the same
names).
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from visdiv_assets.cli.console import (
    AnyDataset,
    Config,
    Json,
    Sheet,
    clear_errors,
    dataset_called,
    err,
    not_nan,
    open_project,
    out,
    print_json,
    say,
    visible,
    write_file,
    write_picture,
)
from visdiv_assets.cli.move_script import move_script
from visdiv_assets.cli.progress import by_steps
from visdiv_assets.errors import VisdivError, counted

if TYPE_CHECKING:
    import pyarrow as pa

    from visdiv_assets.workflows.clusters import Cluster
    from visdiv_assets.workflows.duplicates import Duplicates, Score
    from visdiv_assets.workflows.leakage import Overlap
    from visdiv_assets.workflows.project import EvaluatedDataset

CLUSTERS_SHOWN = 10
SCRIPT = ".sh"
LISTS = (".csv", ".jsonl", ".txt", SCRIPT)

commands = typer.Typer()

Threshold = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        callback=not_nan,
        metavar="T",
        help="Cosine similarity, 0 to 1. Default: as in the settings.",
    ),
]
Export = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write the images as .csv or .jsonl, their ids as .txt, or a script that moves them "
        "as .sh.",
    ),
]


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv duplicates birds --sheet birds.png    look at the largest clusters
  visdiv duplicates birds --export drop.txt    list the redundant images
  visdiv duplicates birds --export move.sh     a script that moves them, and back
  visdiv duplicates birds --threshold 0.9      stricter
  visdiv duplicates birds --no-split           keep one image of a whole chain
  visdiv duplicates birds --against cars       images that cars has, too
  visdiv duplicates ~/photos                   a folder that was scored

Of each cluster, the largest picture is kept, then the least compressed,
then the first by name. All others reach the threshold with the one that is
kept, except in chains with --no-split. A file and the links to it are one
image. The default threshold is made for photographs; look at the clusters of
other pictures before you drop anything. Results found with the thresholds in
the settings are recorded in the tables duplicates and redundancy.
"""
)
def duplicates(
    name: AnyDataset,
    threshold: Threshold = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Look for its images in this other dataset; can be repeated."
        ),
    ] = None,
    split: Annotated[
        bool | None,
        typer.Option(
            "--split/--no-split",
            help="Divide chains, so that every image is this similar to the one that is kept for "
            "it, or keep one image of a whole chain. Default: as in the settings, which divide.",
            metavar="",
            show_default=False,
        ),
    ] = None,
    export: Export = None,
    sheet: Sheet = None,
    json_output: Json = False,
    config: Config = None,
) -> None:
    """Find exact copies and near-duplicates, and which image of each cluster to keep."""
    with clear_errors():
        from visdiv_assets.workflows.duplicates import duplicates_of
        from visdiv_assets.workflows.leakage import overlaps_of
        from visdiv_assets.workflows.sheets import duplicates_sheet

        _check_list(export)
        project = open_project(config, name, *(against or ()))
        dataset = dataset_called(name, project)
        _check_script(export, dataset)
        if against:
            if split is not None:
                raise VisdivError(
                    "--split and --no-split work on one dataset; they cannot be used with --against"
                )
            others = [dataset_called(other, project) for other in dict.fromkeys(against)]
            if dataset.name in [other.name for other in others]:
                raise VisdivError(f"--against needs other datasets; leave out {name}")
            wanted = dataset.settings.near_duplicates.threshold
            with by_steps(dataset.name) as on_progress:
                overlaps = overlaps_of(
                    dataset,
                    [other.evaluation for other in others],
                    wanted if threshold is None else threshold,
                    on_progress,
                )
            _tell_overlaps(dataset, others, overlaps, export, sheet, json_output)
            return
        with by_steps(dataset.name) as on_progress:
            found = duplicates_of(
                dataset, threshold=threshold, split=split, on_progress=on_progress
            )
        going = found.to_drop()
        if export is not None:
            _write_list(export, going, dataset)
        if sheet is not None and found.clusters:
            write_picture(sheet, duplicates_sheet(found, dataset.source, dataset.decoding))
    if json_output:
        print_json(_as_json(found))
        return
    _print_duplicates(found)
    if export is not None:
        told = counted(len(going), "redundant image is", "redundant images are")
        say(f"the {told} listed in {export}")
    if sheet is not None:
        say(f"saved {sheet}" if found.clusters else "there is nothing to draw")


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv leakage birds                      into every dataset with role: benchmark
  visdiv leakage birds --sheet leaks.png    beside the images of the benchmark
  visdiv leakage birds --export leaks.csv
  visdiv leakage birds --export move.sh     a script that moves them, and back
"""
)
def leakage(
    name: AnyDataset,
    threshold: Threshold = None,
    export: Export = None,
    sheet: Sheet = None,
    json_output: Json = False,
    config: Config = None,
) -> None:
    """Find images of a dataset that your benchmarks contain, too."""
    with clear_errors():
        from visdiv_assets.workflows.leakage import benchmarks_of, leakage_of

        _check_list(export)
        project = open_project(config, name)
        dataset = dataset_called(name, project)
        _check_script(export, dataset)
        if not benchmarks_of(project.settings, dataset.name):
            if dataset.settings.role == "benchmark":
                raise VisdivError(
                    f"{name} is itself a benchmark; name a dataset that must not contain its images"
                )
            raise VisdivError("no dataset in the settings has role: benchmark")
        with by_steps(dataset.name) as on_progress:
            found = leakage_of(dataset, threshold=threshold, on_progress=on_progress)
        for other, why in found.not_compared.items():
            err.print(Text(f"{visible(other)} was not compared: {why}", style="yellow"))
        if not found.overlaps:
            raise VisdivError("no benchmark can be compared")
        benchmarks = [project.dataset_at(each.other.dataset) for each in found.overlaps]
        _tell_overlaps(dataset, benchmarks, found.overlaps, export, sheet, json_output)


def _tell_overlaps(
    dataset: "EvaluatedDataset",
    others: "Sequence[EvaluatedDataset]",
    overlaps: "Sequence[Overlap]",
    export: Path | None,
    sheet: Path | None,
    json_output: bool,
) -> None:
    import pyarrow as pa

    from visdiv_assets.workflows.catalogue import as_text
    from visdiv_assets.workflows.removal import removable
    from visdiv_assets.workflows.sheets import overlaps_sheet

    found = [each for each in overlaps if len(each.images)]
    going = removable(dataset, {each.name: each for each in others}, overlaps)
    if export is not None:
        listed = [
            images.add_column(1, "other", pa.array([each.other.dataset] * len(images)))
            for each, images in zip(overlaps, going.images, strict=True)
        ]
        _write_list(export, pa.concat_tables(listed), dataset)
    if sheet is not None and found:
        places = {each.name: (each.source, each.decoding) for each in [dataset, *others]}
        write_picture(sheet, overlaps_sheet(found, places))
    if json_output:
        shown = zip(overlaps, going.images, strict=True)
        print_json([{**_overlap_as_json(o), "n_may_go": len(m)} for o, m in shown])
        return
    table = Table()
    table.add_column("in", overflow="fold")
    for heading in ("images", "share", "same\nbytes", "its\nimages", "its\nshare"):
        table.add_column(heading, justify="right", no_wrap=True)
    levels = [level for level in overlaps[0].counts if level != overlaps[0].threshold]
    for level in levels:
        table.add_column(f"at\n{as_text(level)}", justify="right", no_wrap=True)
    for each in overlaps:
        table.add_row(
            visible(each.other.dataset),
            f"[bold]{len(each.images):,}[/]",
            f"{each.rate:.1%}",
            f"{each.n_exact:,}",
            f"{each.n_other:,}",
            f"{each.other_rate:.1%}",
            *(f"{each.counts[level]:,}" for level in levels),
        )
    out.print(table)
    say(
        f"Images of {dataset.name} that others have, too, at a similarity of "
        f"{as_text(overlaps[0].threshold)}; 'its images': those of the other that it has."
    )
    for each in overlaps:
        _print_recall(each.method, each.recall)
    if going.n_same:
        same = counted(going.n_same, "of them is a file", "of them are files")
        say(f"{same} of the others too, by links or overlapping folders; none may be removed.")
    _say_changed(going.n_changed, dataset.name)
    if export is not None:
        say(f"the images are listed in {export}")
    if sheet is not None:
        say(f"saved {sheet}" if found else "there is nothing to draw")


def _print_duplicates(found: "Duplicates") -> None:
    from visdiv_assets.workflows.catalogue import as_text

    dataset = found.evaluation.dataset
    of = f" of {found.evaluation.n_listed:,}" if found.evaluation.is_sample else ""
    contents = counted(found.n_distinct, "different content")
    say(f"{dataset}: {counted(found.n_images, 'image')}{of}, {contents}")
    if found.n_links:
        say(f"{counted(found.n_links, 'more name is a link', 'more names are links')} to them.")
    table = Table()
    table.add_column("redundant")
    for heading in ("images", "share of all"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("exact copies", f"{found.n_exact:,}", f"{found.n_exact / found.n_images:.1%}")
    for level, near in sorted(found.near.items()):
        told = (f"near-duplicates at {as_text(level)}", f"{near:,}", f"{near / found.n_images:.1%}")
        bold = level == found.threshold
        table.add_row(*(f"[bold]{each}[/]" if bold else each for each in told))
    out.print(table)
    if found.clusters:
        shown = Table()
        for heading in ("cluster", "images", "contents", "smallest similarity"):
            shown.add_column(heading, justify="right", no_wrap=True)
        shown.add_column("keep", overflow="fold")
        for each in found.clusters[:CLUSTERS_SHOWN]:
            smallest = f"{each.smallest:.3f}"
            shown.add_row(
                f"{each.number:,}",
                f"{each.n_images:,}",
                f"{each.n_contents:,}",
                f"[red]{smallest}[/]" if _is_chain(each, found) else smallest,
                Text(visible(found.images_of(each)["image_id"][0].as_py())),
            )
        out.print(shown)
        more = len(found.clusters) - CLUSTERS_SHOWN
        if more > 0:
            say(f"… and {more:,} more; --export FILE.csv lists all")
        chains = sum(_is_chain(each, found) for each in found.near_clusters)
        if chains:
            say(
                f"{counted(chains, 'cluster is a chain', 'clusters are chains')}: many of their "
                "images may resemble nothing that is kept; --split divides them"
            )
    if found.evaluation.n_flat:
        flat = counted(found.evaluation.n_flat, "picture is", "pictures are")
        say(f"{flat} one flat colour, and look alike for that reason alone: look at the files")
    if found.n_exact + found.n_near:
        plain = f"{_plain(found.after)} instead of {_plain(found.before)}"
        if found.before.corrected is None and found.after.corrected is None:
            say(
                f"Without them the score as it is becomes {plain}; there are too few to tell the "
                "corrected."
            )
        else:
            fair = f"{_fair(found.after)} instead of {_fair(found.before)}"
            say(f"Without them the score as it is becomes {plain}; corrected, {fair}.")
    _say_changed(found.n_changed, dataset)
    _print_recall(found.method, found.recall)


def _is_chain(cluster: "Cluster", found: "Duplicates") -> bool:
    """Whether it was not divided, though not all its images are alike."""
    return not found.split and cluster.smallest < found.threshold


def _say_changed(count: int, dataset: str) -> None:
    if count:
        changed = counted(count, "redundant image is", "redundant images are")
        say(
            f"{changed} not to be removed: they, or what is kept for them, changed or went since "
            f"the evaluation; run `visdiv score {dataset}`"
        )


def _print_recall(method: str, recall: float | None) -> None:
    if method != "exact":
        share = "an unknown share" if recall is None else f"{recall:.1%}, as measured,"
        say(f"An index was used; it finds {share} of all pairs.")


def _fair(score: "Score") -> str:
    return "too few to tell" if score.corrected is None else f"{score.corrected.score:.4f}"


def _plain(score: "Score") -> str:
    return "too few to tell" if score.plain is None else f"{score.plain:.4f}"


def _as_json(found: "Duplicates") -> dict[str, Any]:
    from visdiv_assets.workflows.catalogue import as_text

    scores = {"before": found.before, "after": found.after}
    plain = {when: each.plain for when, each in scores.items()}
    fair = {when: each.corrected and each.corrected.score for when, each in scores.items()}
    judged = plain if found.evaluation.basis == "plain" else fair

    return {
        "dataset": found.evaluation.dataset,
        "model_id": found.evaluation.model_id,
        "threshold": found.threshold,
        "split": found.split,
        "n_images": found.n_images,
        "n_distinct": found.n_distinct,
        "n_exact": found.n_exact,
        "n_flat": found.evaluation.n_flat,
        "n_near": found.n_near,
        "n_links": found.n_links,
        "n_changed": found.n_changed,
        "rate": found.rate(),
        "near": {as_text(level): near for level, near in found.near.items()},
        "clusters": [
            {
                "cluster": each.number,
                "n_images": each.n_images,
                "n_contents": each.n_contents,
                "smallest_similarity": each.smallest,
                "keep": found.images_of(each)["image_id"][0].as_py(),
            }
            for each in found.clusters
        ],
        "score": judged["before"],
        "score_without": judged["after"],
        "basis": found.evaluation.basis,
        "corrected_score": fair["before"],
        "corrected_without": fair["after"],
        "plain_score": plain["before"],
        "plain_without": plain["after"],
        "method": found.method,
        "recall": found.recall,
    }


def _overlap_as_json(each: "Overlap") -> dict[str, Any]:
    from visdiv_assets.workflows.catalogue import as_text

    return {
        "dataset": each.evaluation.dataset,
        "other": each.other.dataset,
        "model_id": each.evaluation.model_id,
        "threshold": each.threshold,
        "n_images": each.evaluation.n_images,
        "n_found": len(each.images),
        "n_exact": each.n_exact,
        "rate": each.rate,
        "n_other_images": each.other.n_images,
        "n_other_found": each.n_other,
        "counts": {as_text(level): count for level, count in each.counts.items()},
        "method": each.method,
        "recall": each.recall,
    }


def _check_list(path: Path | None) -> None:
    """Refuse a list before the work begins, not after."""
    if path is not None and path.suffix.lower() not in LISTS:
        raise VisdivError(f"a list must end in {', '.join(LISTS)}; got {path}")


def _check_script(path: Path | None, dataset: "EvaluatedDataset") -> None:
    """Refuse a script for what cannot be moved."""
    from visdiv_assets.sources.places import local_place

    if path is None or path.suffix.lower() != SCRIPT:
        return
    if local_place(dataset.source) is None:
        raise VisdivError(
            f"a script can only move files of a folder, and {dataset.source.uri} is none; "
            f"export {', '.join(LISTS[:-1])}"
        )


def _write_list(path: Path, images: "pa.Table", dataset: "EvaluatedDataset") -> None:
    """The images as a table, their ids alone, or a script that moves them."""
    from visdiv_assets.sources.places import local_place
    from visdiv_assets.sources.source import from_image_id

    place = local_place(dataset.source)
    if path.suffix.lower() == SCRIPT and place is not None:
        script = Text(f"to move the images, sh {path} TARGET; to undo it, sh {path} --undo TARGET")
        err.print(script, soft_wrap=True)
        ids = dict.fromkeys(images["image_id"].to_pylist())
        names = [str(place.path(from_image_id(each)).relative_to(place.root)) for each in ids]
        write_file(path, move_script(place.root, names))
        return
    hint = "; --export move.sh writes a script that does both" if place else ""
    told = f"move the images rather than delete them, so that you can undo it{hint}"
    err.print(told, soft_wrap=True)
    suffix = path.suffix.lower()
    text = io.StringIO()
    if suffix == ".csv":
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(images.column_names)
        for batch in images.to_batches():
            rows.writerows(zip(*batch.to_pydict().values(), strict=True))
    for batch in images.to_batches() if suffix != ".csv" else ():
        for row in batch.to_pylist():
            # A name may hold line breaks; one a line is all that a list of names can be.
            line = json.dumps(row) if suffix == ".jsonl" else visible_lines(row["image_id"])
            text.write(line + "\n")
    write_file(path, text.getvalue().encode())


def visible_lines(name: str) -> str:
    """A name as it is, but for line breaks, which stand in it in escaped form."""
    return name if len(name.splitlines()) <= 1 else visible(name)
