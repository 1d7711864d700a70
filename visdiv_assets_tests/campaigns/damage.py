"""Damage: every file of a store in turn, in many ways, and what each command says then.

    python -m visdiv_assets_tests.campaigns.damage

A round damages one file of a copy of a store that was in order. Then every command either gives
the answer that it gave before, or says one sentence that names the file or what to run. After
`visdiv score`, if that succeeds, all answers are as they were.

Here: kinds of damage, the commands, how their answers are judged.
Not here: playing rounds (`rounds.py`), the datasets (`datasets.py`).
"""

import functools
import json
import logging
import os
import random
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import dagster as dg
from typer.testing import CliRunner

from visdiv_assets.cli import console
from visdiv_assets.cli.main import app
from visdiv_assets.definitions import build_defs
from visdiv_assets.defs.sensors import dataset_change_sensor
from visdiv_assets_tests.campaigns.datasets import (
    add_copies,
    cheap_model,
    write_birds,
    write_cars,
    write_settings,
)
from visdiv_assets_tests.campaigns.rounds import Round, main, random_of

DATASETS = (
    "birds: {source: birds}",
    "cars: {source: cars}",
    "held_out: {source: held_out, role: benchmark}",
)

# Each is asked of a fresh copy of the damaged store, since some of them write.
QUESTIONS = (
    "list",
    "history birds",
    "failures birds",
    "alerts list",
    "compare",
    "compare birds cars",
    "mix",
    "slices birds",
    "drift birds",
    "drift birds --against cars",
    "duplicates birds --json",
    "duplicates birds --against cars",
    "leakage birds --json",
    "similar birds a/004.png --json",
    "select birds -k 9 --json",
    "select birds -k 9 --method leverage",
    "axes birds --json",
    "acquire birds --json",
    "doctor",
    "dagster dataset_change_sensor",
)
# A round asks one of these only, since they take seconds.
SLOW_QUESTIONS = (
    "augment birds --sample 53 --only flip --json",
    "dagster image_manifest sscd_embeddings embedding_moments diversity_metrics",
    "dagster near_duplicates benchmark_leakage",
)
SCORE = "score --json"

# What is damaged or gone is a finding for one, and a reason to ask for a run for the other.
REPORTS = ("doctor", "dagster dataset_change_sensor")
# These list what DuckDB holds. Where its file is gone, nothing was ever evaluated.
LISTS = ("list", "history birds", "failures birds", "alerts list", "compare")
# These tell of earlier evaluations, which no new one brings back.
OF_THE_PAST = ("history birds", "alerts list", "drift birds", "compare")

WAREHOUSE, STATE = "visdiv.duckdb", "state.sqlite"


# --- kinds of damage ---


def _rewritten(change: Callable[[bytes, random.Random], bytes]) -> Callable[..., None]:
    def damage(path: Path, rng: random.Random) -> None:
        before = path.stat()
        path.write_bytes(change(path.read_bytes(), rng))
        if rng.random() < 0.5:  # a disk that forgets bits changes no times
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    return damage


def _zeroed_in_the_middle(data: bytes, rng: random.Random) -> bytes:
    length = max(1, len(data) // 8)
    start = rng.randrange(len(data) // 4, len(data) // 2 + 1)
    return data[:start] + bytes(len(data[start : start + length])) + data[start + length :]


def _made_a_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _made_unreadable(path: Path, rng: random.Random) -> None:
    path.chmod(0)


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "cut in half": _rewritten(lambda data, rng: data[: len(data) // 2]),
    "cut at its end": _rewritten(lambda data, rng: data[: -rng.randint(1, 16)]),
    "emptied": _rewritten(lambda data, rng: b""),
    "zeroed": _rewritten(lambda data, rng: bytes(len(data))),
    "zeroed in the middle": _rewritten(_zeroed_in_the_middle),
    "random bytes": _rewritten(lambda data, rng: rng.randbytes(len(data))),
    "a folder instead": _made_a_folder,
    "deleted": lambda path, rng: path.unlink(),
    # Root may read everything.
    **({"unreadable": _made_unreadable} if os.geteuid() else {}),
}


# --- asking ---


@dataclass(frozen=True)
class Answer:
    """What a command said: its exit code, its output without times, and a traceback if any."""

    code: int
    stdout: str
    stderr: str
    crash: str = ""


def ask(question: str, store: Path) -> Answer:
    """Run a command, or Dagster, in this process, on this store."""
    with mock.patch.dict(os.environ, VISDIV_STORE=str(store)):
        kind, _, rest = question.partition(" ")
        if kind == "dagster":
            return _ask_dagster(rest)
        result = CliRunner().invoke(app, question.split())
    crash = ""
    if result.exc_info and not isinstance(result.exception, SystemExit | None):
        crash = "".join(traceback.format_exception(*result.exc_info))
    stdout, stderr = result.stdout, result.stderr
    return Answer(result.exit_code, _timeless(stdout, store), _timeless(stderr, store), crash)


def _timeless(text: str, store: Path) -> str:
    """Without what differs between two runs: times, and where the store is."""
    text = text.replace(str(store), "STORE")
    text = re.sub(r"\d{4}-\d\d-\d\d|\b\d\d:\d\d(?::\d\d)?\b", "DATE", text)
    text = re.sub(r'"(seconds|evaluated_at)": [^,}]+', r'"\1": TIME', text)
    text = re.sub(r"\d+ GiB free", "FREE", text)
    return re.sub(r" *\d+\.\d s\b", " TIME", text)


@functools.cache
def _definitions() -> dg.Definitions:
    return build_defs()


def _ask_dagster(what: str) -> Answer:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("datasets", ["birds", "cars", "held_out"])
        if what == "dataset_change_sensor":
            return _tick(instance)
        job = _definitions().resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            asset_selection=[dg.AssetKey(name) for name in what.split()],
            partition_key="birds",
            instance=instance,
            raise_on_error=False,
        )
    failures = [event for event in result.all_events if event.is_step_failure]
    if not failures:
        return Answer(0, json.dumps(_told_by(result), indent=1, default=str), "")
    data = [event.step_failure_data for event in failures]
    told = [each.user_failure_data for each in data if each.user_failure_data]
    if len(told) < len(data):
        return Answer(1, "", "", "\n".join(str(each.error) for each in data))
    return Answer(1, "", "".join(f"error: {each.description}\n" for each in told))


def _told_by(result: dg.ExecuteInProcessResult) -> list[object]:
    """The numbers and texts of all materializations and checks, without times and pictures."""
    said: list[object] = []
    for event in result.all_events:
        if event.is_step_materialization:
            found = event.step_materialization_data.materialization
            metadata: Mapping[str, dg.MetadataValue] = found.metadata
            of = found.asset_key.to_user_string() if found.asset_key else ""
        elif event.event_type_value == "ASSET_CHECK_EVALUATION":
            check = event.asset_check_evaluation_data
            metadata, of = check.metadata, f"{check.check_name} {check.passed}"
        else:
            continue
        values = {
            key: value.value
            for key, value in metadata.items()
            if isinstance(value.value, int | float | str)
            and not str(value.value).startswith("![")
            and not re.search("second|image/s|images/s|bytes|age|manifest|newly|hours|time", key)
        }
        said.append((of, values))
    return sorted(said, key=str)


def _tick(instance: dg.DagsterInstance) -> Answer:
    resources = _definitions().resources
    needed = {name: resources[name] for name in ("settings", "store")}
    try:
        with dg.build_sensor_context(instance=instance, resources=needed) as context:
            ticked = dataset_change_sensor(context)
    except dg.Failure as failure:
        return Answer(1, "", f"error: {failure.description}\n")
    except Exception:  # noqa: BLE001
        return Answer(1, "", "", traceback.format_exc())
    asked = sorted(str(request.partition_key) for request in ticked.run_requests or ())
    return Answer(0, f"{asked}", "")


@contextmanager
def _in_project(folder: Path) -> Iterator[None]:
    """Settings and images of this folder, wide tables, a model that costs nothing.

    Warnings are kept off stderr, where only the sentence is expected.
    """
    quiet = logging.NullHandler()
    settings = {"VISDIV_CONFIG": str(folder / "visdiv.yaml")}
    logging.getLogger().addHandler(quiet)
    try:
        with (
            mock.patch.dict(os.environ, settings),
            mock.patch.object(console.out, "_width", 250),
            mock.patch.object(console.err, "_width", 250),
            cheap_model(),
        ):
            yield
    finally:
        logging.getLogger().removeHandler(quiet)


# --- judging ---


@dataclass(frozen=True)
class Sound:
    """A store in order, and what each command says of it, before and after one more `score`."""

    folder: Path
    before: Mapping[str, Answer]
    after: Mapping[str, Answer]

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def roles(self) -> dict[str, Path]:
        """Each file of the store, below it, by a name that is the same in every campaign."""
        return {
            _role(path, self.store): path.relative_to(self.store) for path in _files(self.store)
        }


def _files(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file())


def _role(path: Path, store: Path) -> str:
    """`moments/birds/2.npz`: hashes become the file's number among its like, by age."""
    parts = list(path.relative_to(store).parts)
    if len(parts) > 2 and parts[0] != "manifests" and parts[-1] != "newest":
        beside = path.parent.parent if path.parent.name == ".keys" else path.parent
        parts.remove(beside.name)  # the model id
    if re.fullmatch("[0-9a-f]{16,}", path.stem):
        like = sorted(path.parent.glob(f"*{path.suffix}"), key=lambda each: each.stat().st_mtime_ns)
        parts[-1] = f"{like.index(path) + 1}{path.suffix}"
    return "/".join(parts)


def build(folder: Path, questions: Iterable[str]) -> Sound:
    """Make the datasets, score them, and ask everything of the sound store."""
    write_settings(folder, *DATASETS)
    write_birds(folder / "birds")
    write_cars(folder / "cars", 58, 120)
    write_cars(folder / "held_out", 0, 12)
    questions = list(questions)
    with _in_project(folder):
        store = folder / "store"
        for step in range(3):
            if step == 1:
                add_copies(folder / "birds")
            made = ask(SCORE, store)
            assert made.code == 0, made
        # Findings are in the warehouse, too.
        for question in ("duplicates birds --json", "leakage birds --json", "axes birds --json"):
            ask(question, store)
        before = {question: _of_a_copy(question, store, folder) for question in questions}
        again = Path(shutil.copytree(store, folder / "again"))
        before[SCORE] = ask(SCORE, again)
        quick = [question for question in questions if question in QUESTIONS]
        after = {question: _of_a_copy(question, again, folder) for question in quick}
        shutil.rmtree(again)
    for question, answer in [*before.items(), *after.items()]:
        assert not answer.crash, answer.crash
        assert answer.code == 0, (question, answer)
    return Sound(folder, before, after)


def _of_a_copy(question: str, store: Path, folder: Path) -> Answer:
    copy = Path(shutil.copytree(store, folder / "asked"))
    try:
        return ask(question, copy)
    finally:
        shutil.rmtree(copy)


def damage_and_ask(sound: Sound, role: str, kind: str, seed: int, folder: Path) -> list[str]:
    """One round: damage a file, ask everything, score, ask everything again."""
    below = sound.roles()[role]
    name = f"{role}: {kind}"
    slow = [question for question in sound.before if question in SLOW_QUESTIONS]
    drawn = random_of(seed, f"{name}, slow").sample(slow, min(1, len(slow)))

    def damaged(copy: str) -> Path:
        store = Path(shutil.copytree(sound.store, folder / copy))
        KINDS[kind](store / below, random_of(seed, name))
        return store

    problems = []
    with _in_project(sound.folder):
        for question in [*sound.after, *drawn]:
            store = damaged("store")
            answer = ask(question, store)
            shutil.rmtree(store)
            problems += _judged(question, answer, sound.before[question], role, kind)
        store = damaged("store")
        answer = ask(SCORE, store)
        problems += _judged(SCORE, answer, sound.before[SCORE], role, kind)
        if answer.code or answer.crash:
            return problems
        forgotten = role.startswith((WAREHOUSE, STATE))
        for question in sound.after:
            if forgotten and question in OF_THE_PAST:
                continue
            if role == STATE and question in REPORTS:  # nothing puts it in order but people
                continue
            again = _of_a_copy(question, store, folder)
            expected = sound.after[question]
            if again.crash or (again.code, again.stdout) != (expected.code, expected.stdout):
                problems.append(f"after `score`, `{question}`: {_difference(again, expected)}")
    return problems


def _judged(question: str, answer: Answer, expected: Answer, role: str, kind: str) -> list[str]:
    """What is wrong with an answer: nothing if it is right, or one clear sentence."""
    where = f"`{question}`: "
    if answer.crash:
        return [f"{where}a traceback\n{_end_of(answer.crash)}"]
    if answer.code == 0 and answer.stdout == expected.stdout:
        return []
    if question in REPORTS:
        return []
    # Without its file nothing was evaluated; a damaged one must not look like that.
    forgotten = role in (WAREHOUSE, STATE) and kind in ("deleted", "emptied") and question in LISTS
    if answer.code == 0 and forgotten and _is_part(answer.stdout, expected.stdout):
        return []
    if answer.code == 0:
        return [f"{where}another answer without a word: {_difference(answer, expected)}"]
    # `score` says one for each dataset that it cannot score, and lists failed images as ever.
    lines = [line for line in answer.stderr.splitlines() if not line.startswith("  ")]
    errors = [line for line in lines if line.startswith("error: ")]
    others = [line for line in lines if not line.startswith("error: ")]
    few = 1 <= len(errors) <= (len(DATASETS) if question == SCORE else 1)
    if question == SCORE:
        others = [line for line in others if not line.endswith("could not be embedded:")]
    if answer.code != 1 or not few or others:
        return [f"{where}exit code {answer.code}, and not one sentence:\n{answer.stderr}"]
    return [
        f"{where}neither says what is damaged nor what to run: {error}"
        for error in errors
        if not _is_clear(error, role)
    ]


def _is_part(text: str, whole: str) -> bool:
    """Whether all numbers of a text are in the other, too."""
    numbers = re.compile(r"\d[\d.,–]*")
    return set(numbers.findall(text)) <= set(numbers.findall(whole)) | {"0"}


def _is_clear(error: str, role: str) -> bool:
    """Whether it names a command, the file or its folder."""
    named = ("`visdiv ", "STORE", Path(role).name, role.partition("/")[0])
    return any(name in error for name in named)


def _difference(answer: Answer, expected: Answer) -> str:
    """The first lines that differ."""
    if answer.crash:
        return f"a traceback\n{_end_of(answer.crash)}"
    if answer.code != expected.code:
        return f"exit code {answer.code}: {answer.stderr.strip()[-300:]}"
    given, wanted = answer.stdout.splitlines(), expected.stdout.splitlines()
    for one, other in zip(given + [""] * len(wanted), wanted + [""] * len(given), strict=True):
        if one != other:
            at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
            start = max(0, at - 60)
            return f"\n  now    …{one[start : at + 60]}…\n  before …{other[start : at + 60]}…"
    return "nothing"


def _end_of(crash: str) -> str:
    """Where it comes from in this project, and the error."""
    lines = crash.rstrip().splitlines()
    own = [line.strip() for line in lines if "/visdiv_assets/" in line]
    return "\n".join([*own[-2:], lines[-1][:300]])


def rounds_of(
    shared: Path, seed: int, questions: Iterable[str] = QUESTIONS + SLOW_QUESTIONS
) -> list[Round]:
    """All files, all kinds of damage."""
    sound = build(shared, questions)
    return [
        Round(f"{role}: {kind}", functools.partial(damage_and_ask, sound, role, kind, seed))
        for role in sound.roles()
        for kind in KINDS
    ]


if __name__ == "__main__":
    about = (__doc__ or "").partition("\n\n")[0]
    sys.exit(main("visdiv_assets_tests.campaigns.damage", about, rounds_of))
