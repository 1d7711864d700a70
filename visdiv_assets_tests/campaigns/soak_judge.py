"""What a soak must have come to: pure functions over recorded facts.

Here: facts, findings, and one function for each thing that must hold. Not here: how the facts come
about (`soak_world.py`).
"""

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from visdiv_assets.notify.messages import BEGAN, ENDED

BELOW = "below_threshold"

# Ends of these are not always news: a lower score, or fewer images, become the usual in time.
MAY_END_IN_SILENCE = frozenset({"dropped", "images_lost"})

# What is said of the settings file, which has no dataset's name.
OF_THE_FILE = {
    "visdiv.yaml cannot be used": ("", "settings_broken", True),
    "visdiv.yaml can be used again": ("", "settings_broken", False),
}

# A message that is told twice is excused by a kill so soon after the first: whoever was killed had
# sent it, and had not recorded it yet.
NEAR_SECONDS = 15.0

# Less is too little to tell what grows from what fluctuates.
MEMORY_SAMPLES = 24
MEMORY_GROWTH = 0.25
MEMORY_MIB = 60.0


@dataclass(frozen=True)
class Finding:
    """What a judge has to say.

    Attributes:
        judge: who says it.
        text: one line.
        failed: whether it is wrong; otherwise it is only worth knowing.
        passing: whether time may mend it.
    """

    judge: str
    text: str
    failed: bool = True
    passing: bool = False


@dataclass(frozen=True)
class Stands:
    """A source as it is at the end; `error` if it could not be looked at."""

    n_images: int = 0
    fingerprint: str = ""
    error: str = ""


@dataclass(frozen=True)
class Evaluated:
    """One evaluation; times are seconds since the soak began."""

    dataset: str
    at: float
    n_images: int
    n_failed: int
    fingerprint: str
    score: float | None


@dataclass(frozen=True)
class Partitions:
    """The partitions at one time; `settings` says what was wrong with `visdiv.yaml` then."""

    at: float
    names: frozenset[str]
    settings: str = ""


@dataclass(frozen=True)
class Run:
    """A Dagster run; `parent` is the run that it repeats."""

    run_id: str
    job: str
    dataset: str
    status: str
    finished: bool
    tags: Mapping[str, str]
    parent: str = ""


@dataclass(frozen=True)
class Recorded:
    """An alert in the service's own books."""

    at: float
    dataset: str
    condition: str
    began: bool


@dataclass(frozen=True)
class Told:
    """One change that one recipient was told of; `text` is all that was said about it."""

    recipient: str
    at: float
    dataset: str
    condition: str
    began: bool
    text: str


Spoken = TypeVar("Spoken", Recorded, Told)


@dataclass(frozen=True)
class Kill:
    """A kill -9."""

    at: float
    target: str


@dataclass(frozen=True)
class Memory:
    """The resident memory of one process at one time."""

    at: float
    role: str
    pid: int
    mib: float


# --- messages ---

_PHRASES = [
    (phrase, condition.value, began)
    for phrases, began in ((BEGAN, True), (ENDED, False))
    for condition, phrase in phrases.items()
]


def read_message(recipient: str, at: float, title: str, body: str) -> tuple[list[Told], str]:
    """The changes that a message tells of, and what is wrong with the message itself.

    Example:
        >>> told, wrong = read_message("me", 1.0, "visdiv: a has recovered", "a has recovered")
        >>> [(each.dataset, each.condition, each.began) for each in told], wrong
        ([('a', 'below_threshold', False)], '')
    """
    told: list[Told] = []
    for paragraph in re.split(r"\n\s*\n", body.replace("\r\n", "\n")):
        lines = paragraph.strip().split("\n")
        for line in lines:
            # The first line of a paragraph, or one of many in a message that was cut short.
            if (change := _read_line(line.strip())) is not None:
                told.append(Told(recipient, at, *change, text=paragraph.strip()))
    said = re.match(r"visdiv: (\d+) changes in ", title)
    count = int(said[1]) if said else 1
    if len(told) != count:
        return told, f"{recipient}: {title!r} tells of {len(told)} changes"
    return told, ""


def _read_line(line: str) -> tuple[str, str, bool] | None:
    """The dataset, the condition, and whether it began, if a line tells of a change."""
    for said, change in OF_THE_FILE.items():
        if line.startswith(said):
            return change
    dataset, _, rest = line.partition(" ")
    for phrase, condition, began in _PHRASES:
        if rest.startswith(phrase):
            return dataset, condition, began
    return None


# --- judges ---


def judge_evaluations(
    sources: Mapping[str, Stands], latest: Mapping[str, Evaluated]
) -> list[Finding]:
    """The newest evaluation of each registered dataset describes its source as it stands."""
    findings = []
    for name, source in sorted(sources.items()):
        newest = latest.get(name)
        if source.error:
            problem = f"the source cannot be looked at: {source.error}"
        elif newest is None:
            problem = "never evaluated"
        elif newest.fingerprint != source.fingerprint:
            problem = f"the source has changed since its evaluation at {newest.at:.0f} s"
        elif (newest.n_images, newest.n_failed) != (source.n_images, 0):
            counts = f"{newest.n_images} images and {newest.n_failed} failed ones"
            problem = f"{counts} are not {source.n_images} images"
        else:
            continue
        findings.append(Finding("evaluations", f"{name}: {problem}", passing=True))
    return findings


def judge_partitions(
    samples: Iterable[Partitions], registered: Mapping[str, Sequence[tuple[float, float]]]
) -> list[Finding]:
    """No partition was lost while its dataset was registered; at the end they are the same.

    Args:
        samples: in order of time; the last one is of the end.
        registered: for each dataset, from when to when it was.
    """
    findings, samples = [], list(samples)
    for name, spans in sorted(registered.items()):
        for begin, end in spans:
            within = [sample for sample in samples if begin <= sample.at <= end]
            there = [name in sample.names for sample in within]
            if True not in there:
                continue
            first = there.index(True)
            lost = [
                sample
                for sample, is_there in zip(within[first:], there[first:], strict=True)
                if not is_there
            ]
            if lost:
                why = lost[0].settings
                while_ = f" while the settings were {why}" if why else ""
                findings.append(
                    Finding(
                        "partitions",
                        f"{name} was lost at {lost[0].at:.0f} s{while_}, "
                        f"and was missing {len(lost)} times",
                    )
                )
    last = samples[-1] if samples else Partitions(0.0, frozenset())
    wanted = {name for name, spans in registered.items() if spans and spans[-1][1] >= last.at}
    if missing := sorted(wanted - last.names):
        text = f"at the end there are none of {', '.join(missing)}"
        findings.append(Finding("partitions", text, passing=True))
    if more := sorted(last.names - wanted):
        text = f"at the end there are still those of {', '.join(more)}"
        findings.append(Finding("partitions", text, passing=True))
    return findings


def judge_runs(runs: Iterable[Run], slots: Mapping[str, Collection[str]]) -> list[Finding]:
    """Every run has ended, and no place in a pool is held.

    Args:
        runs: all of them.
        slots: for each pool, the runs that hold a place in it.
    """
    runs = list(runs)
    findings = [
        Finding(
            "runs",
            f"{run.job} of {run.dataset or 'all'} ({run.run_id[:8]}) is still {run.status}",
            passing=True,
        )
        for run in runs
        if not run.finished
    ]
    for pool, holders in sorted(slots.items()):
        if holders:
            held = ", ".join(sorted(run_id[:8] for run_id in holders))
            text = f"a place in pool {pool} is held by {held}"
            findings.append(Finding("runs", text, passing=True))
    ended = Counter(run.status for run in runs if run.finished)
    repeated = sum(bool(run.parent) for run in runs)
    said = ", ".join(f"{count} {status}" for status, count in ended.most_common())
    findings.append(Finding("runs", f"{said}; {repeated} repeat others", failed=False))
    return findings


def judge_next_run(status: str) -> list[Finding]:
    """One more run, after all that, succeeds."""
    if status == "SUCCESS":
        return []
    return [Finding("next run", f"one more run, asked for at the end, is {status or 'not there'}")]


def judge_recipients(
    recorded: Iterable[Recorded],
    told: Iterable[Told],
    recipients: Iterable[str],
    kills: Iterable[Kill],
    near: float = NEAR_SECONDS,
) -> list[Finding]:
    """Each recorded alert reached each recipient once, in order.

    What one recipient was told twice in the same words is told twice. If something was killed
    soon after the first time, no service could have known better: that is not wrong.
    """
    expected = _by_subject(sorted(recorded, key=lambda each: each.at))
    heard: dict[str, list[Told]] = defaultdict(list)
    for each in told:
        heard[each.recipient].append(each)
    kills = [kill for kill in kills if kill.target != "run worker"]  # it tells nobody
    findings: list[Finding] = []
    for recipient in recipients:
        got = _by_subject(sorted(heard[recipient], key=lambda each: each.at))
        excused = 0
        for subject in sorted(expected.keys() | got.keys()):
            wanted = [each.began for each in expected.get(subject, ())]
            words = got.get(subject, [])
            if [each.began for each in words] == wanted:
                continue
            where = f"{recipient}: {subject[0]} {subject[1]}"
            once: dict[str, Told] = {}
            for each in words:
                first = once.setdefault(each.text, each)
                if first is each:
                    continue
                if any(-5 <= kill.at - first.at <= near and kill.at <= each.at for kill in kills):
                    excused += 1
                    continue
                findings.append(
                    Finding(
                        "told twice",
                        f"{where} {_word(each.began)} at {first.at:.0f} s and {each.at:.0f} s",
                    )
                )
            said = [each.began for each in once.values()]
            if said == wanted:
                continue
            missing = len(said) < len(wanted)
            findings.append(
                Finding(
                    "not told" if missing else "told wrongly",
                    f"{where}: told {_words(said)}, recorded {_words(wanted)}",
                    passing=missing,
                )
            )
        if excused:
            text = f"{recipient}: {excused} told twice, as somebody was killed right after"
            findings.append(Finding("told twice", text, failed=False))
    return findings


def _by_subject(each: Iterable[Spoken]) -> dict[tuple[str, str], list[Spoken]]:
    found: dict[tuple[str, str], list[Spoken]] = defaultdict(list)
    for one in each:
        found[one.dataset, one.condition].append(one)
    return found


def _word(began: bool) -> str:
    return "began" if began else "ended"


def _words(each: Iterable[bool]) -> str:
    return " ".join(map(_word, each)) or "nothing"


def judge_order(
    recorded: Iterable[Recorded], removed: Mapping[str, Sequence[float]]
) -> list[Finding]:
    """What is recorded begins, and then ends and begins in turn.

    Args:
        recorded: all alerts.
        removed: when datasets were removed from the settings, which may forget their conditions.
    """
    findings = []
    for (dataset, condition), alerts in sorted(_by_subject(recorded).items()):
        if condition in MAY_END_IN_SILENCE:
            continue
        alerts.sort(key=lambda each: each.at)
        holds, since = False, 0.0
        for each in alerts:
            if any(since <= at <= each.at for at in removed.get(dataset, ())):
                holds = False
            if each.began == holds:
                text = f"{dataset} {condition} {_word(each.began)} again at {each.at:.0f} s"
                findings.append(Finding("order", text))
            holds, since = each.began, each.at
    return findings


def judge_scores(
    evaluations: Iterable[Evaluated], recorded: Iterable[Recorded], threshold: float
) -> list[Finding]:
    """Whenever a score crossed its threshold, and only then, an alert was recorded."""
    flips: dict[str, list[bool]] = defaultdict(list)
    for each in sorted(evaluations, key=lambda each: each.at):
        below = each.score is not None and each.score < threshold
        if below != (flips[each.dataset][-1:] == [True]):
            flips[each.dataset].append(below)
    told: dict[str, list[bool]] = defaultdict(list)
    for alert in sorted(recorded, key=lambda alert: alert.at):
        if alert.condition == BELOW:
            told[alert.dataset].append(alert.began)
    return [
        Finding("scores", f"{name}: {_words(flips[name])} by its scores, {_words(told[name])} told")
        for name in sorted(flips.keys() | told.keys())
        if flips[name] != told[name]
    ]


def judge_last_words(
    told: Iterable[Told], recipients: Iterable[str], low: Collection[str]
) -> list[Finding]:
    """The last word that each recipient has on each dataset is true.

    Once everything is mended, nothing is wrong with any dataset, whatever its images look like,
    but that those of some are too alike.

    Args:
        told: everything that was said.
        recipients: who must know.
        low: the datasets whose images are too alike at the end.
    """
    last: dict[str, dict[tuple[str, str], bool]] = defaultdict(dict)
    for each in sorted(told, key=lambda each: each.at):
        last[each.recipient][each.dataset, each.condition] = each.began
    findings = []
    for recipient in recipients:
        believes = {(name, BELOW): False for name in low} | last[recipient]
        for (name, condition), said in sorted(believes.items()):
            truth = condition == BELOW and name in low
            if said != truth and condition not in MAY_END_IN_SILENCE:
                word = "holds" if said else "does not hold"
                text = f"{recipient} believes that {condition} {word} for {name or 'the settings'}"
                findings.append(Finding("last word", text, passing=True))
    return findings


def judge_memory(samples: Iterable[Memory], end: float) -> list[Finding]:
    """Processes that lived to the end have not grown.

    Compares medians of the last and the second quarter of each process's life.
    """
    lives: dict[tuple[str, int], list[Memory]] = defaultdict(list)
    for sample in samples:
        lives[sample.role, sample.pid].append(sample)
    findings = []
    for (role, pid), life in sorted(lives.items()):
        if end - life[-1].at > 60:
            continue
        named = f"{role} {pid}"
        if len(life) < MEMORY_SAMPLES:
            text = f"{named}: {life[-1].mib:.0f} MiB; lived too short to tell"
            findings.append(Finding("memory", text, failed=False))
            continue
        quarter = len(life) // 4
        second = statistics.median(each.mib for each in life[quarter : 2 * quarter])
        fourth = statistics.median(each.mib for each in life[-quarter:])
        grown = fourth > second * (1 + MEMORY_GROWTH) and fourth > second + MEMORY_MIB
        minutes = (life[-1].at - life[0].at) / 60
        text = f"{named}: {second:.0f} → {fourth:.0f} MiB in {minutes:.0f} minutes"
        findings.append(Finding("memory", text, failed=grown))
    return findings


def judge_night(runs: Iterable[Run], scheduled: Iterable[str], night: str) -> list[Finding]:
    """Each scheduled dataset had one run in the night; what repeats a failed run is not another."""
    had: Counter[str] = Counter()
    for run in runs:
        for key in set(run.tags.values()) if not run.parent else ():
            kind, _, rest = key.partition(":")
            name, _, date = rest.rpartition(":")
            if kind == "nightly" and date == night:
                had[name] += 1
    wrong = {name: had[name] for name in sorted(scheduled) if had[name] != 1}
    findings = []
    if without := [name for name, count in wrong.items() if not count]:
        text = f"no run in the night of {night}: {', '.join(without)}"
        findings.append(Finding("night", text, passing=True))
    if more := [f"{name} ({count})" for name, count in wrong.items() if count > 1]:
        findings.append(Finding("night", f"several runs in one night: {', '.join(more)}"))
    return findings


def table(findings: Sequence[Finding], most: int = 12) -> str:
    """The findings by judge, each judge's first ones."""
    lines = []
    for judge in dict.fromkeys(each.judge for each in findings):
        of_judge = [each for each in findings if each.judge == judge]
        for each in of_judge[:most]:
            lines.append(f"{'FAILED' if each.failed else '      '}  {judge:<12} {each.text}")
        if len(of_judge) > most:
            lines.append(f"        {judge:<12} … and {len(of_judge) - most} more")
    return "\n".join(lines)
