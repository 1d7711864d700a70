"""Reading `visdiv.yaml`: what is wrong with one dataset stops that dataset only."""

import os
from pathlib import Path

import pytest

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings import reading
from visdiv_assets.settings.model import Settings
from visdiv_assets.settings.reading import absolute_path, find_settings, load_settings

SECRET = "hunter2-Xk9"


@pytest.fixture(autouse=True)
def _nothing_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder, and no settings in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("VISDIV_CONFIG", "VISDIV_STORE", "VISDIV_TEST_UNSET"):
        monkeypatch.delenv(name, raising=False)


def read(text: str) -> Settings:
    path = Path("visdiv.yaml")
    path.write_text(text, encoding="utf-8")
    return load_settings(path)


# --- one dataset's fault ---


@pytest.mark.parametrize(
    ("faulty", "problem"),
    [
        ("{source: x, treshold: 1}", "'datasets.b.treshold' is not a setting; did you mean"),
        ("{source: x, threshold: high}", "'datasets.b.threshold': .*; got 'high'"),
        ("{source: 3}", "'datasets.b.source' must hold 'key: value' lines"),
        ("{}", "'datasets.b.source' is missing"),
        ("{source: }", "'datasets.b.source' is missing"),
        ("", "'datasets.b' must hold 'key: value' lines"),
        ("/data/b", "'datasets.b' must hold 'key: value' lines"),
        ("[source, x]", "'datasets.b' must hold 'key: value' lines"),
        ("{source: '${VISDIV_TEST_UNSET}/x'}", "variable VISDIV_TEST_UNSET, used by 'datasets.b.s"),
        ("{source: x, include: ['${VISDIV_TEST_UNSET}']}", "used by 'datasets.b.include', is not"),
        ("{source: x, embedder: {device: gpu}}", "'datasets.b.embedder.device': use auto"),
        ("{source: x, source: y}", 'line 4: found duplicate key "source"'),
        ("{source: !!python/name:os.system x}", "line 4: could not determine a constructor"),
        ("{source: x, tags: {day: 2024-13-45}}", "'datasets.b': month must be in 1..12"),
        ("{source: x, watch: !!bool maybe}", "'datasets.b': a value does not fit its tag, .* 4"),
        ("{source: x, ? {a: b} : c}", "'datasets.b': line 4: found unhashable key"),
        ("{source: x, <<: 3}", "'datasets.b': line 4: expected a mapping or list of mappings"),
        ('{source: "a/../b\\0"}', "leads nowhere"),
    ],
)
def test_what_is_wrong_with_a_dataset_stops_that_dataset_only(faulty, problem):
    settings = read(f"store: s\ndatasets:\n  a: {{source: a}}\n  b: {faulty}\n  c: {{source: c}}\n")
    assert list(settings.datasets) == ["a", "c"]
    assert list(settings.faults) == ["b"]
    assert settings.dataset("a").source.uri == str(Path("a").absolute())
    with pytest.raises(VisdivError, match=rf"^visdiv\.yaml: .*{problem}") as refused:
        settings.dataset("b")
    assert str(refused.value) == settings.faults["b"]
    assert "4" in settings.faults["b"] or "line" not in settings.faults["b"]
    assert "\n" not in settings.faults["b"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("stor: x\n", "'stor' is not a setting"),
        ("alerts: {urls: [3]}\n", r"'alerts\.urls\.0'"),
        ("store: ${VISDIV_TEST_UNSET}/x\n", "used by 'store', is not set"),
        ("embedder: {device: gpu}\n", r"'embedder\.device'"),
        ("store: !!bool maybe\n", "not a valid YAML file: a value does not fit its tag"),
        ('settle_seconds: !!int ""\n', "not a valid YAML file: a value does not fit its tag"),
        ('store: "a/../b\\0"\n', "leads nowhere"),
        ("store: [\n", "not a valid YAML file"),
    ],
)
def test_what_is_wrong_elsewhere_refuses_the_file(text, problem):
    with pytest.raises(VisdivError, match=rf"^visdiv\.yaml.*{problem}"):
        read(f"datasets: {{a: {{source: a}}}}\n{text}")


@pytest.mark.parametrize("value", ["[a, b]", "a", "3", "!!set {a, b}", "!!omap [a: {source: x}]"])
def test_datasets_that_are_no_mapping_refuse_the_file(value):
    with pytest.raises(VisdivError, match=r"datasets.* 'key: value' lines"):
        read(f"datasets: {value}")


def test_datasets_that_are_there_twice_refuse_the_file():
    with pytest.raises(VisdivError, match='line 2: found duplicate key "datasets"'):
        read("datasets: {a: {source: x}}\ndatasets: {b: {source: x}}\n")


def test_each_of_several_faults_is_kept():
    settings = read(
        "datasets:\n"
        "  a: {}\n"
        "  b: {source: b}\n"
        "  c d: {source: c}\n"
        "  e: {source: e, threshold: 2, zzz: 1}\n"
    )
    assert list(settings.datasets) == ["b"]
    assert list(settings.faults) == ["a", "c d", "e"]
    assert "(line 2)" in settings.faults["a"]
    assert "a dataset name has" in settings.faults["c d"]
    assert "(line 4)" in settings.faults["c d"]
    assert "'datasets.e.threshold'" in settings.faults["e"]
    assert "'datasets.e.zzz' is not a setting (line 5)" in settings.faults["e"]


def test_a_name_that_is_there_twice_is_the_fault_of_that_name():
    settings = read("datasets:\n  a: {source: x}\n  b: {source: y}\n  a: {source: z}\n")
    assert list(settings.datasets) == ["b"]
    assert settings.faults == {"a": "visdiv.yaml: 'datasets.a': line 4: found duplicate key \"a\""}


def test_a_number_in_a_names_place_and_its_text_are_two_datasets():
    settings = read('datasets:\n  2024: {source: x}\n  "2024": {source: y}\n')
    assert settings.dataset("2024").source.uri.endswith("/y")
    assert list(settings.faults) == ["2024 (line 2)"]
    assert "put it in quotes" in settings.faults["2024 (line 2)"]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("2024", "2024"),
        ("2024-05-01", "2024-05-01"),
        ("true", "true"),
        ("~", "null"),
        ("[a, b]", "…"),
        ("{password: hunter2}", "…"),
        ("&k [*k]", "…"),
        ("!!bool maybe", "maybe"),
    ],
)
def test_what_cannot_be_a_name_is_a_fault_under_what_is_written(key, name):
    settings = read(f"datasets:\n  ? {key}\n  : {{source: x}}\n  a: {{source: y}}\n")
    assert list(settings.datasets) == ["a"]
    assert list(settings.faults) == [name]
    assert "hunter2" not in settings.faults[name]


def test_a_value_that_contains_itself_is_its_datasets_fault():
    settings = read("datasets: &all\n  a: {source: x}\n  b: *all\n  c: &c {source: x, tags: *c}\n")
    assert list(settings.datasets) == ["a"]
    assert list(settings.faults) == ["b", "c"]


@pytest.mark.parametrize(
    "line", ["[*l, *l, *l]", "{a: *l, b: *l, c: *l}", "{<<: [*l, *l, *l]}"], ids=range(3)
)
def test_a_short_text_that_stands_for_billions_of_values_is_its_datasets_fault(line):
    text = "datasets:\n  a: {source: x}\n  b:\n    l0: &l0 {x: y}\n"
    for number in range(1, 40):
        text += f"    l{number}: &l{number} {line.replace('*l', f'*l{number - 1}')}\n"
    settings = read(text)
    assert list(settings.datasets) == ["a"]
    assert settings.faults == {"b": "visdiv.yaml: 'datasets.b': there are too many values"}


def test_anchors_and_merged_keys_reach_from_dataset_to_dataset():
    settings = read(
        "datasets:\n"
        "  a: &base {source: x, threshold: 0.5}\n"
        "  b: {<<: *base, threshold: 0.6}\n"
        "  c: *base\n"
        "  d: &wrong {source: x, zzz: 1}\n"
        "  e: {<<: *wrong}\n"
        "  f: {<<: [*base, *wrong], zzz: 2}\n"
    )
    thresholds = {name: each.threshold for name, each in settings.datasets.items()}
    assert thresholds == {"a": 0.5, "b": 0.6, "c": 0.5}
    assert list(settings.faults) == ["d", "e", "f"]
    assert "(line 5)" in settings.faults["e"]  # where it is written
    assert "(line 7)" in settings.faults["f"]


def test_an_anchor_that_is_not_there_refuses_the_file():
    with pytest.raises(VisdivError, match="line 1: found undefined alias"):
        read("datasets: {a: {source: *gone}, b: {source: x}}")


def test_datasets_may_be_merged_from_another_mapping():
    settings = read("datasets:\n  <<: {a: {source: x}, b: {source: y}}\n  a: {source: z}\n")
    assert {name: each.source.uri[-1] for name, each in settings.datasets.items()} == {
        "a": "z",
        "b": "y",
    }
    assert settings.faults == {}


def test_of_1000_datasets_all_but_the_broken_one_can_be_used():
    lines = [f"  d{number}: {{source: x, threshold: 0.5}}\n" for number in range(1000)]
    lines[500] = "  d500: {source: x, treshold: 0.5}\n"
    settings = read("datasets:\n" + "".join(lines))
    assert len(settings.datasets) == 999
    assert list(settings.faults) == ["d500"]
    assert settings.faults["d500"].endswith("(line 502)")


def test_a_text_is_parsed_once_and_its_variables_are_filled_in_each_time(monkeypatch):
    text = "datasets: {a: {source: '${VISDIV_TEST_UNSET}', tags: {k: v}}}"
    assert "VISDIV_TEST_UNSET" in read(text).faults["a"]
    before = reading._parsed.cache_info()
    monkeypatch.setenv("VISDIV_TEST_UNSET", "/now")
    assert read(text).dataset("a").source.uri == "/now"
    after = reading._parsed.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 1)


def test_an_unknown_dataset_is_told_apart_from_a_faulty_one():
    settings = read("datasets: {a: {source: x}, b: {}}")
    with pytest.raises(VisdivError, match=r"there is no dataset 'c' .*known datasets: a, b"):
        settings.dataset("c")


def test_of_faulty_datasets_those_that_may_be_benchmarks_are_known():
    settings = read(
        "datasets:\n"
        "  a: {role: benchmark, zzz: 1, source: x}\n"
        "  b: {role: bencmark, source: x}\n"
        "  c: {rol: benchmark, source: x}\n"
        "  d: {source: x, source: y}\n"
        "  e: {zzz: 1, source: x}\n"
        "  f: {role: training, zzz: 1, source: x}\n"
        "  g: {role: benchmark, source: x}\n"
        "  h: x\n"
    )
    assert settings.may_be_benchmarks == {"a", "b", "c", "d", "h"}


@pytest.mark.parametrize(
    "faulty",
    [
        f"s3://key:{SECRET}@bucket/x",
        f"[https://me:{SECRET}@host/x.zip]",
        f"{{source: {{uri: 'https://me:{SECRET}@host/x.zip', zzz: 1}}}}",
        f"{{source: {{uri: s3://b/x, options: {{secret_access_key: [{SECRET}]}}}}}}",
        f"{{source: {{uri: s3://b/x, secret_access_key: {SECRET}}}}}",
        f"{{source: x, source: 'https://me:{SECRET}@host/x.zip'}}",
        f"{{source: x, threshold: 'https://me:{SECRET}@host/x.zip'}}",
        f"{{source: x, 'https://me:{SECRET}@host': 1}}",
        f"{{source: x, 'https://me:{SECRET}@host': 1, 'https://me:{SECRET}@host': 2}}",
        f"{{source: x, tags: {{api_token: [{SECRET}]}}}}",
        f"{{source: x, threshold: !{SECRET} 1}}",
        f"{{source: x, watch: !!bool {SECRET}}}",
        f"{{source: x, threshold: !!float {SECRET}}}",
        "{source: x, threshold: '${VISDIV_TEST_SECRET}'}",
        "{source: '${VISDIV_TEST_SECRET}/${VISDIV_TEST_UNSET}'}",
    ],
)
def test_a_secret_in_a_faulty_dataset_is_not_shown(faulty, monkeypatch):
    monkeypatch.setenv("VISDIV_TEST_SECRET", SECRET)
    settings = read(f"datasets:\n  a: {{source: x}}\n  b: {faulty}\n")
    assert list(settings.faults) == ["b"]
    assert SECRET not in settings.faults["b"]
    assert SECRET not in repr(settings)


def test_an_address_in_a_names_place_is_not_shown():
    settings = read(f"datasets:\n  'https://me:{SECRET}@host/x': {{source: x}}\n")
    [(name, message)] = settings.faults.items()
    assert SECRET not in name + message


# --- the file ---


def test_a_byte_order_mark_is_no_part_of_the_first_key():
    Path("visdiv.yaml").write_bytes(b"\xef\xbb\xbfstore: here\n")
    assert load_settings().store == Path("here").absolute()


def test_a_file_that_is_too_large_for_settings_is_refused(monkeypatch):
    monkeypatch.setattr(reading, "LARGEST_FILE", 10)
    with pytest.raises(VisdivError, match=r"visdiv\.yaml is too large for a settings file"):
        read("# 12345678901234567890")


def test_a_link_that_leads_nowhere_is_no_reason_to_take_the_defaults():
    Path("visdiv.yaml").symlink_to("nowhere.yaml")
    assert find_settings() == Path("visdiv.yaml")
    with pytest.raises(VisdivError, match=r"cannot read the settings file visdiv\.yaml: No such"):
        load_settings()


def test_a_pipe_can_be_read_as_settings():
    reader, writer = os.pipe()
    os.write(writer, b"datasets: {a: {source: x}, b: {zzz: 1}}\n")
    os.close(writer)
    settings = load_settings(Path(f"/dev/fd/{reader}"))
    os.close(reader)
    assert list(settings.datasets) == ["a"]
    assert "(line 1)" in settings.faults["b"]


def test_a_path_that_leads_nowhere_is_refused_in_a_sentence():
    with pytest.raises(VisdivError, match=r"the path 'a/\.\./b\\x00' leads nowhere"):
        absolute_path("a/../b\0")
