"""Editing `visdiv.yaml`: what people wrote stays, and a refused edit leaves no trace."""

import difflib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.editing import (
    TEMPLATE,
    add_dataset,
    create,
    json_schema,
    remove_dataset,
)
from visdiv_assets.settings.model import Settings
from visdiv_assets.settings.reading import load_settings

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "visdiv.yaml", *sorted((ROOT / "examples/configs").glob("*.yaml"))]

HAND_WRITTEN = """\
# Our datasets. Ask Kim before you change thresholds!

store:   "/data/visdiv"     # fast disk

embedder: {device: cpu, batch_size: 8}   # no GPU here

datasets:                   # by team
  # --- vision ---
  birds:                    # the first
    source: '/data/birds'   # single quotes
    threshold: 0.30         # as agreed
    tags: {team: vision, "purpose": 'training'}

  # The cats' folder moves every summer.
  cats:
      source: "/data/cats"
      # threshold: 0.5
      slices:
        column: label       # of the table
      # end of cats

  # --- audio ---
  dogs: {source: /data/dogs, watch: false}   # in one line
  "007": {source: /data/bond}
  # eels:
  #   source: /data/eels
  # --- end of datasets ---

# When:
nightly:
  time: "03:30"             # before the cleaners
  timezone: 'Europe/Berlin'

alerts:
  urls:
    - json://localhost/a    # ops
    # - mailto://kim
  dagster_url: http://dagster:3000

# the end
"""

EMPTY_AND_EXAMPLES = """\
store: here
datasets:   # none yet
#   pictures:
#     source: /data/pictures   # change this
# a last word
"""


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VISDIV_CONFIG", raising=False)
    monkeypatch.delenv("VISDIV_STORE", raising=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "visdiv.yaml"
    path.write_text(HAND_WRITTEN, encoding="utf-8")
    return path


def changes(before: str, after: str) -> tuple[list[str], list[str]]:
    """The lines that are gone, and those that are new."""
    marked = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    gone = [line[2:] for line in marked if line.startswith("- ")]
    return gone, [line[2:] for line in marked if line.startswith("+ ")]


# --- adding ---


def test_adding_a_dataset_adds_its_lines_and_changes_no_other(path):
    add_dataset(path, "emus", "/data/emus", threshold=0.4, watch=False)
    assert changes(HAND_WRITTEN, path.read_text(encoding="utf-8")) == (
        [],
        ["  emus:", "    source: /data/emus", "    threshold: 0.4", "    watch: false"],
    )
    settings = load_settings(path)
    assert list(settings.datasets) == ["birds", "cats", "dogs", "007", "emus"]
    emus = settings.dataset("emus")
    assert (emus.source.uri, emus.threshold, emus.watch, emus.schedule) == (
        "/data/emus",
        0.4,
        False,
        True,
    )


def test_a_new_dataset_stands_after_the_last_one_and_its_comments(tmp_path):
    path = tmp_path / "visdiv.yaml"
    path.write_text(
        "datasets:\n"
        "    birds:\n"
        "        source: x\n"
        "        # threshold: 0.5\n"
        "    # about nothing\n"
        "# after\n"
    )
    add_dataset(path, "cats", "y")
    assert path.read_text() == (
        "datasets:\n"
        "    birds:\n"
        "        source: x\n"
        "        # threshold: 0.5\n"
        "    cats:\n"
        "      source: y\n"
        "    # about nothing\n"
        "# after\n"
    )


@pytest.mark.parametrize(
    ("before", "gone"),
    [
        (EMPTY_AND_EXAMPLES, []),
        (TEMPLATE, []),
        ("", []),
        ("# nothing but a comment\n", []),
        ("store: x  # no datasets\n# the end\n", []),
        ("store: x", []),
        ("datasets:", []),
        ("datasets: # some day\nstore: x\n", []),
        ("datasets: {}  # some day\n# the end\n", ["datasets: {}  # some day"]),
        ("datasets: null\n# the end\n", ["datasets: null"]),
        ("datasets: ~\nstore: x\n", ["datasets: ~"]),
    ],
    ids=range(11),
)
def test_the_first_dataset_is_added_without_losing_a_comment(tmp_path, before, gone):
    path = tmp_path / "visdiv.yaml"
    path.write_text(before, encoding="utf-8")
    add_dataset(path, "birds", "/data/birds")
    after = path.read_text(encoding="utf-8")
    lost, new = changes(before, after)
    assert lost == gone
    assert [line for line in new if "#" not in line][-2:] == ["  birds:", "    source: /data/birds"]
    assert re.findall("#.*", after) == re.findall("#.*", before)
    assert list(load_settings(path).datasets) == ["birds"]


@pytest.mark.parametrize(
    "before",
    [
        "datasets: {birds: {source: x}}  # in one line\nstore: y  # here\n",
        "{store: y, datasets: {birds: {source: x}}}\n",
        "---\nstore: y\n...\n",
        "? datasets\n: birds: {source: x}\n",
    ],
)
def test_files_that_are_written_in_another_way_can_be_edited_too(tmp_path, before):
    path = tmp_path / "visdiv.yaml"
    path.write_text(before)
    earlier = list(load_settings(path).datasets)
    add_dataset(path, "cats", "z", threshold=0.5)
    assert list(load_settings(path).datasets) == [*earlier, "cats"]
    assert load_settings(path).dataset("cats").threshold == 0.5
    assert re.findall("#.*", path.read_text()) == re.findall("#.*", before)
    remove_dataset(path, "cats")
    assert list(load_settings(path).datasets) == earlier


@pytest.mark.parametrize("name", ["2024", "1e3", "true", "null", "0x1F", "1.5", "yes", "a.b-c_d"])
def test_a_name_that_looks_like_something_else_is_put_in_quotes(path, name):
    add_dataset(path, name, "x")
    assert name in load_settings(path).datasets
    remove_dataset(path, name)
    assert path.read_text(encoding="utf-8") == HAND_WRITTEN


@pytest.mark.parametrize(
    "source",
    [
        "a: b # c",
        "'quoted'",
        '"',
        "~",
        "null",
        "- x",
        "é\u2028\x85",
        "{a}",
        "x" * 5000,
        " a ",
        "a\nb",
    ],
    ids=range(11),
)
def test_any_source_is_read_back_as_it_was_given(path, source):
    add_dataset(path, "emus", source)
    content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    assert content["datasets"]["emus"]["source"] == source
    assert changes(HAND_WRITTEN, path.read_text(encoding="utf-8"))[0] == []


# --- removing ---


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "birds",
            [
                "  birds:                    # the first",
                "    source: '/data/birds'   # single quotes",
                "    threshold: 0.30         # as agreed",
                "    tags: {team: vision, \"purpose\": 'training'}",
            ],
        ),
        (
            "cats",
            [
                "  cats:",
                '      source: "/data/cats"',
                "      # threshold: 0.5",
                "      slices:",
                "        column: label       # of the table",
            ],
        ),
        ("dogs", ["  dogs: {source: /data/dogs, watch: false}   # in one line"]),
        ("007", ['  "007": {source: /data/bond}']),
    ],
)
def test_removing_a_dataset_removes_its_lines_and_changes_no_other(path, name, lines):
    remove_dataset(path, name)
    assert changes(HAND_WRITTEN, path.read_text(encoding="utf-8")) == (lines, [])
    assert name not in load_settings(path).datasets


@pytest.mark.parametrize(
    "before", [EMPTY_AND_EXAMPLES, TEMPLATE, HAND_WRITTEN, "datasets:\n# last\n"], ids=range(4)
)
def test_what_is_added_and_removed_leaves_the_file_as_it_was(tmp_path, before):
    path = tmp_path / "visdiv.yaml"
    path.write_text(before, encoding="utf-8")
    for name in ("emus", "fish"):
        add_dataset(path, name, "x", threshold=0.5)
    added = path.read_text(encoding="utf-8")
    for name in ("emus", "fish"):
        remove_dataset(path, name)
    if not load_settings(path).datasets:  # nothing is left, which is said
        before = before.replace("datasets:", "datasets: {}", 1)
    assert path.read_text(encoding="utf-8") == before
    for name in ("emus", "fish"):
        add_dataset(path, name, "x", threshold=0.5)
    assert path.read_text(encoding="utf-8") == added


def test_removing_every_dataset_keeps_all_comments_outside_them(path):
    for name in ("birds", "cats", "dogs", "007"):
        remove_dataset(path, name)
    after = path.read_text(encoding="utf-8")
    assert load_settings(path).datasets == {}
    inside = ["# the first", "# single quotes", "# as agreed", "# threshold: 0.5"]
    inside += ["# of the table", "# in one line"]
    comments = [line for line in re.findall("#.*", HAND_WRITTEN) if line not in inside]
    assert re.findall("#.*", after) == comments
    add_dataset(path, "emus", "x")
    assert re.findall("#.*", path.read_text(encoding="utf-8")) == comments


def test_values_of_several_lines_go_with_their_dataset(tmp_path):
    path = tmp_path / "visdiv.yaml"
    before = "datasets:\n  keep: {source: x}\n"
    path.write_text(
        before
        + "  folded:\n    source: >-\n      a\n      b\n"
        + "  plain:\n    source: a\n      b\n"
        + "  flow: {source: x,\n    tags: {a: b,\n      c: d}}\n"
        + "  empty:\n    source: x\n    tags:\n"
        + "# the end\n"
    )
    for name in ("folded", "plain", "flow", "empty"):
        remove_dataset(path, name)
    assert path.read_text() == before + "# the end\n"


def test_what_another_dataset_refers_to_stays_with_that_one(tmp_path):
    path = tmp_path / "visdiv.yaml"
    path.write_text("datasets:\n  a: &base {source: x}\n  b: {<<: *base, threshold: 0.5}\n")
    remove_dataset(path, "a")
    settings = load_settings(path)
    assert list(settings.datasets) == ["b"]
    assert settings.dataset("b").threshold == 0.5
    assert settings.dataset("b").source.uri == str(tmp_path / "x")


# --- whatever the file's form ---


def test_line_ends_of_windows_stay(tmp_path):
    path = tmp_path / "visdiv.yaml"
    before = HAND_WRITTEN.replace("\n", "\r\n").encode()
    path.write_bytes(before)
    add_dataset(path, "emus", "x")
    assert path.read_bytes().count(b"\n") == path.read_bytes().count(b"\r\n")
    remove_dataset(path, "emus")
    assert path.read_bytes() == before


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664])
def test_the_files_permissions_stay(path, mode):
    path.chmod(mode)
    add_dataset(path, "emus", "x")
    assert path.stat().st_mode & 0o777 == mode


def test_a_link_to_the_file_stays_a_link(path, tmp_path):
    link = tmp_path / "link.yaml"
    link.symlink_to(path.name)
    add_dataset(link, "emus", "x")
    assert link.is_symlink()
    assert "emus" in load_settings(path).datasets


entries = st.fixed_dictionaries(
    {"source": st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)},
    optional={"threshold": st.floats(0, 1), "watch": st.booleans()},
)
dataset_names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,8}\Z")


@given(dataset_names, entries)
@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_dataset_can_be_added_and_removed_without_a_trace(tmp_path, name, entry):
    path = tmp_path / "any.yaml"
    path.write_text(HAND_WRITTEN.replace("birds:", "b1:").replace("cats:", "c1:"), encoding="utf-8")
    before = path.read_text(encoding="utf-8")
    assume(name not in load_settings(path).datasets and "$" not in entry["source"])
    add_dataset(path, name, **entry)
    content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    assert content["datasets"][name] == entry
    remove_dataset(path, name)
    assert path.read_text(encoding="utf-8") == before


# --- while another dataset is faulty ---

FAULTY = [
    "  b: {source: x, treshold: 1}\n",
    "  b:\n",
    "  b: [source, x]\n",
    "  b: {source: '${VISDIV_TEST_UNSET}'}\n",
    "  b: {source: x, source: y}\n",
    "  b: {source: x}\n  b: {source: y}\n",
    "  b: {source: x, threshold: .nan}\n",
    "  b: {source: x, watch: !!bool maybe}\n",
    "  b: {source: x, tags: {day: 2024-13-45}}\n",
    "  b: &b {source: x, tags: *b}\n",
    "  b: !mine {source: x}\n",
]


@pytest.mark.parametrize("faulty", FAULTY)
def test_datasets_are_added_and_removed_beside_a_faulty_one(tmp_path, faulty):
    path = tmp_path / "visdiv.yaml"
    before = (
        f"# ours\ndatasets:   # all\n  a: {{source: x}}   # first\n{faulty}  c: {{source: x}}\n"
    )
    path.write_text(before)
    assert list(load_settings(path).faults) == ["b"]
    add_dataset(path, "d", "z")
    assert path.read_text() == before + "  d:\n    source: z\n"
    settings = load_settings(path)
    assert (list(settings.datasets), list(settings.faults)) == (["a", "c", "d"], ["b"])
    remove_dataset(path, "d")
    assert path.read_text() == before
    remove_dataset(path, "b")
    assert path.read_text() == before.replace(faulty, "")
    settings = load_settings(path)
    assert (list(settings.datasets), settings.faults) == (["a", "c"], {})


def test_a_file_in_one_line_can_be_edited_beside_a_faulty_dataset(tmp_path):
    path = tmp_path / "visdiv.yaml"
    path.write_text("datasets: {a: {source: x}, b: {source: y, zzz: 1}}  # ours\n")
    add_dataset(path, "c", "z")
    settings = load_settings(path)
    assert (list(settings.datasets), list(settings.faults)) == (["a", "c"], ["b"])
    remove_dataset(path, "b")
    assert (list(load_settings(path).datasets), load_settings(path).faults) == (["a", "c"], {})


@pytest.mark.parametrize(
    "faulty", ["{source: x, source: y}", "{source: x, watch: !!bool maybe}", "&b {tags: *b}"]
)
def test_what_cannot_be_written_anew_without_a_change_is_left_alone(tmp_path, faulty):
    path = tmp_path / "visdiv.yaml"
    before = f"datasets: {{a: {{source: x}}, b: {faulty}}}\n"
    path.write_text(before)
    with pytest.raises(VisdivError, match="cannot be edited before what is wrong in it is correct"):
        add_dataset(path, "c", "z")
    assert path.read_text() == before


def test_a_number_in_a_names_place_can_be_removed(tmp_path):
    path = tmp_path / "visdiv.yaml"
    path.write_text("datasets:\n  2024: {source: x}\n  2024-05-01: {source: x}\n  true: {}\n")
    for name in ("2024", "2024-05-01", "true"):
        assert name in load_settings(path).faults
        remove_dataset(path, name)
    assert path.read_text() == "datasets: {}\n"


def test_of_a_number_and_its_text_the_one_with_the_name_is_removed(tmp_path):
    path = tmp_path / "visdiv.yaml"
    path.write_text('datasets:\n  2024: {source: x}\n  "2024": {source: y}\n')
    with pytest.raises(VisdivError, match=r"is not written in .* as it is shown; remove it there"):
        remove_dataset(path, "2024 (line 2)")
    remove_dataset(path, "2024")
    assert (load_settings(path).datasets, list(load_settings(path).faults)) == ({}, ["2024"])


@pytest.mark.parametrize("name", ["b", "2024"])
def test_the_name_of_a_faulty_dataset_is_taken(tmp_path, name):
    path = tmp_path / "visdiv.yaml"
    path.write_text("datasets:\n  b: {}\n  2024: {source: x}\n")
    with pytest.raises(VisdivError, match=f"the dataset '{name}' already exists"):
        add_dataset(path, name, "x")


def test_a_dataset_that_would_be_faulty_is_refused_beside_another_one(tmp_path, monkeypatch):
    monkeypatch.delenv("VISDIV_TEST_UNSET", raising=False)
    path = tmp_path / "visdiv.yaml"
    before = "datasets:\n  b: {}\n"
    path.write_text(before)
    for name, source, problem in [
        (
            "a",
            "${VISDIV_TEST_UNSET}",
            r"VISDIV_TEST_UNSET, used by 'datasets\.a\.source', is not set$",
        ),
        ("https://me:hunter2@host/x", "x", "a dataset name has"),
    ]:
        with pytest.raises(VisdivError, match=problem) as refused:
            add_dataset(path, name, source)
        assert "hunter2" not in str(refused.value)
        assert path.read_text() == before


@pytest.mark.parametrize("key", ["datasets:", '"datasets" :  # ours', "datasets: &all"])
def test_removing_the_last_dataset_says_that_none_are_left(tmp_path, key):
    path = tmp_path / "visdiv.yaml"
    path.write_text(f"{key}\n  a: {{source: x}}\nstore: s\n")
    remove_dataset(path, "a")
    content = YAML(typ="safe", pure=True).load(path.read_text())
    assert content == {"datasets": {}, "store": "s"}
    assert re.findall("#.*", path.read_text()) == re.findall("#.*", key)


# --- several at once ---

ADD = """
import sys, time
from pathlib import Path
from visdiv_assets.settings.editing import add_dataset, remove_dataset
go, path, name = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
while not go.exists():
    time.sleep(0.001)
add_dataset(path, name, "/data")
if name == "d0":
    remove_dataset(path, "birds")
"""


@pytest.mark.slow
def test_commands_that_edit_at_once_lose_nothing_of_each_other(path, tmp_path_factory):
    go = tmp_path_factory.mktemp("signal") / "go"
    names = [f"d{number}" for number in range(12)]
    started = [
        subprocess.Popen([sys.executable, "-c", ADD, str(go), str(path), name]) for name in names
    ]
    go.touch()
    assert [process.wait() for process in started] == [0] * len(names)
    assert set(load_settings(path).datasets) == {"cats", "dogs", "007", *names}
    assert "# Our datasets. Ask Kim before you change thresholds!" in path.read_text()
    assert [each.name for each in path.parent.iterdir()] == ["visdiv.yaml"]


# --- refusals ---


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("birds", {}, "the dataset 'birds' already exists"),
        ("007", {}, "the dataset '007' already exists"),
        ("a/b", {}, "a dataset name has"),
        ("", {}, "a dataset name has"),
        ("a b", {}, "a dataset name has"),
        ("a\nb", {}, "a dataset name has"),
        (".a", {}, "a dataset name has"),
        ("emus", {"threshold": 1.5}, "'datasets.emus.threshold': "),
        ("emus", {"threshold": -0.1}, "'datasets.emus.threshold': "),
        ("emus", {"threshold": float("nan")}, "'datasets.emus.threshold': "),
        ("emus", {"treshold": 0.5}, "did you mean 'threshold'"),
        ("emus", {"source": ""}, "'datasets.emus.source.uri': "),
    ],
)
def test_a_refused_dataset_leaves_the_file_as_it_was_to_the_byte(path, name, options, problem):
    before = path.read_bytes()
    with pytest.raises(VisdivError, match=re.escape(problem)) as refused:
        add_dataset(path, name, **{"source": "x", **options})
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["visdiv.yaml"]
    assert ".tmp-" not in str(refused.value)
    assert "(line" not in str(refused.value)


def test_an_unknown_dataset_cannot_be_removed(path):
    before = path.read_bytes()
    with pytest.raises(
        VisdivError, match=r"no dataset 'emus' .*known datasets: 007, birds, cats, dogs"
    ):
        remove_dataset(path, "emus")
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"stor: x\n", b"store: [\n", b"\xff\xfe\x00", b"- a\n"])
def test_a_file_that_is_not_valid_is_refused_and_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(VisdivError, match=r"visdiv\.yaml"):
        add_dataset(path, "emus", "x")
    with pytest.raises(VisdivError, match=r"visdiv\.yaml"):
        remove_dataset(path, "birds")
    assert path.read_bytes() == content


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(VisdivError, match="cannot edit the settings file"):
        add_dataset(tmp_path / "visdiv.yaml", "emus", "x")
    assert list(tmp_path.iterdir()) == []


# --- a file to begin with ---


def test_create_writes_a_file_that_is_valid_as_it_stands(tmp_path):
    path = tmp_path / "visdiv.yaml"
    create(path)
    assert load_settings(path) == Settings(store=tmp_path / ".visdiv")


def test_the_template_is_valid_with_its_examples_uncommented(tmp_path, monkeypatch):
    path = tmp_path / "visdiv.yaml"
    head, body = TEMPLATE.split("\n\n", 1)
    text = re.sub(r"^# ?", "", body, flags=re.MULTILINE)
    path.write_text(f"{head}\n\n{text}", encoding="utf-8")
    settings = load_settings(path)
    pictures = settings.dataset("pictures")
    assert (pictures.source.uri, pictures.slices, pictures.tags) == (
        "/data/pictures",
        "folder",
        {"team": "vision"},
    )
    assert settings.nightly.timezone == "Europe/Berlin"
    monkeypatch.setenv("VISDIV_ALERT_URL", "json://host")
    assert settings.alerts.resolved(*settings.alerts.urls) == "json://host"


def test_create_never_overwrites(path):
    with pytest.raises(VisdivError, match="already exists; it was not changed"):
        create(path)
    assert path.read_text(encoding="utf-8") == HAND_WRITTEN


# --- the JSON Schema ---

SCHEMA = json.loads(json_schema())
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "number": (int, float),
    "integer": int,
    "null": type(None),
}


def complaints(value: Any, schema: dict[str, Any], where: str = "$") -> list[str]:
    """What a validator says, of those words of JSON Schema that ours is made of."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    if "anyOf" in schema:
        kinds = [kind for kind in schema["anyOf"] if value is None or kind != {"type": "null"}]
        answers = [complaints(value, kind, where) for kind in kinds]
        return [] if [] in answers else min(answers, key=len)
    if "type" in schema and not isinstance(value, TYPES[schema["type"]]):
        return [f"{where} is not of type {schema['type']}"]
    if "const" in schema and value != schema["const"]:
        return [f"{where} is not {schema['const']}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where} is not one of {schema['enum']}"]
    if isinstance(value, (int, float)) and value > schema.get("maximum", value):
        return [f"{where} is too large"]
    if isinstance(value, list):
        return [
            problem
            for n, each in enumerate(value)
            for problem in complaints(each, schema.get("items", {}), f"{where}.{n}")
        ]
    if not isinstance(value, dict):
        return []
    problems = [
        f"{where}.{key} is missing" for key in schema.get("required", []) if key not in value
    ]
    for key, each in value.items():
        rule = schema.get("properties", {}).get(key, schema.get("additionalProperties", True))
        if rule is False:
            problems.append(f"{where}.{key} is unknown")
        elif rule is not True:
            problems += complaints(each, rule, f"{where}.{key}")
    return problems


def load(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_schema_accepts_the_files_of_the_project(path):
    assert complaints(load(path.read_text(encoding="utf-8")), SCHEMA) == []


def test_the_schema_accepts_a_file_that_uses_everything():
    assert complaints(load(HAND_WRITTEN), SCHEMA) == []


def test_the_schema_accepts_the_template_whose_datasets_are_empty():
    assert complaints(load(TEMPLATE), SCHEMA) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("stor: x", "$.stor is unknown"),
        ("embedder: {devise: cpu}", "$.embedder.devise is unknown"),
        ("datasets: {a: {source: x, treshold: 1}}", "$.datasets.a.treshold is unknown"),
        ("datasets: {a: {source: x, slices: {column: y, z: 1}}}", "$.datasets.a.slices"),
        ("datasets: {a: {source: x, slices: colour}}", "$.datasets.a.slices is not folder"),
        ("datasets: {a: {}}", "$.datasets.a.source is missing"),
        ("datasets: {a: {source: x, threshold: 2}}", "$.datasets.a.threshold is too large"),
        ("alerts: {url: []}", "$.alerts.url is unknown"),
        ("nightly: {timezon: UTC}", "$.nightly.timezon is unknown"),
    ],
)
def test_the_schema_refuses_what_the_settings_refuse(text, problem):
    assert any(each.startswith(problem) for each in complaints(load(text), SCHEMA))


def test_every_setting_has_a_description_in_the_schema():
    described = [SCHEMA, *SCHEMA["$defs"].values()]
    bare = [
        name
        for model in described
        for name, field in model["properties"].items()
        if not (field.get("description") or "$ref" in str(field))  # these describe themselves
    ]
    assert bare == []
