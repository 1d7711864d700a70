"""The commands `visdiv alerts list` and `visdiv alerts test`.

Here: arguments and tables. Not here: what an alert says, and its delivery (`notify/`).
"""

from typing import Annotated

import typer
from rich.table import Table

from visdiv_assets.cli.console import (
    EXIT_ERROR,
    MOST,
    Config,
    Json,
    clear_errors,
    open_project,
    out,
    print_json,
    say,
)
from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.secrets import redacted

commands = typer.Typer(no_args_is_help=True, help="List alerts, or send a test alert.")


@commands.command("list")
def list_alerts(
    limit: Annotated[int, typer.Option(min=1, max=MOST, metavar="N", help="The newest N.")] = 20,
    json_output: Json = False,
    config: Config = None,
) -> None:
    """List the newest alerts, and whether they were delivered."""
    with clear_errors():
        from visdiv_assets.notify.messages import headline

        rows = open_project(config).warehouse.alerts(limit)
    if json_output:
        told = [
            {
                "created_at": alert.created_at.isoformat(),
                "dataset": alert.dataset,
                "condition": alert.condition,
                "began": alert.began,
                "reason": alert.reason,
                "score": alert.diversity_score,
                "previous_score": alert.previous_score,
                "threshold": alert.threshold,
                "targets": targets,
                "delivered": delivered,
                "error": error,
            }
            for alert, targets, delivered, error in rows
        ]
        print_json({"alerts": told})
        return
    if not rows:
        out.print("there were no alerts")
        return
    table = Table()
    table.add_column("at (UTC)", no_wrap=True)
    table.add_column("alert")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("delivered", overflow="fold")
    for alert, targets, delivered, error in rows:
        score = "" if alert.diversity_score is None else f"{alert.diversity_score:.4f}"
        state = f"{delivered} of {targets}" if targets else "waiting"
        if delivered < targets and error:
            state += f": {redacted(error)}".replace("[", "\\[")
        table.add_row(f"{alert.created_at:%Y-%m-%d %H:%M}", headline(alert), score, state)
    out.print(table)


@commands.command("test")
def send_test(config: Config = None) -> None:
    """Send a test message to every alert URL of the settings."""
    with clear_errors():
        from visdiv_assets.notify.delivery import Target
        from visdiv_assets.notify.messages import Message

        urls = open_project(config).settings.alerts.resolved_urls()
        if not urls:
            raise VisdivError("the settings name no alert URLs; add them under alerts: urls:")
        message = Message("visdiv: test", "This is a test. Alerts from visdiv look like this.")
        outcomes = [(target.label, target.send(message)) for target in map(Target, urls)]
    for label, error in outcomes:
        say(f"{label}: {error or 'accepted'}")
    if any(error for _, error in outcomes):
        raise typer.Exit(EXIT_ERROR)
