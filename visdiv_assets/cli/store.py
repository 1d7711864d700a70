"""The commands `visdiv store stats`, `gc`, `compact` and `verify`.

Here: arguments and tables. Not here: what can go (`store/cleaning.py`, `workflows/maintenance.py`).
"""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from visdiv_assets.cli.console import (
    EXIT_ERROR,
    Config,
    Json,
    clear_errors,
    err,
    open_project,
    out,
    print_json,
    print_warning,
    say,
    visible,
)
from visdiv_assets.errors import counted

commands = typer.Typer(no_args_is_help=True, help="Look after the store: its size, its soundness.")

DATASETS_SHOWN = 20

Apply = Annotated[bool, typer.Option("--apply", help="Do it. Without this, it is only said.")]


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv store stats
  visdiv store stats --json
"""
)
def stats(json_output: Json = False, config: Config = None) -> None:
    """Say what the store holds, and which datasets take most of it."""
    with clear_errors():
        from visdiv_assets.store.cleaning import files_of, kind_of
        from visdiv_assets.workflows.maintenance import sizes

        store = open_project(config).store
        files = files_of(store)
        by_kind = sizes(files)
        by_dataset: dict[str, int] = {}
        for file in files:
            if kind_of(file) in ("manifests", "indexes", "moments", "pictures"):
                dataset = file.name.split("/")[1]
                by_dataset[dataset] = by_dataset.get(dataset, 0) + file.size
    largest = sorted(by_dataset.items(), key=lambda each: (-each[1], each[0]))
    if json_output:
        kinds = {kind: {"files": n, "bytes": size} for kind, (n, size) in by_kind.items()}
        print_json({"store": store.uri, "kinds": kinds, "datasets": dict(largest)})
        return
    out.print(_table("what", by_kind))
    if largest:
        table = Table()
        table.add_column("dataset")
        table.add_column("size, without embeddings", justify="right")
        for dataset, size in largest[:DATASETS_SHOWN]:
            table.add_row(Text(visible(dataset)), decimal(size))
        out.print(table)
        if len(largest) > DATASETS_SHOWN:
            say(f"and {counted(len(largest) - DATASETS_SHOWN, 'smaller dataset')}")


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv store gc              what can go
  visdiv store gc --apply      remove it
"""
)
def gc(
    apply: Apply = False,
    json_output: Json = False,
    config: Config = None,
) -> None:
    """Remove what no evaluation needs that is kept (`keep` in visdiv.yaml).

    Scores and history stay. Nothing goes that is younger than a week. Embeddings that nothing
    refers to are set aside first, and removed a week later. It is safe while evaluations run.
    """
    with clear_errors():
        from visdiv_assets.workflows.maintenance import clean_up, sizes

        done = clean_up(open_project(config), datetime.now(UTC), apply=apply)
    plan = done.plan
    if json_output:
        kinds = {
            kind: {"files": n, "bytes": size} for kind, (n, size) in sizes(plan.remove).items()
        }
        print_json(
            {
                "applied": apply,
                "removed": kinds,
                "set_aside": len(plan.hide),
                "brought_back": len(plan.restore),
                "bytes_before": done.before,
                "bytes_after": done.after,
                "problems": done.problems,
            }
        )
    else:
        if plan.remove:
            out.print(_table("removed" if apply else "can go", sizes(plan.remove)))
        if plan.hide:
            segments = counted(len(plan.hide), "segment")
            when = "were set aside; they go in a week" if apply else "would be set aside"
            say(f"{segments} of embeddings that nothing refers to {when}")
        if plan.restore:
            say(f"{counted(len(plan.restore), 'segment')} came back into use")
        sizes_told = f"{decimal(done.before)} before, {decimal(done.after)} after"
        if not plan.remove and not plan.hide and not plan.restore:
            say(f"nothing can go; the store has {decimal(done.before)}")
        elif apply:
            say(sizes_told)
        else:
            say(f"{sizes_told}; nothing was changed: add --apply to do it")
    for problem in done.problems:
        print_warning(problem)
    if apply and done.problems:
        raise typer.Exit(EXIT_ERROR)


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv store compact              what can be joined
  visdiv store compact --apply      join it
"""
)
def compact(
    apply: Apply = False,
    json_output: Json = False,
    config: Config = None,
) -> None:
    """Join small segments of embeddings into large ones, without the rows that nothing needs.

    The old segments are set aside, and `visdiv store gc` removes them a week later. So for that
    week the store is larger. Nothing is joined that is younger than a week. It is safe while
    evaluations run, and no image is embedded again.
    """
    with clear_errors():
        from visdiv_assets.workflows.maintenance import compact_store

        with err.status("looking for small segments") as status:
            done = compact_store(
                open_project(config),
                datetime.now(UTC),
                apply=apply,
                on_progress=lambda done, n: status.update(f"joining: {done:,} of {n:,} segments"),
            )
    plan = done.plan
    size, rows = sum(join.size for join in plan.joins), sum(join.n_rows for join in plan.joins)
    if json_output:
        print_json(
            {
                "applied": apply,
                "segments": plan.n_segments,
                "bytes": size,
                "rows": rows,
                "problems": done.problems,
            }
        )
    elif not plan.joins:
        say("no segments are worth joining")
    else:
        what = f"{counted(plan.n_segments, 'segment')} ({decimal(size)}, {rows:,} rows in use)"
        if apply:
            say(f"joined {what}; the old ones go a week from now, with `visdiv store gc`")
        else:
            say(f"{what} can be joined; nothing was changed: add --apply to do it")
    for problem in done.problems:
        print_warning(problem)
    if apply and done.problems:
        raise typer.Exit(EXIT_ERROR)


@commands.command(
    epilog="""[bold]Examples[/]

  visdiv store verify          exit code 1 if anything is damaged
"""
)
def verify(json_output: Json = False, config: Config = None) -> None:
    """Read everything in the store, and compare it with its checksums."""
    with clear_errors():
        from visdiv_assets.store.cleaning import files_of
        from visdiv_assets.store.cleaning import verify as verify_store

        store = open_project(config).store
        with err.status("reading") as status:
            problems = verify_store(
                store, lambda done, n: status.update(f"reading: {done:,} of {n:,} files")
            )
        n_files = len(files_of(store))
    if json_output:
        print_json({"files": n_files, "problems": problems})
    elif problems:
        for problem in problems:
            print_warning(problem)
        say(f"{counted(len(problems), 'file')} of {n_files:,} cannot be used")
    else:
        say(f"all {counted(n_files, 'file')} are as they were written")
    if problems:
        raise typer.Exit(EXIT_ERROR)


def _table(heading: str, by_kind: dict[str, tuple[int, int]]) -> Table:
    table = Table()
    table.add_column(heading)
    table.add_column("files", justify="right")
    table.add_column("size", justify="right")
    for kind, (number, size) in by_kind.items():
        table.add_row(kind, f"{number:,}", decimal(size))
    total = [sum(each) for each in zip(*by_kind.values(), strict=True)] or [0, 0]
    table.add_section()
    table.add_row("together", f"{total[0]:,}", decimal(total[1]))
    return table
