"""`visdiv.yaml`: what it may say, where its paths lead, and how it is refused."""

import re
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.model import (
    BucketSettings,
    ColumnSlices,
    EmbedderSettings,
    NightlySettings,
    RayEngine,
    Settings,
)
from visdiv_assets.settings.reading import absolute_path, load_settings

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "examples/configs").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _nothing_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder, and no settings in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VISDIV_CONFIG", raising=False)
    monkeypatch.delenv("VISDIV_STORE", raising=False)


def read(text: str) -> Settings:
    """The settings of a file without faults; what is wrong with a dataset is raised, too."""
    path = Path("visdiv.yaml")
    path.write_text(text, encoding="utf-8")
    settings = load_settings(path)
    for name in settings.faults:
        settings.dataset(name)
    return settings


# --- where settings come from ---


def test_without_a_file_everything_has_a_default():
    settings = load_settings()
    assert settings.store == Path(platformdirs.user_data_dir("visdiv"))
    assert settings.embedder.model_dump() == {
        "weights": "auto",
        "device": "auto",
        "batch_size": None,
        "precision": "auto",
        "decode": "cpu",
        "exif_orientation": False,
        "alpha_background": None,
    }
    assert settings.datasets == {}


@pytest.mark.parametrize("text", ["", "# only a comment\n", "store:\nembedder:\ndatasets:\n"])
def test_what_is_left_empty_has_its_default(text):
    assert read(text) == Settings()


def test_visdiv_yaml_of_the_current_folder_is_found(tmp_path):
    read("store: here")
    assert load_settings().store == tmp_path / "here"


def test_a_named_file_goes_before_the_environment_and_that_before_the_current_folder(
    tmp_path, monkeypatch
):
    for name in ("visdiv", "environment", "named"):
        Path(f"{name}.yaml").write_text(f"store: {name}")
    assert load_settings().store.name == "visdiv"
    monkeypatch.setenv("VISDIV_CONFIG", str(tmp_path / "environment.yaml"))
    assert load_settings().store.name == "environment"
    assert load_settings(Path("named.yaml")).store.name == "named"


def test_the_environment_overrides_the_store_of_any_file(tmp_path, monkeypatch):
    read("store: here")
    monkeypatch.setenv("VISDIV_STORE", "there")
    assert load_settings().store == tmp_path / "there"
    monkeypatch.setenv("VISDIV_STORE", "~/there")
    assert load_settings().store == Path.home() / "there"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_example_configurations_are_valid(path):
    settings = load_settings(path)
    assert Path(settings.dataset("demo_photos").source.uri) == ROOT / "examples/demo/photos"
    assert settings.embedder.device in ("cpu", "cuda", "cuda:0", ["cuda:0", "cuda:1"])


def test_there_is_an_example_for_each_way_to_run():
    assert [path.stem for path in CONFIGS] == [
        "cpu",
        "one_gpu",
        "one_gpu_local_cache",
        "several_gpus",
    ]


def test_the_projects_own_settings_are_valid():
    settings = load_settings(ROOT / "visdiv.yaml")
    assert list(settings.datasets) == ["demo_photos", "demo_tracking"]


# --- paths ---


def test_relative_paths_are_relative_to_the_file(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "my.yaml").write_text(
        "store: ../store\n"
        "embedder: {weights: models/sscd.pt}\n"
        "datasets: {birds: {source: images/birds}}\n"
    )
    settings = load_settings(Path("project/my.yaml"))
    assert settings.store == tmp_path / "store"
    assert settings.embedder.weights == str(folder / "models/sscd.pt")
    assert settings.dataset("birds").source.uri == str(folder / "images/birds")


def test_a_tilde_is_the_home_folder():
    settings = read(
        "store: ~/store\nembedder: {weights: ~/sscd.pt}\ndatasets: {birds: {source: ~/birds}}"
    )
    assert settings.store == Path.home() / "store"
    assert settings.embedder.weights == str(Path.home() / "sscd.pt")
    assert settings.dataset("birds").source.uri == str(Path.home() / "birds")


def test_the_tilde_of_a_user_that_does_not_exist_is_an_ordinary_name(tmp_path):
    assert read("store: ~nobody-of-that-name/x").store == tmp_path / "~nobody-of-that-name/x"


def test_a_store_is_a_folder_however_it_is_written(tmp_path, monkeypatch):
    assert read("store: file:///data/store").store == Path("/data/store")
    assert read("store: 'odd: name/x'").store == tmp_path / "odd: name/x"
    monkeypatch.setenv("VISDIV_STORE", "ftp://key:secret@host/x")
    with pytest.raises(VisdivError, match=r"\$VISDIV_STORE must be a folder, s3://") as caught:
        read("store: x")
    assert "secret" not in str(caught.value)


def test_a_store_in_a_bucket_needs_a_folder_for_the_results(tmp_path, monkeypatch):
    text = "store: s3://bucket/x"
    for name in ("'results'", r"\$VISDIV_RESULTS", "s3://bucket/x"):
        with pytest.raises(VisdivError, match=name):
            read(text)
    settings = read(f"{text}\nresults: here")
    assert settings.store == BucketSettings(uri="s3://bucket/x")
    assert settings.results_folder == tmp_path / "here"
    monkeypatch.setenv("VISDIV_RESULTS", "there")
    assert read(text).results_folder == tmp_path / "there"
    assert read("store: x").results_folder == tmp_path / "there"


def test_the_results_are_in_the_store_if_that_is_a_folder(tmp_path):
    assert read("store: x").results_folder == tmp_path / "x"
    assert read("{store: x, results: y}").results_folder == tmp_path / "y"


def test_options_of_a_bucket_stay_if_the_environment_names_another_one(monkeypatch):
    monkeypatch.setenv("VISDIV_STORE", "s3://other/y")
    settings = read("{store: {uri: 's3://bucket/x', options: {region: eu}}, results: r}")
    assert settings.store == BucketSettings(uri="s3://other/y", options={"region": "eu"})
    monkeypatch.setenv("VISDIV_STORE", "/disk")
    assert read("{store: {uri: 's3://bucket/x'}}").store == Path("/disk")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("store: ftp://me:SECRETWORD@host/x", "must be a folder, s3://"),
        ("store: {uri: /data}", "must name a bucket"),
        ("store: {uri: 's3://'}", "must name a bucket"),
        ("store: 's3://'", "must name a bucket"),
        ("store: {uri: 's3://b/x', option: {}}", "option"),
        ("store: {uri: 's3://b/x', options: {secret_access_key: [SECRETWORD]}}", "options"),
        ("{store: s3://b/x, results: s3://b/y}", "must be a folder on a disk"),
        ("{store: x, cache: {folder: s3://b/y}}", "must be a folder on a disk"),
        ("{store: x, cache: {max_bytes: 0}}", "max_bytes"),
        ("store: [x]", "store"),
    ],
)
def test_a_place_that_cannot_be_meant_is_refused(text, said):
    with pytest.raises(VisdivError, match=said) as caught:
        read(text)
    assert "SECRETWORD" not in str(caught.value)
    assert "store.folder" not in str(caught.value)  # pydantic's own name of what it tried


def test_what_a_bucket_shows_of_itself_has_no_secrets():
    place = BucketSettings(uri="s3://me:SECRETWORD@bucket/x", options={"key": "SECRETWORD"})
    assert "SECRETWORD" not in f"{place} {place!r}"


@pytest.mark.parametrize("weights", ["auto", "sscd_disc_mixup", "https://example.org/sscd.pt"])
def test_weights_that_are_no_path_stay_as_they_are(weights):
    assert read(f"embedder: {{weights: '{weights}'}}").embedder.weights == weights


def test_urls_stay_as_they_are():
    settings = read("datasets: {birds: {source: 's3://bucket/birds'}}")
    assert settings.dataset("birds").source.uri == "s3://bucket/birds"


def test_two_dots_after_a_link_lead_out_of_where_it_points_to(tmp_path):
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/away")
    assert absolute_path("link/../store") == tmp_path / "far/store"
    assert absolute_path("link/store") == tmp_path / "link/store"


# --- refusals name the file and the key ---


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("stor: x", "'stor' is not a setting"),
        ("embedder: {devise: cpu}", "'embedder.devise' is not a setting"),
        ("store: 3", "'store' must be a path; got 3"),
        ("store: gs:/bucket/x", "'store': must name a bucket: s3://"),
        ("store: file://host/x", "'store': must be a folder on a disk"),
        ("keep: {evaluations: 0}", "'keep.evaluations': .*got 0"),
        ("embedder: cpu", "'embedder' must hold 'key: value' lines"),
        ("embedder: {device: gpu}", "'embedder.device': use auto, cpu, cuda.*; got 'gpu'"),
        ("embedder: {device: []}", "'embedder.device': use auto"),
        ("embedder: {device: [cuda:0, 1]}", r"'embedder.device': use .* got \['cuda:0', 1\]"),
        ('embedder: {device: "cpu\\n"}', "'embedder.device': use auto"),
        ("embedder: {batch_size: 0}", "'embedder.batch_size': .* greater than .* got 0"),
        ("embedder: {precision: fp64}", "'embedder.precision': .*'fp32'.*; got 'fp64'"),
        ("embedder: {weights: ''}", "'embedder.weights': .*at least 1 character"),
        ("datasets: [birds]", "'datasets' must hold 'key: value' lines"),
        ("datasets: {birds: }", "'datasets.birds' must hold 'key: value' lines"),
        ("datasets: {birds: {}}", "'datasets.birds.source' is missing"),
        ("datasets: {a/b: {source: x}}", "'datasets.a/b': a dataset name has .*; got 'a/b'"),
        ("datasets: {2024: {source: x}}", "'datasets.2024': .*in quotes if it looks like a number"),
        ("store: x\nstore: y", 'line 2: found duplicate key "store"'),
        ("datasets:\n  a: {source: x}\n  a: {source: y}", 'line 3: found duplicate key "a"'),
        ("store: [", "not a valid YAML file: line 1"),
        ("store: 2024-13-45", "not a valid YAML file: month must be in 1..12"),
        ("[" * 1500, "not a valid YAML file: "),
        ("- store", "must hold settings as 'key: value' lines"),
    ],
)
def test_a_wrong_setting_is_refused_by_file_and_key(text, problem):
    with pytest.raises(VisdivError, match=rf"(?s)^visdiv\.yaml.*{problem}"):
        read(text)


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(VisdivError) as refused:
        read("stor: x\nembedder: {batch_size: -1}")
    assert "'stor' is not a setting" in str(refused.value)
    assert "'embedder.batch_size'" in str(refused.value)


def test_a_file_that_is_not_text_is_refused():
    Path("visdiv.yaml").write_bytes(b"\xff\xfe\x00store")
    with pytest.raises(VisdivError, match="not a valid YAML file"):
        load_settings()


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read_is_refused_by_name(name):
    with pytest.raises(VisdivError, match=rf"cannot read the settings file {name}: "):
        load_settings(Path(name))


def test_yaml_that_wants_to_run_something_runs_nothing(tmp_path):
    with pytest.raises(VisdivError, match="line 1: could not determine a constructor"):
        read(f"store: !!python/object/apply:os.system ['touch {tmp_path}/ran']")
    assert not (tmp_path / "ran").exists()


@given(st.text(max_size=60))
def test_any_text_is_valid_or_refused_in_a_sentence(text):
    try:
        read(text)
    except VisdivError as error:
        assert str(error).startswith("visdiv.yaml")  # noqa: PT017


# --- dataset names ---

# Text that is likely to be mistaken for a name.
almost_names = st.text(st.sampled_from("aZ09._-/\\ \n\0~:*%é"), max_size=12) | st.text(max_size=110)


@given(almost_names)
def test_a_dataset_name_is_refused_or_safe_as_a_folder_name(name):
    content = {"datasets": {name: {"source": "x"}}}
    try:
        [accepted] = Settings.model_validate(content).datasets
    except ValueError:
        return
    assert accepted == name
    assert Path("store", name).name == name
    assert name.isascii()
    assert name.isprintable()
    assert not set(name) & set("/\\:*~% ")
    assert not name.startswith(".")
    assert 0 < len(name) <= 100


@pytest.mark.parametrize("name", ["a", "0", "A.b_c-d", "x" * 100, "2024.01"])
def test_ordinary_dataset_names_are_accepted(name):
    assert list(read(f"datasets: {{'{name}': {{source: x}}}}").datasets) == [name]


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "-a", "a/b", "a\n", "a b", "é", "x" * 101])
def test_dataset_names_that_are_no_folder_name_are_refused(name):
    with pytest.raises(ValueError, match="a dataset name has"):
        Settings.model_validate({"datasets": {name: {"source": "x"}}})


def test_an_unknown_dataset_is_refused_with_the_known_ones():
    settings = read("datasets: {birds: {source: x}, ants: {source: y}}")
    with pytest.raises(VisdivError, match=r"no dataset 'cats' .*known datasets: ants, birds"):
        settings.dataset("cats")


def test_settings_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        load_settings().store = Path("elsewhere")


# --- datasets: threshold, watch, schedule, tags, slices, embedder ---


def test_a_dataset_is_watched_and_scheduled_with_threshold_0_30_unless_it_says_otherwise():
    dataset = read("datasets: {birds: {source: x}}").dataset("birds")
    assert (dataset.threshold, dataset.watch, dataset.schedule) == (0.30, True, True)
    assert (dataset.tags, dataset.slices, dataset.embedder) == ({}, None, None)


def test_near_duplicates_are_what_sscd_takes_for_copies_unless_a_dataset_says_otherwise():
    dataset = read("datasets: {a: {source: x}}").dataset("a")
    near = dataset.near_duplicates
    assert (near.threshold, near.split, near.warn_rate) == (0.75, True, 0.05)
    assert dataset.leakage.threshold == 0.95
    other = read(
        "datasets: {a: {source: x, near_duplicates: {threshold: 0.9, split: false, warn_rate: 0},"
        " leakage: {threshold: 1}}}"
    ).dataset("a")
    near = other.near_duplicates
    assert (near.threshold, near.split, near.warn_rate) == (0.9, False, 0)
    assert other.leakage.threshold == 1


@pytest.mark.parametrize("value", ["-0.1", "1.1", ".nan", ".inf", "much", "[1]"])
@pytest.mark.parametrize(
    "setting", ["near_duplicates.threshold", "near_duplicates.warn_rate", "leakage.threshold"]
)
def test_what_is_no_similarity_or_share_is_refused(setting, value):
    group, name = setting.split(".")
    with pytest.raises(VisdivError, match=rf"'datasets\.a\.{group}\.{name}'"):
        read(f"datasets: {{a: {{source: x, {group}: {{{name}: {value}}}}}}}")


def test_a_dataset_may_say_otherwise():
    dataset = read(
        "datasets:\n"
        "  birds:\n"
        "    source: x\n"
        "    threshold: 0.45\n"
        "    watch: false\n"
        "    schedule: false\n"
        "    tags: {team: vision, purpose: training}\n"
    ).dataset("birds")
    assert (dataset.threshold, dataset.watch, dataset.schedule) == (0.45, False, False)
    assert dataset.tags == {"team": "vision", "purpose": "training"}


@pytest.mark.parametrize(
    ("written", "slices"),
    [
        ("folder", "folder"),
        ("{column: label}", ColumnSlices(column="label")),
        ("{column: folder}", ColumnSlices(column="folder")),
        ("", None),
    ],
)
def test_slices_are_folders_or_a_column(written, slices):
    settings = read(f"datasets:\n  birds:\n    source: x\n    slices: {written}\n")
    assert settings.dataset("birds").slices == slices


def test_a_dataset_has_its_own_embedder_or_the_common_one():
    settings = read(
        "embedder: {batch_size: 4}\n"
        "datasets:\n"
        "  birds: {source: x, embedder: {device: cpu, weights: models/own.pt}}\n"
        "  cats: {source: y}\n"
    )
    own = EmbedderSettings(device="cpu", weights=str(Path("models/own.pt").absolute()))
    assert settings.embedder_of("birds") == own
    assert settings.embedder_of("cats") == EmbedderSettings(batch_size=4)
    assert settings.embedder_of("never registered") == EmbedderSettings(batch_size=4)


@pytest.mark.parametrize("threshold", ["-0.01", "1.01", ".nan", ".inf", "high", "[]"])
def test_a_threshold_that_is_no_score_is_refused(threshold):
    with pytest.raises(VisdivError, match=r"'datasets\.birds\.threshold': .*\(line 1\)$"):
        read(f"datasets: {{birds: {{source: x, threshold: {threshold}}}}}")


@pytest.mark.parametrize("threshold", ["0", "1", "0.0", "1.0"])
def test_the_ends_of_the_scale_are_thresholds(threshold):
    settings = read(f"datasets: {{birds: {{source: x, threshold: {threshold}}}}}")
    assert settings.dataset("birds").threshold == float(threshold)


@pytest.mark.parametrize(
    "slices", ["colour", "''", "[a]", "3", "{}", "{column: }", "{column: ''}", "{col: x}"]
)
def test_slices_by_anything_else_are_refused_with_what_to_write(slices):
    with pytest.raises(VisdivError) as refused:
        read(f"datasets:\n  birds:\n    source: x\n    slices: {slices}\n")
    message = str(refused.value)
    assert message.startswith(
        "visdiv.yaml: 'datasets.birds.slices': use folder, or {column: NAME}; got "
    )
    assert message.endswith(" (line 4)")
    assert ";" not in message.partition("got ")[2]


# --- where alerts go, and secrets ---


def test_secrets_of_alerts_are_looked_up_only_when_they_are_needed(monkeypatch):
    monkeypatch.delenv("VISDIV_TEST_TOKEN", raising=False)
    alerts = read("alerts:\n  urls: ['json://host/${VISDIV_TEST_TOKEN}', 'json://plain']\n").alerts
    assert alerts.urls == ["json://host/${VISDIV_TEST_TOKEN}", "json://plain"]
    with pytest.raises(
        VisdivError, match=r"variable VISDIV_TEST_TOKEN, used by 'alerts\.urls', is not set"
    ):
        alerts.resolved(alerts.urls[0])
    assert alerts.resolved(alerts.urls[1]) == "json://plain"
    monkeypatch.setenv("VISDIV_TEST_TOKEN", "secret")
    assert alerts.resolved(alerts.urls[0]) == "json://host/secret"
    assert "secret" not in repr(alerts)


def test_without_urls_alerts_go_nowhere():
    assert read("alerts:\n  urls:\n").alerts.urls == []


def test_environment_variables_stand_in_every_other_value_too(tmp_path, monkeypatch):
    monkeypatch.setenv("VISDIV_TEST_DISK", "disk")
    monkeypatch.setenv("VISDIV_TEST_NAME", "${VISDIV_TEST_DISK}")
    settings = read(
        "store: /${VISDIV_TEST_DISK}/${VISDIV_TEST_DISK}\n"
        "datasets:\n"
        "  birds:\n"
        "    source: ${VISDIV_TEST_DISK}/birds\n"
        "    tags: {a: '${VISDIV_TEST_NAME}'}\n"
    )
    assert settings.store == Path("/disk/disk")
    assert settings.dataset("birds").source.uri == str(tmp_path / "disk/birds")
    assert settings.dataset("birds").tags == {"a": "${VISDIV_TEST_DISK}"}  # no second look


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("store: ${VISDIV_TEST_UNSET}/x", "store"),
        ("embedder: {device: ['${VISDIV_TEST_UNSET}']}", "embedder.device"),
        ("datasets: {birds: {source: 'a/${VISDIV_TEST_UNSET}'}}", "datasets.birds.source"),
    ],
)
def test_a_variable_that_is_not_set_is_refused_by_file_and_key(text, where):
    with pytest.raises(
        VisdivError,
        match=rf"^visdiv\.yaml: .* VISDIV_TEST_UNSET, used by '{where}', is not set \(line 1\)$",
    ):
        read(text)


@pytest.mark.parametrize("text", ["$HOME", "${}", "${1A}", "${A", "$A}", "{A}", "${A-B}"])
def test_what_is_no_variable_stays_as_it_is(text):
    settings = read(f"datasets: {{birds: {{source: x, tags: {{key: '{text}'}}}}}}")
    assert settings.dataset("birds").tags == {"key": text}


def test_a_value_that_contains_itself_is_refused():
    with pytest.raises(VisdivError, match="a value contains itself"):
        read("datasets: &all {birds: *all}")


# --- errors name the line and the fix ---


def test_every_error_names_its_line():
    with pytest.raises(VisdivError) as refused:
        read("store: x\n\n# a comment\nstor: y\nalerts:\n  urls:\n    - json://host\n    - 3\n")
    for place, line in [("stor", 4), (r"alerts\.urls\.1", 8)]:
        assert re.search(rf"'{place}'[^']* .*\(line {line}\)", str(refused.value))


@pytest.mark.parametrize(
    ("text", "wrong", "right"),
    [
        ("alert: {}", "alert", "alerts"),
        ("dataset: {}", "dataset", "datasets"),
        ("nightly: {timezon: UTC}", "nightly.timezon", "timezone"),
        ("alerts: {url: []}", "alerts.url", "urls"),
        ("datasets: {a: {source: x, treshold: 0.3}}", "datasets.a.treshold", "threshold"),
        ("datasets: {a: {source: x, slice: folder}}", "datasets.a.slice", "slices"),
        ("embedder: {devices: cpu}", "embedder.devices", "device"),
        (
            "datasets: {a: {source: x, near_duplicates: {warn_rat: 0.1}}}",
            "datasets.a.near_duplicates.warn_rat",
            "warn_rate",
        ),
        ("datasets: {a: {source: x, leakge: {}}}", "datasets.a.leakge", "leakage"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_key_that_was_meant(text, wrong, right):
    with pytest.raises(
        VisdivError,
        match=rf"'{wrong}' is not a setting; did you mean '{right}'\? \(line 1\)$",
    ):
        read(text)


def test_a_key_that_is_like_no_other_is_refused_without_a_guess():
    with pytest.raises(VisdivError, match=r"'zzz' is not a setting \(line 1\)$"):
        read("zzz: 1")


# --- the night ---


@pytest.mark.parametrize("time", ["'00:00'", "'23:59'", "02:00", "'02:30'"])
def test_a_time_of_the_24_hour_clock_is_accepted(time):
    assert read(f"nightly: {{time: {time}}}").nightly.time == time.strip("'")


@pytest.mark.parametrize(
    "time", ["'24:00'", "'2:00'", "'02:60'", "2", "'02:00:00'", "'02:00\n'", "''"]
)
def test_any_other_time_is_refused(time):
    with pytest.raises(VisdivError, match=r"'nightly\.time': .*\(line 1\)$"):
        read(f"nightly: {{time: {time}}}")


@pytest.mark.parametrize("zone", ["Mars/Crater", "''", "../etc", "/etc/passwd", "Europe", "'+1'"])
def test_a_zone_that_there_is_not_is_refused_with_one_that_there_is(zone):
    with pytest.raises(VisdivError, match=r"'nightly\.timezone': .*Europe/Berlin.*\(line 1\)$"):
        read(f"nightly: {{timezone: {zone}}}")


def test_the_night_reads_as_it_is_written():
    assert str(NightlySettings()) == "02:00 UTC"


def nights_of(nightly: NightlySettings, year: int) -> Counter[date]:
    """How often each night of a year begins, as seen at the 15-minute ticks of it."""
    tick = datetime(year - 1, 12, 30, tzinfo=UTC)
    nights: Counter[date] = Counter()
    last = nightly.night_at(tick)
    while tick < datetime(year + 1, 1, 3, tzinfo=UTC):
        tick += timedelta(minutes=15)
        if (night := nightly.night_at(tick)) != last and night.year == year:
            nights[night] += 1
        last = night
    return nights


@pytest.mark.parametrize(
    ("time", "zone"),
    [
        ("02:00", "UTC"),
        ("02:00", "Europe/Berlin"),  # skipped on 29 March 2026, twice on 25 October
        ("02:30", "Europe/Berlin"),
        ("02:59", "Europe/Berlin"),
        ("03:00", "Europe/Berlin"),
        ("00:00", "Europe/Berlin"),
        ("23:59", "Europe/Berlin"),
        ("23:50", "America/New_York"),
        ("00:07", "Asia/Kathmandu"),
    ],
)
def test_every_night_of_a_year_begins_once(time, zone):
    nights = nights_of(NightlySettings(time=time, timezone=zone), 2026)
    assert len(nights) == 365
    assert set(nights.values()) == {1}


@pytest.mark.parametrize(
    ("day", "first_tick"),
    [
        (date(2026, 1, 15), "01:00"),  # 02:00 in winter
        (date(2026, 7, 15), "00:00"),  # 02:00 in summer
        (date(2026, 3, 29), "01:00"),  # 02:00 is skipped, it is 03:00 then
        (date(2026, 10, 25), "00:00"),  # the first of the two 02:00
    ],
)
def test_a_night_begins_when_the_clocks_of_its_zone_say_so(day, first_tick):
    nightly = NightlySettings(time="02:00", timezone="Europe/Berlin")
    tick = datetime.combine(day, datetime.strptime(first_tick, "%H:%M").time(), UTC)
    assert nightly.night_at(tick) == day
    assert nightly.begins(day) == tick
    assert nightly.night_at(tick + timedelta(hours=22)) == day
    assert nightly.night_at(tick - timedelta(microseconds=1)) == day - timedelta(days=1)


def test_a_tick_may_be_in_any_zone():
    nightly = NightlySettings(time="02:00")
    tick = datetime(2026, 1, 15, 2, tzinfo=UTC).astimezone(ZoneInfo("Pacific/Auckland"))
    assert nightly.night_at(tick) == date(2026, 1, 15)


# --- settling ---


def test_a_changed_source_settles_for_a_minute_unless_told_otherwise():
    assert Settings().settle_seconds == 60
    assert read("settle_seconds: 0").settle_seconds == 0
    assert read("settle_seconds: 12.5").settle_seconds == 12.5


@pytest.mark.parametrize("seconds", ["-1", ".nan", ".inf", "soon"])
def test_a_time_to_settle_that_never_ends_is_refused(seconds):
    with pytest.raises(VisdivError, match=r"'settle_seconds': .*\(line 1\)$"):
        read(f"settle_seconds: {seconds}")


# --- engines ---


@pytest.mark.parametrize("engine", ["ray", {"ray": None}, {"ray": {}}, RayEngine()])
def test_an_engine_is_named_alone_or_with_how_it_is_set_up(engine):
    assert Settings(engine=engine).engine_of("a") == RayEngine()
    own = {"a": {"source": "a", "engine": {"ray": {"workers": 3}}}}
    assert Settings(datasets=own).engine_of("a") == RayEngine(workers=3)
    assert Settings(datasets=own).engine_of("b") == "local"


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        ("spark", "use local, ray, or {ray: "),
        ({"ray": False}, "use local, ray, or {ray: "),
        ({"ray": {"gpus": 1.5}}, "above 1, it must be a whole number"),
        ({"ray": {"cpus": 0}}, "greater than or equal to 1"),
        ({"ray": {"address": "ray://head:10001"}}, "use auto, or host:port"),
        ({"ray": {}, "spark": {}}, "use local, ray, or {ray: "),
    ],
)
def test_other_engines_are_refused(engine, told):
    with pytest.raises(ValidationError, match=re.escape(told)):
        Settings(engine=engine)
