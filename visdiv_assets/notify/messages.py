"""What an alert says.

Here: words. Not here: how they reach anyone.
"""

from collections.abc import Sequence
from typing import NamedTuple

from visdiv_assets.quality.conditions import Condition
from visdiv_assets.warehouse.alerts import Alert

BEGAN = {
    Condition.BELOW_THRESHOLD: "fell below its threshold",
    Condition.DROPPED: "dropped out of its usual range",
    Condition.NOT_EVALUATED: "could not be evaluated",
    Condition.STALE: "has not been evaluated for more than 26 hours",
}
ENDED = {
    Condition.BELOW_THRESHOLD: "has recovered",
    Condition.DROPPED: "is back in its usual range",
    Condition.NOT_EVALUATED: "can be evaluated again",
    Condition.STALE: "has been evaluated again",
}


class Message(NamedTuple):
    """A title of one line, and a body in plain text."""

    title: str
    body: str


def compose(alerts: Sequence[Alert], dagster_url: str) -> Message:
    """One message for all that is to be told now; several alerts become a digest.

    Args:
        alerts: at least one, oldest first.
        dagster_url: where Dagster's UI is, for links to runs.

    Raises:
        ValueError: there are no alerts.
    """
    if not alerts:
        raise ValueError("there is nothing to tell")
    if len(alerts) == 1:
        title = f"visdiv: {headline(alerts[0])}"
    else:
        datasets = sorted({alert.dataset for alert in alerts})
        title = f"visdiv: {len(alerts)} changes in {', '.join(datasets[:3])}"
        if len(datasets) > 3:
            title += f" and {len(datasets) - 3} more"
    return Message(title, "\n\n".join(_describe(alert, dagster_url) for alert in alerts))


def headline(alert: Alert) -> str:
    """One alert in one line."""
    phrases = BEGAN if alert.began else ENDED
    return f"{alert.dataset} {phrases[Condition(alert.condition)]}"


def _describe(alert: Alert, dagster_url: str) -> str:
    lines = [headline(alert)]
    if alert.diversity_score is not None:
        score = f"score: {alert.diversity_score:.4f}"
        if alert.rating:
            score += f" ({alert.rating})"
        if alert.previous_score is not None:
            score += f", before: {alert.previous_score:.4f}"
        if alert.threshold is not None:
            score += f", threshold: {alert.threshold:.2f}"
        lines.append(score)
    if alert.reason:
        lines.append(f"likely reason: {alert.reason}")
    if alert.run_id:
        lines.append(f"run: {dagster_url.rstrip('/')}/runs/{alert.run_id}")
    lines.append(f"at: {alert.created_at:%Y-%m-%d %H:%M} UTC")
    return "\n".join(lines)
