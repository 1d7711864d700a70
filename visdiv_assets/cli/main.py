"""The command `visdiv`.

Here: the list of all commands, `visdiv demo` and `visdiv doctor`. Not here: the other commands, one
module a family. Heavy modules are imported by the command that needs them.
"""

import logging
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.text import Text

from visdiv_assets import __version__
from visdiv_assets.cli import (
    alerts,
    datasets,
    duplicates,
    guidance,
    plan,
    portfolio,
    score,
    select,
    serve,
    similar,
    store,
)
from visdiv_assets.cli.console import (
    EXIT_ERROR,
    Config,
    Ended,
    Json,
    clear_errors,
    err,
    out,
    print_error,
    print_evaluations,
    print_json,
    print_warning,
    visible,
)
from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.secrets import guard_logs, redacted_traceback

WHERE_THE_DEMO_IS = (
    "the demo's photographs come with the source code: git clone "
    "https://github.com/visdiv/visdiv_assets, and run `make demo` there"
)

app = typer.Typer(
    name="visdiv",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
commands = typer.Typer()
for family in (score, plan, datasets, portfolio, duplicates, similar, select, guidance, serve):
    app.add_typer(family.commands)
app.add_typer(commands)
app.add_typer(alerts.commands, name="alerts")
app.add_typer(store.commands, name="store")


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"visdiv {__version__}")
        raise typer.Exit


@app.callback(
    epilog="""[bold]Examples[/]

  visdiv score ~/photos        score a folder
  visdiv score --help          more of them
  visdiv doctor                is everything as it should be?
"""
)
def visdiv(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            metavar="",
            help="Show the version.",
        ),
    ] = False,
) -> None:
    """Measure the visual diversity of image datasets, as FineVision does."""


@commands.command()
def demo(config: Config = None) -> None:
    """Score two demo datasets through Dagster.

    Diverse photographs, and near-identical frames. Needs a checkout of the project.
    """
    with clear_errors():
        from visdiv_assets.settings.reading import find_settings, load_settings
        from visdiv_assets.workflows.project import warehouse_of

        path = config or find_settings()
        if path is None:
            raise VisdivError(f"there is no visdiv.yaml here; {WHERE_THE_DEMO_IS}")
        settings = load_settings(path)
        for name in ("demo_photos", "demo_tracking"):
            if name in settings.faults:
                settings.dataset(name)  # says what is wrong
            if name not in settings.datasets:
                raise VisdivError(f"the demo's datasets are not in {path}; {WHERE_THE_DEMO_IS}")
        with err.status("starting Dagster") as status:
            from visdiv_assets.cli.demo import PHOTOS, TRACKING, run_demo  # dagster: 3 seconds

            for name in run_demo(path):
                status.update(f"materialising {name}")
        latest = {
            evaluation.dataset: evaluation
            for evaluation in warehouse_of(settings).latest_evaluations()
        }
    print_evaluations([latest[PHOTOS], latest[TRACKING]])
    out.print(
        "\n213 different photographs are diverse; the score is corrected for how few they are.\n"
        "300 frames of three scenes show next to nothing new, and the score says so.\n\n"
        "What next:\n"
        "  [bold]make dev[/]                    look at both in Dagster, http://localhost:3000\n"
        "  [bold].venv/bin/visdiv score DIR[/]  score a folder of your own\n"
        "  [bold]visdiv.yaml[/]                 register your datasets",
        soft_wrap=True,
    )


@commands.command()
def doctor(json_output: Json = False, config: Config = None) -> None:
    """Check installation, devices, codecs, settings, model, store and Dagster's own settings.

    Exit code 1 when something is wrong; warnings are no error.
    """
    with clear_errors():
        from visdiv_assets.settings.reading import load_settings

        settings = load_settings(config)
        with err.status("looking"):
            from visdiv_assets.cli.doctor import examine  # torch: seconds

            findings = examine(settings)
    if json_output:
        print_json({"findings": [finding._asdict() for finding in findings]})
    width = max(len(finding.subject) for finding in findings)
    for finding in [] if json_output else findings:
        mark = "[green]ok     [/]" if finding.ok else "[red]problem[/]"
        if finding.warning:
            mark = "[yellow]warning[/]"
        detail = Text(f" {finding.subject:<{width}}  {visible(finding.detail)}")
        out.print(mark, detail, sep="", soft_wrap=True)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(EXIT_ERROR)


def main() -> None:
    """The entry point of the command."""
    _end_as_with_ctrl_c("SIGTERM", "SIGHUP")
    os.environ["PYTHONSAFEPATH"] = "1"  # no Python started here imports from the current folder
    try:
        Path.cwd()
    except OSError:
        print_error("the folder that you are in no longer exists; change to another one")
        sys.exit(EXIT_ERROR)
    guard_logs()
    logging.basicConfig(level=logging.WARNING, handlers=[_Warnings()])
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # stars, where the terminal has none
    try:
        app()
    except Exception as error:
        # A mistake of ours: whoever reports it pastes the traceback.
        if (told := redacted_traceback(error)) is None:
            raise
        sys.stderr.write(told)
        sys.exit(EXIT_ERROR)


def _end_as_with_ctrl_c(*signals: str) -> None:
    """Keep finished rows when a container, a job scheduler or a closed terminal ends the run."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        for each in ends:
            signal.signal(each, signal.SIG_IGN)  # several may come at once
        raise Ended(number)

    ends = [getattr(signal, name) for name in signals if hasattr(signal, name)]
    for each in ends:
        if signal.getsignal(each) is signal.SIG_DFL:  # else nohup, or a program around this one
            signal.signal(each, end)


class _Warnings(logging.Handler):
    """Shows warnings above the progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        print_warning(record.getMessage())


if __name__ == "__main__":
    main()
