"""A few rounds of the campaign of damage, and that it notices what it should."""

import pytest

from visdiv_assets_tests.campaigns import damage
from visdiv_assets_tests.campaigns.damage import Answer

SEED = 0

# In the default run: one kind of damage to each kind of file, and the cheap questions.
QUESTIONS = (
    "slices birds",
    "duplicates birds --json",
    "similar birds a/004.png --json",
    "dagster dataset_change_sensor",
)
STRATA = (
    ("manifests/birds/latest", "random bytes"),
    ("manifests/birds/2.parquet", "cut in half"),
    ("embeddings/2.npy", "zeroed in the middle"),
    ("embeddings/.keys/1.run", "zeroed in the middle"),
    ("indexes/birds/2.parquet", "emptied"),
    ("visdiv.duckdb", "zeroed in the middle"),
)
MORE = (
    ("moments/birds/2.npz", "cut at its end"),
    ("moments/birds/2.slices", "zeroed"),
    ("embeddings/1.npy", "random bytes"),
    ("embeddings/.keys/1.run", "a folder instead"),
    ("indexes/birds/2.parquet", "zeroed in the middle"),
    (".visdiv.duckdb.lock", "a folder instead"),
    (".update.lock", "a folder instead"),
    ("indexes/birds/newest", "random bytes"),
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return damage.build(tmp_path_factory.mktemp("sound"), QUESTIONS)


@pytest.fixture(scope="module")
def asked_everything(tmp_path_factory):
    # Those that take seconds are asked by the command only.
    return damage.build(tmp_path_factory.mktemp("everything"), damage.QUESTIONS)


@pytest.mark.parametrize(("role", "kind"), STRATA)
def test_a_damaged_file_leaves_right_answers_or_one_sentence(sound, role, kind, tmp_path):
    assert damage.damage_and_ask(sound, role, kind, SEED, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(("role", "kind"), MORE)
def test_whatever_is_damaged_every_command_is_right_or_says_one_sentence(
    asked_everything, role, kind, tmp_path
):
    assert damage.damage_and_ask(asked_everything, role, kind, SEED, tmp_path) == []


def test_all_kinds_of_files_are_damaged(sound):
    kinds = {role.partition("/")[0] for role in sound.roles()}
    assert kinds == {
        *("manifests", "embeddings", "indexes", "moments", "exports"),
        *("visdiv.duckdb", ".visdiv.duckdb.lock", "state.sqlite", ".update.lock"),
    }
    assert {role for role, _ in STRATA + MORE} <= set(sound.roles())


RIGHT = Answer(0, "score 0.5", "")


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (RIGHT, []),
        (Answer(1, "", "error: STORE/moments/x.npz is damaged; run `visdiv score x`\n"), []),
        (Answer(0, "score 0.4", ""), ["another answer without a word"]),
        (Answer(1, "", "", "Traceback: ValueError"), ["a traceback"]),
        (Answer(1, "", "error: bad magic number\n"), ["neither says what is damaged"]),
        (Answer(1, "", "error: STORE is damaged\nat line 5\n"), ["not one sentence"]),
    ],
)
def test_only_a_right_answer_or_one_clear_sentence_is_accepted(answer, verdict):
    problems = damage._judged("mix", answer, RIGHT, "moments/birds/1.npz", "emptied")
    assert len(problems) == len(verdict)
    assert all(part in problem for part, problem in zip(verdict, problems, strict=True))
