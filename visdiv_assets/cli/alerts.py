"""The commands `visdiv alerts list` and `visdiv alerts test`.

Here: arguments and tables. Not here: what an alert says, and its delivery (`notify/`).
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

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
    print_error,
    print_json,
    say,
)
from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.secrets import redacted

if TYPE_CHECKING:
    from visdiv_assets.warehouse.state.outbox import Alert, Delivery

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
        from visdiv_assets.warehouse.state.outbox import alerts

        rows = alerts(open_project(config).state, limit)
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
                "targets": len(deliveries),
                "delivered": sum(each.delivered_at is not None for each in deliveries),
                "error": _last_error(deliveries),
                "recipients": [_as_json(each) for each in deliveries],
            }
            for alert, deliveries in rows
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
    for alert, deliveries in rows:
        score = "" if alert.diversity_score is None else f"{alert.diversity_score:.4f}"
        state = _how_far(alert, deliveries).replace("[", "\\[")
        table.add_row(f"{alert.created_at:%Y-%m-%d %H:%M}", headline(alert), score, state)
    out.print(table)


def _last_error(deliveries: "list[Delivery]") -> str | None:
    missing = [each for each in deliveries if each.delivered_at is None]
    return next((redacted(each.last_error) for each in missing if each.last_error), None)


def _as_json(delivery: "Delivery") -> dict[str, object]:
    delivered, given_up = delivery.delivered_at, delivery.given_up_at
    return {
        "recipient": delivery.recipient,
        "attempts": delivery.attempts,
        "delivered_at": delivered.isoformat() if delivered else None,
        "given_up_at": given_up.isoformat() if given_up else None,
        "error": redacted(delivery.last_error) if delivery.last_error else None,
    }


def _how_far(alert: "Alert", deliveries: "list[Delivery]") -> str:
    """How many recipients have an alert, and what became of the others."""
    if not deliveries:
        from visdiv_assets.warehouse.state.outbox import GIVE_UP_AFTER

        late = datetime.now(UTC) - alert.created_at > GIVE_UP_AFTER
        return "nobody: there was no address for a week" if late else "waiting"
    delivered = sum(each.delivered_at is not None for each in deliveries)
    text = f"{delivered} of {len(deliveries)}"
    if given_up := [each for each in deliveries if each.given_up_at is not None]:
        text += f", given up: {', '.join(each.recipient for each in given_up)}"
    error = _last_error(deliveries)
    return f"{text}: {error}" if error else text


@commands.command("test")
def send_test(config: Config = None) -> None:
    """Send a test message to every alert URL of the settings."""
    with clear_errors():
        from visdiv_assets.notify.delivery import targets_of
        from visdiv_assets.notify.messages import Message

        targets, problems = targets_of(open_project(config).settings.alerts)
        if not targets and not problems:
            raise VisdivError("the settings name no alert URLs; add them under alerts: urls:")
        message = Message("visdiv: test", "This is a test. Alerts from visdiv look like this.")
        outcomes = [(target.label, target.send(message)) for target in targets]
    for label, error in outcomes:
        say(f"{label}: {error or 'accepted'}")
    for problem in problems:
        print_error(problem)
    if problems or any(error for _, error in outcomes):
        raise typer.Exit(EXIT_ERROR)
