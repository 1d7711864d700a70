"""The text of alerts.

Here: wording. Not here: delivery (`delivery.py`).
"""

from collections.abc import Sequence
from typing import NamedTuple

from visdiv_assets.quality.conditions import Condition
from visdiv_assets.settings.secrets import redacted
from visdiv_assets.spectral.score import TOO_FEW
from visdiv_assets.warehouse.state.outbox import SETTINGS_FILE, Alert

BEGAN = {
    Condition.BELOW_THRESHOLD: "fell below its threshold",
    Condition.DROPPED: "dropped out of its usual range",
    Condition.IMAGES_LOST: "lost most of its images",
    Condition.NOT_EVALUATED: "could not be evaluated",
    Condition.NOT_ANALYZED: "could not be analysed",
    Condition.UNREACHABLE: "cannot be looked at",
    Condition.STALE: "has no evaluation of the last 26 hours",
    Condition.SETTINGS_BROKEN: "has settings that cannot be used",
}
ENDED = {
    Condition.BELOW_THRESHOLD: "has recovered",
    Condition.DROPPED: "is back in its usual range",
    Condition.IMAGES_LOST: "has its images again",
    Condition.NOT_EVALUATED: "can be evaluated again",
    Condition.NOT_ANALYZED: "can be analysed again",
    Condition.UNREACHABLE: "can be looked at again",
    Condition.STALE: "has been evaluated again",
    Condition.SETTINGS_BROKEN: "has settings that can be used again",
}
# Of the settings file itself.
FILE_BROKEN = "visdiv.yaml cannot be used"
FILE_MENDED = "visdiv.yaml can be used again"


class Message(NamedTuple):
    """A one-line title and a plain-text body."""

    title: str
    body: str


# Apprise's limit for services whose own limit it does not know.
LONGEST = 32_768


def compose(due: Sequence[Alert], dagster_url: str, longest: int = LONGEST) -> Message:
    """One message for all alerts that are due; several alerts become a digest.

    If the text is too long, each alert gets one line, for as many alerts as fit.

    Args:
        due: at least one alert, oldest first.
        dagster_url: address of Dagster's UI, for links to runs.
        longest: number of characters that the service accepts.

    Raises:
        ValueError: there are no alerts.
    """
    if not due:
        raise ValueError("a message needs at least one alert")
    if len(due) == 1:
        title = f"visdiv: {headline(due[0])}"
    else:
        datasets = sorted({each.dataset or "visdiv.yaml" for each in due})
        title = f"visdiv: {len(due)} changes in {', '.join(datasets[:3])}"
        if len(datasets) > 3:
            title += f" and {len(datasets) - 3} more"
    body = "\n\n".join(_describe(each, dagster_url) for each in due)
    return Message(title, body if len(body) <= longest else _shortened(due, body, longest))


def _shortened(due: Sequence[Alert], body: str, longest: int) -> str:
    if len(due) == 1:
        return body[: longest - 1] + "…"
    lines, left = [], longest - len("\n… and 1,000,000 more; run `visdiv alerts list`")
    for each in due:
        line = headline(each)
        left -= len(line) + 1
        if left < 0:
            break
        lines.append(line)
    if len(lines) < len(due):
        lines.append(f"… and {len(due) - len(lines):,} more; run `visdiv alerts list`")
    return "\n".join(lines)


def headline(alert: Alert) -> str:
    """One alert in one line."""
    if alert.dataset == SETTINGS_FILE:
        return FILE_BROKEN if alert.began else FILE_MENDED
    phrases = BEGAN if alert.began else ENDED
    return f"{alert.dataset} {phrases[Condition(alert.condition)]}"


def _describe(alert: Alert, dagster_url: str) -> str:
    lines = [headline(alert)]
    if alert.diversity_score is not None and alert.basis is None:
        lines.append(f"last score: {alert.diversity_score:.4f} ({alert.rating})")
    elif alert.diversity_score is not None:
        if alert.basis == "plain":
            score = f"score as it is: {alert.diversity_score:.4f}"
        else:
            score = f"score: {alert.diversity_score:.4f} ({alert.rating})"
        if alert.previous_score is not None:
            score += f", before: {alert.previous_score:.4f}"
        if alert.threshold is not None:
            score += f", threshold: {alert.threshold:.2f}"
        lines += [score, _other_score(alert)]
    if alert.reason:
        lines.append(f"likely reason: {redacted(alert.reason)}")
    if alert.run_id:
        lines.append(f"run: {dagster_url.rstrip('/')}/runs/{alert.run_id}")
    lines.append(f"at: {alert.created_at:%Y-%m-%d %H:%M} UTC")
    return "\n".join(lines)


def _other_score(alert: Alert) -> str:
    """The score that the threshold does not apply to, and the corrected score's interval."""
    if alert.corrected_score is None:
        return f"corrected: {TOO_FEW}"
    interval = f"{alert.corrected_low:.3f} to {alert.corrected_high:.3f}"
    if alert.basis == "plain":
        fair = f"{alert.corrected_score:.4f} ({alert.rating})"
        return f"corrected: {fair}, 95 % interval: {interval}"
    return f"95 % interval: {interval}, score as it is: {alert.plain_score:.4f}"
