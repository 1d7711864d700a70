"""Sensors, schedule and checks on Dagster's real SQLite storage."""

import errno
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner

from visdiv_assets import VisdivError
from visdiv_assets.cli.main import app
from visdiv_assets.definitions import build_defs
from visdiv_assets.defs import sensors
from visdiv_assets.defs.assets import embed as embed_module
from visdiv_assets.defs.resources import (
    SettingsResource,
    StoreResource,
    WarehouseResource,
)
from visdiv_assets.defs.schedules import nightly_comparison, nightly_reevaluation
from visdiv_assets.defs.sensors import (
    alert_sensor,
    dataset_change_sensor,
    dataset_registry_sensor,
    failed_run_sensor,
)
from visdiv_assets.warehouse.state.database import StateFile
from visdiv_assets.warehouse.state.outbox import alerts
from visdiv_assets.warehouse.state.registry import register, unregister
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import embed_dataset
from visdiv_assets_tests.defs.conftest import CheapEmbedder, score
from visdiv_assets_tests.embedding.fakes import write_images
from visdiv_assets_tests.notify.receivers import hanging, webhook

PHOTOS = sorted((Path(__file__).parents[2] / "examples/demo/photos").glob("*.jpg"))


class World:
    """A settings file, its datasets, and Dagster, as a deployment has them."""

    def __init__(self, root: Path, instance: dg.DagsterInstance) -> None:
        self.root, self.instance = root, instance
        self.settings = SettingsResource(config_path=str(root / "visdiv.yaml"))
        self.store = StoreResource(settings=self.settings)
        self.warehouse = WarehouseResource(settings=self.settings)
        overrides = {"settings": self.settings, "embedder": CheapEmbedder(settings=self.settings)}
        self.job = build_defs(resource_overrides=overrides).resolve_job_def("evaluate_dataset")
        self.cursor: str | None = None

    def write(self, datasets: str, **top: str) -> None:
        lines = [f"{key}: {value}" for key, value in {"settle_seconds": "0", **top}.items()]
        text = "\n".join(["store: store", *lines, "datasets:", datasets or "  {}"])
        (self.root / "visdiv.yaml").write_text(text)

    def folder(self, name: str, photos: list[Path]) -> Path:
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        for photo in photos:
            shutil.copy(photo, folder)
        return folder

    def register(self) -> dg.SensorResult | dg.SkipReason:
        with dg.build_sensor_context(
            instance=self.instance, resources={"settings": self.settings}
        ) as context:
            result = dataset_registry_sensor(context)
        if isinstance(result, dg.SensorResult):
            for request in result.dynamic_partitions_requests or []:
                keys = list(request.partition_keys)
                if isinstance(request, dg.AddDynamicPartitionsRequest):
                    self.instance.add_dynamic_partitions("datasets", keys)
                else:
                    for key in keys:
                        self.instance.delete_dynamic_partition("datasets", key)
        return result

    def look(self) -> dg.SensorResult:
        with dg.build_sensor_context(
            instance=self.instance,
            cursor=self.cursor,
            resources={"settings": self.settings, "store": self.store},
        ) as context:
            result = dataset_change_sensor(context)
        self.cursor = result.cursor
        return result

    def asked(self) -> list[str]:
        return [str(request.partition_key) for request in self.look().run_requests or []]

    def alert(self) -> str:
        with dg.build_sensor_context(
            instance=self.instance,
            resources={"settings": self.settings, "warehouse": self.warehouse},
        ) as context:
            return alert_sensor(context).skip_message

    def run(self, dataset: str) -> dg.ExecuteInProcessResult:
        return self.job.execute_in_process(
            partition_key=dataset, instance=self.instance, raise_on_error=False
        )

    @property
    def state(self) -> StateFile:
        return StateFile(self.root / "store/state.sqlite")

    def results(self) -> Warehouse:
        return Warehouse(self.root / "store/visdiv.duckdb")


@pytest.fixture
def world(tmp_path: Path, instance: dg.DagsterInstance) -> World:
    return World(tmp_path, instance)


def partitions(world: World) -> list[str]:
    return sorted(world.instance.get_dynamic_partitions("datasets"))


# --- registry ---


def test_partitions_follow_the_settings(world):
    world.write("  a: {source: a}\n  b: {source: b}")
    world.register()
    assert partitions(world) == ["a", "b"]
    world.write("  b: {source: b}\n  c: {source: c}")
    world.register()
    assert partitions(world) == ["b", "c"]
    assert isinstance(world.register(), dg.SkipReason)


@pytest.mark.parametrize(
    "text", ["datasets: [", "", "# all gone\n", "store: store\n", "store: store\ndatasets:\n", None]
)
def test_a_file_that_cannot_be_meant_changes_nothing_fails_the_tick_and_is_told(world, text):
    file = world.root / "visdiv.yaml"
    with webhook() as hook:
        world.write("  a: {source: a}\n  b: {source: b}", alerts=f"{{urls: ['{hook.url}']}}")
        world.register()
        good = file.read_text()
        file.unlink() if text is None else file.write_text(text)
        for _ in range(3):
            with pytest.raises(
                dg.Failure, match=r"visdiv\.yaml cannot be used, and nothing changes"
            ):
                world.register()
            world.alert()
        assert partitions(world) == ["a", "b"]
        assert hook.titles == ["visdiv: visdiv.yaml cannot be used"]
        file.write_text(good)
        world.register()
        world.alert()
        assert hook.titles[1:] == ["visdiv: visdiv.yaml can be used again"]


def test_while_the_file_is_broken_changes_are_scored_and_nights_are_asked_for(world):
    world.folder("a", PHOTOS[:4])
    world.write("  a: {source: a}")
    world.register()
    (world.root / "visdiv.yaml").write_text("datasets: [")
    assert world.asked() == ["a"]
    assert world.run("a").success
    [request] = nightly(world, datetime(2026, 1, 10, 2, tzinfo=UTC))
    assert request.partition_key == "a"


def test_one_datasets_fault_is_told_and_stops_that_dataset_only(world, monkeypatch):
    monkeypatch.delenv("NO_SUCH_ROOT", raising=False)
    world.folder("a", PHOTOS[:4])
    good = "  a: {source: a}\n  b: {source: a}"
    with webhook() as hook:
        world.write(good, alerts=f"{{urls: ['{hook.url}']}}")
        world.register()
        world.write(good.replace("b: {source: a}", "b: {source: '${NO_SUCH_ROOT}/b'}"))
        text = (world.root / "visdiv.yaml").read_text()
        (world.root / "visdiv.yaml").write_text(f"{text}\nalerts: {{urls: ['{hook.url}']}}\n")
        skipped = world.register()
        assert "NO_SUCH_ROOT" in skipped.skip_message
        assert partitions(world) == ["a", "b"]
        assert world.asked() == ["a"]
        world.alert()
        assert hook.titles == ["visdiv: b has settings that cannot be used"]


def test_most_datasets_at_once_are_taken_away_only_if_somebody_says_so(world):
    names = [f"d{number}" for number in range(5)]
    world.write("\n".join(f"  {name}: {{source: a}}" for name in names))
    world.register()
    world.write("  d0: {source: a}\n  new: {source: a}")
    world.register()  # adds one
    with pytest.raises(dg.Failure, match=r"has lost 4 of 6 datasets .*visdiv remove --gone"):
        world.register()
    # Those that are new don't outvote the others.
    world.write("\n".join(f"  {name}: {{source: a}}" for name in ("d0", "new", *"abcdef")))
    world.register()
    with pytest.raises(dg.Failure, match="has lost 4"):
        world.register()
    world.write("  d0: {source: a}\n  new: {source: a}\n  a: {source: a}\n  b: {source: a}")
    config = ["--config", str(world.root / "visdiv.yaml")]
    assert CliRunner().invoke(app, ["remove", "--gone", *config]).exit_code == 0
    world.register()
    world.write("  d0: {source: a}\n  new: {source: a}")
    world.register()
    assert partitions(world) == ["d0", "new"]
    world.write("")  # writes `datasets: {}`
    world.register()
    assert partitions(world) == []


def test_a_partition_whose_addition_was_lost_is_still_this_projects(world):
    world.write("  a: {source: a}")
    for _ in range(2):  # ticks that are cut off
        with dg.build_sensor_context(
            instance=world.instance, resources={"settings": world.settings}
        ) as context:
            dataset_registry_sensor(context)
    world.register()
    assert partitions(world) == ["a"]
    world.write("")
    world.register()
    assert partitions(world) == []


def test_partitions_that_others_have_added_are_left_alone(world):
    world.instance.add_dynamic_partitions("datasets", ["theirs", "both"])
    world.write("  mine: {source: a}\n  both: {source: a}")
    world.register()
    world.write("  both: {source: a}")
    world.register()
    assert partitions(world) == ["both", "theirs"]
    world.write("")
    world.register()
    world.register()
    assert partitions(world) == ["both", "theirs"]


def test_partitions_of_an_older_version_are_this_projects_if_it_has_scored_them(world):
    world.folder("a", PHOTOS[:4])
    world.instance.add_dynamic_partitions("datasets", ["a", "theirs"])
    score(world.root, "a")
    world.write("  a: {source: a}")
    world.register()
    world.write("")
    world.register()
    assert partitions(world) == ["theirs"]


@pytest.mark.slow
def test_a_dataset_that_was_removed_while_below_is_told_again_when_it_is_registered_again(world):
    world.folder("photos", PHOTOS[:6])
    with webhook() as hook:
        urls = f"{{urls: ['{hook.url}']}}"
        for _ in range(2):
            world.write("  photos: {source: photos, threshold: 0.9, basis: plain}", alerts=urls)
            world.register()
            assert world.run("photos").success
            world.alert()
            world.write("", alerts=urls)
            world.register()
        assert hook.titles == ["visdiv: photos fell below its threshold"] * 2


def test_a_partition_is_not_taken_away_under_a_run(world):
    world.write("  a: {source: a}")
    world.register()
    run = dg.DagsterRun(
        job_name="evaluate_dataset",
        tags={"dagster/partition": "a"},
        status=dg.DagsterRunStatus.STARTED,
    )
    world.instance.add_run(run)
    world.write("")
    world.register()
    assert partitions(world) == ["a"]
    world.instance.report_run_canceled(run)
    world.register()
    assert partitions(world) == []


# --- change ---


def test_a_new_dataset_is_asked_for_and_an_evaluated_one_is_not(world):
    world.folder("photos", PHOTOS[:4])
    world.write("  photos: {source: photos}")
    assert world.asked() == []  # not a partition yet
    world.register()
    assert world.asked() == ["photos"]
    assert world.run("photos").success
    assert world.asked() == []
    world.cursor = None  # a lost cursor does not matter
    assert world.asked() == []


def test_a_datasets_tags_stand_on_its_runs(world):
    world.folder("photos", PHOTOS[:4])
    world.write("  photos: {source: photos, tags: {team: vision}}")
    world.register()
    [request] = world.look().run_requests
    assert request.tags["visdiv/team"] == "vision"


def test_a_copy_in_progress_is_waited_for(world, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("visdiv_assets.defs.sensors.time.time", lambda: now)
    folder = world.folder("photos", PHOTOS[:3])
    world.write("  photos: {source: photos}", settle_seconds="60")
    world.register()
    asked = []
    for photo in PHOTOS[3:8]:
        asked += world.asked()
        shutil.copy(photo, folder)
        now += 59
    assert asked == []
    assert world.asked() == []
    now += 60
    assert world.asked() == ["photos"]


def test_a_change_is_asked_for_again_after_a_pause_whatever_became_of_its_run(world, monkeypatch):
    now = 1e9
    monkeypatch.setattr("visdiv_assets.defs.sensors.time.time", lambda: now)
    world.folder("photos", PHOTOS[:3])
    world.write("  photos: {source: photos}")
    world.register()
    keys = []
    for minute in range(8):  # the run fails at launch, dies after listing, or is never begun
        now = 1e9 + 60 * minute
        keys += [request.run_key for request in world.look().run_requests or []]
    assert len(set(keys)) == len(keys) == 4  # once more at once, after a minute, after five more
    assert world.run("photos").success
    now += 86400
    assert world.asked() == []


def test_a_source_that_cannot_be_listed_is_skipped_with_a_reason(world):
    world.folder("fine", PHOTOS[:3])
    world.write("  gone: {source: gone}\n  fine: {source: fine}")
    world.register()
    assert world.asked() == ["fine"]
    world.run("fine")
    result = world.look()
    assert not result.run_requests
    assert "gone: no such file or directory:" in result.skip_reason.skip_message


def test_unwatched_datasets_and_those_under_way_are_left_alone(world):
    world.folder("photos", PHOTOS[:3])
    world.write("  a: {source: photos, watch: false}\n  b: {source: photos}")
    world.register()
    tags = {"dagster/partition": "b"}
    status = dg.DagsterRunStatus.STARTED
    run = dg.DagsterRun(job_name="evaluate_dataset", tags=tags, status=status)
    world.instance.add_run(run)
    assert world.asked() == []


def test_one_source_that_hangs_costs_no_other_its_turn(world, monkeypatch):
    monkeypatch.setattr("visdiv_assets.defs.sensors.LOOKING_SECONDS", 0.5)
    world.folder("photos", PHOTOS[:3])
    with hanging(1) as ([port], _):
        rest = "\n".join(f"  d{number}: {{source: photos}}" for number in range(4))
        world.write(f"  a: {{source: 'http://127.0.0.1:{port}/x.tar'}}\n{rest}")
        world.register()
        seen: list[str] = []
        while len(seen) < 4:
            seen += world.asked()
    assert sorted(seen) == ["d0", "d1", "d2", "d3"]


# --- nightly ---


def nightly(world: World, at: datetime):
    with dg.build_schedule_context(
        instance=world.instance,
        scheduled_execution_time=at,
        resources={"settings": world.settings},
    ) as context:
        return nightly_reevaluation(context)


def compare(world: World, at: datetime) -> dg.RunRequest | dg.SkipReason:
    with dg.build_schedule_context(
        instance=world.instance,
        scheduled_execution_time=at,
        resources={"settings": world.settings},
    ) as context:
        return nightly_comparison(context)


def test_every_night_asks_for_each_scheduled_dataset_once(world):
    world.write(
        "  a: {source: a}\n  b: {source: b}\n  c: {source: c, schedule: false}",
        nightly="{time: '02:00', timezone: Europe/Berlin}",
    )
    world.register()
    midnight = datetime(2026, 1, 10, tzinfo=UTC)
    asked = []
    for quarter in (day * 96 + tick for day in range(2) for tick in range(16)):
        result = nightly(world, midnight + timedelta(minutes=15 * quarter))
        if not isinstance(result, dg.SkipReason):
            asked += [(request.partition_key, request.run_key) for request in result]
    assert asked == [
        ("a", "nightly:a:2026-01-10"),
        ("b", "nightly:b:2026-01-10"),
        ("a", "nightly:a:2026-01-11"),
        ("b", "nightly:b:2026-01-11"),
    ]


def test_a_night_that_was_missed_is_made_up_for(world):
    world.write("  a: {source: a}\n  b: {source: b}")
    world.register()
    tags = {"dagster/partition": "b"}
    busy = dg.DagsterRun(job_name="evaluate_dataset", tags=tags, status=dg.DagsterRunStatus.STARTED)
    world.instance.add_run(busy)
    # The machine was off from ten to two till twenty past.
    [request] = nightly(world, datetime(2026, 1, 10, 2, 30, tzinfo=UTC))
    assert request.run_key == "nightly:a:2026-01-10"
    assert request.tags["visdiv/night"] == "2026-01-10"
    world.instance.report_run_canceled(busy)
    [request] = nightly(world, datetime(2026, 1, 10, 8, 0, tzinfo=UTC))
    assert request.run_key == "nightly:b:2026-01-10"
    assert isinstance(nightly(world, datetime(2026, 1, 10, 8, 15, tzinfo=UTC)), dg.SkipReason)


def test_the_comparison_comes_two_hours_later_once_a_night_and_late_if_it_must(world):
    world.write("  a: {source: a}")
    world.register()

    assert isinstance(compare(world, datetime(2026, 1, 10, 3, 45, tzinfo=UTC)), dg.SkipReason)
    request = compare(world, datetime(2026, 1, 10, 9, 0, tzinfo=UTC))
    assert request.run_key == "comparison:2026-01-10"
    assert isinstance(compare(world, datetime(2026, 1, 10, 9, 15, tzinfo=UTC)), dg.SkipReason)


def test_nothing_is_compared_on_the_day_on_which_the_first_dataset_was_registered(world):
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    world.write("  a: {source: a}", nightly="{time: '00:00'}")
    world.register()
    today = compare(world, midnight + timedelta(hours=23, minutes=45))
    tomorrow = compare(world, midnight + timedelta(hours=26))
    assert isinstance(today, dg.SkipReason)
    assert isinstance(tomorrow, dg.RunRequest)


def test_a_nightly_run_over_unchanged_images_embeds_none_and_its_checks_run_with_it(world):
    world.folder("photos", PHOTOS[:6])
    world.write("  photos: {source: photos}")
    world.register()
    for expected in (6, 0):
        result = world.run("photos")
        [event] = result.asset_materializations_for_node("sscd_embeddings")
        assert event.metadata["newly embedded"].value == expected
        assert len(result.get_asset_check_evaluations()) == 11


def test_a_run_keeps_to_the_images_that_it_listed_while_another_run_goes_by(world, monkeypatch):
    world.folder("photos", PHOTOS[:4])
    world.write("  photos: {source: photos}")
    world.register()
    inner = []

    def another_run_comes_first(*arguments, **options):
        monkeypatch.undo()
        world.folder("photos", PHOTOS[4:6])
        inner.append(world.run("photos"))
        return embed_dataset(*arguments, **options)

    monkeypatch.setattr(embed_module, "embed_dataset", another_run_comes_first)
    outer = world.run("photos")
    assert [each.success for each in (*inner, outer)] == [True, True]
    assert [each.n_images for each in world.results().history("photos")] == [6, 4]


def test_a_change_is_still_seen_when_the_run_for_it_died_after_listing(world, monkeypatch):
    world.folder("photos", PHOTOS[:4])
    world.write("  photos: {source: photos}")
    world.register()
    assert world.run("photos").success
    world.folder("photos", PHOTOS[4:6])

    def die(*arguments, **options):
        raise VisdivError("out of memory")

    monkeypatch.setattr(embed_module, "embed_dataset", die)
    assert not world.run("photos").success
    assert world.asked() == ["photos"]


def test_one_step_alone_works_on_what_was_listed_last(world):
    world.folder("photos", PHOTOS[:4])
    world.write("  photos: {source: photos}")
    world.register()
    for assets in (["image_manifest"], ["sscd_embeddings"], ["embedding_moments"], ["*"]):
        selection = [dg.AssetKey(name) for name in assets if name != "*"] or None
        result = world.job.execute_in_process(
            partition_key="photos", instance=world.instance, asset_selection=selection
        )
        assert result.success
    assert world.results().history("photos")[0].n_images == 4


@pytest.mark.slow
def test_a_nightly_run_over_a_thousand_unchanged_images_embeds_none(world):
    write_images(world.folder("photos", []), 1000)
    world.write("  photos: {source: photos}")
    world.register()
    for expected in (1000, 0):
        result = world.run("photos")
        [event] = result.asset_materializations_for_node("sscd_embeddings")
        assert event.metadata["newly embedded"].value == expected
        assert event.metadata["images"].value == 1000


# --- checks ---


def test_checks_are_partitioned_and_say_what_to_do(world):
    world.folder("photos", PHOTOS[:6])
    world.write("  photos: {source: photos, threshold: 0.9, basis: plain}")
    world.register()
    result = world.run("photos")
    assert result.success  # a bad dataset is news, not a failed run
    checks = {each.check_name: each for each in result.get_asset_check_evaluations()}
    score = checks["score_above_threshold"]
    assert not score.passed
    assert score.severity == dg.AssetCheckSeverity.ERROR
    assert score.partition == "photos"
    assert "below the threshold 0.90" in score.description
    assert "redundant" in score.description
    measured = {name: value.value for name, value in score.metadata.items()}
    assert measured["score as it is"] == measured["diversity score"]
    told = measured["judged by"], measured["corrected score"]
    assert told == ("score as it is", "too few to tell")
    assert checks["embeddings_valid"].passed
    assert checks["decode_failures"].passed
    assert checks["not_stale"].passed
    assert checks["model_unchanged"].passed
    assert not checks["enough_images"].passed


# --- alerts ---


@pytest.mark.slow
def test_an_alert_goes_out_when_a_dataset_falls_below_and_one_when_it_recovers(world):
    world.folder("photos", PHOTOS[:6])
    with webhook() as hook:
        settings = f"{{urls: ['{hook.url}'], dagster_url: http://dagster.example}}"
        for threshold in ("0.9", "0.9", "0.0", "0.0"):
            source = f"  photos: {{source: photos, threshold: {threshold}, basis: plain}}"
            world.write(source, alerts=settings)
            world.register()
            assert world.run("photos").success
            world.alert()
            world.alert()
        assert hook.titles == [
            "visdiv: photos fell below its threshold",
            "visdiv: photos has recovered",
        ]
        assert "http://dagster.example/runs/" in hook.received[0]["message"]


def test_a_stale_dataset_is_told_and_its_check_fails_in_the_ui(world, monkeypatch):
    world.folder("photos", PHOTOS[:4])
    with webhook() as hook:
        world.write("  photos: {source: photos, threshold: 0}", alerts=f"{{urls: ['{hook.url}']}}")
        world.register()
        assert world.run("photos").success

        class Later(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.now(tz) + timedelta(hours=27)

        monkeypatch.setattr("visdiv_assets.defs.sensors.datetime", Later)
        world.alert()
        world.alert()
        monkeypatch.undo()
        world.alert()
        assert hook.titles == ["visdiv: photos has no evaluation of the last 26 hours"]
    records = world.instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(dg.AssetKey("diversity_metrics"), "not_stale"), limit=1
    )
    evaluation = records[0].event.dagster_event.asset_check_evaluation_data
    assert (evaluation.passed, evaluation.partition) == (False, "photos")


def test_without_alert_urls_nothing_is_lost(world):
    world.folder("photos", PHOTOS[:4])
    world.write("  photos: {source: photos, threshold: 0.9, basis: plain}")
    world.register()
    world.run("photos")
    assert world.alert() == "the settings name no alert URLs"
    [(alert, deliveries)] = alerts(world.state)
    assert (alert.condition, deliveries) == ("below_threshold", [])


def test_a_missing_secret_and_a_bad_url_are_named_and_keep_nobody_else_waiting(world):
    world.folder("photos", PHOTOS[:4])
    with webhook() as hook:
        urls = f"['${{NO_SUCH_SECRET}}', 'nonsense://s3cret', '{hook.url}']"
        rule = "{source: photos, threshold: 0.9, basis: plain}"
        world.write(f"  photos: {rule}", alerts=f"{{urls: {urls}}}")
        world.register()
        world.run("photos")
        said = world.alert()
        assert hook.titles == ["visdiv: photos fell below its threshold"]
    assert "1 to JSON (" in said
    assert "NO_SUCH_SECRET" in said
    assert "'nonsense'" in said
    assert "s3cret" not in said


# --- failed runs ---


def noted(world: World, cursor: str = "0 0.0") -> dg.SensorResult | dg.SkipReason:
    """What the sensor does about the runs that have failed after the cursor."""
    with dg.build_sensor_context(
        instance=world.instance,
        cursor=cursor,
        resources={"settings": world.settings, "warehouse": world.warehouse},
    ) as context:
        return failed_run_sensor(context)


def conditions(world: World) -> list[tuple[str, bool]]:
    return [(alert.condition, alert.began) for alert, _ in reversed(alerts(world.state))]


def analyze(world: World, dataset: str) -> dg.ExecuteInProcessResult:
    overrides = {"settings": world.settings, "embedder": CheapEmbedder(settings=world.settings)}
    job = build_defs(resource_overrides=overrides).resolve_job_def("analyze_dataset")
    return job.execute_in_process(
        partition_key=dataset,
        instance=world.instance,
        raise_on_error=False,
        asset_selection=[dg.AssetKey("near_duplicates")],
    )


def test_a_failed_evaluation_is_told_and_a_failed_analysis_as_what_it_is(world):
    world.folder("photos", PHOTOS[:4])
    world.write("  photos: {source: photos}")
    world.register()
    failed = analyze(world, "photos")  # it was never evaluated
    assert not failed.success
    cursor = noted(world).cursor
    assert conditions(world) == [("not_analyzed", True)]
    shutil.rmtree(world.root / "photos")
    assert not world.run("photos").success
    assert noted(world, cursor).cursor != cursor
    assert conditions(world)[1:] == [("not_evaluated", True)]


def test_a_failure_that_is_told_late_is_no_news_if_the_next_run_succeeded(world):
    world.write("  photos: {source: photos}")
    world.register()
    assert not world.run("photos").success
    world.folder("photos", PHOTOS[:4])
    assert world.run("photos").success
    noted(world)
    assert conditions(world) == []


def test_a_failed_run_that_is_tried_again_is_not_told(world):
    world.write("  photos: {source: photos}")
    world.register()
    failed = world.run("photos")
    again = {"dagster/will_retry": "true", "dagster/auto_retry_run_id": "another"}
    world.instance.add_run_tags(failed.run_id, again)
    assert "tried again" in noted(world).skip_reason.skip_message
    assert conditions(world) == []


def test_a_failure_that_cannot_be_noted_is_noted_later(world, monkeypatch):
    world.write("  photos: {source: photos}")
    world.register()
    assert not world.run("photos").success

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("visdiv_assets.defs.sensors.note_failure", full)
        with pytest.raises(dg.Failure, match="No space left on device"):
            noted(world)
    noted(world)  # a tick that fails leaves the cursor where it was
    assert conditions(world) == [("not_evaluated", True)]


@pytest.mark.parametrize("tags", [{}, {"dagster/will_retry": "true"}])
def test_a_failure_is_not_told_before_it_is_known_whether_the_run_is_tried_again(
    world, monkeypatch, tags
):
    world.write("  photos: {source: photos}")
    world.register()
    world.instance.add_run_tags(world.run("photos").run_id, tags)
    monkeypatch.setattr(type(world.instance), "run_retries_enabled", True)
    assert noted(world).cursor == "0 0.0"
    assert conditions(world) == []
    monkeypatch.setattr("visdiv_assets.defs.sensors.UNDECIDED_FOR", 0.0)
    noted(world)
    assert conditions(world) == [("not_evaluated", True)]


def test_a_run_of_which_nothing_can_be_said_stops_no_other(world, monkeypatch):
    world.write("  photos: {source: photos}\n  cats: {source: cats}")
    world.register()
    for name in ("photos", "cats"):
        assert not world.run(name).success
    note = sensors.note_failure

    def odd(dataset: str, reason: str, *rest: object, **others: object) -> None:
        if dataset == "photos":
            raise LookupError("odd")
        note(dataset, "half a character: \udcff", *rest, **others)

    monkeypatch.setattr(sensors, "note_failure", odd)
    assert "LookupError: odd" in noted(world).skip_reason.skip_message
    [(alert, _)] = alerts(world.state)
    assert (alert.dataset, alert.condition) == ("cats", "not_evaluated")


def test_a_failure_is_told_though_the_one_before_was_deleted(world):
    world.write("  photos: {source: photos}")
    world.register()
    first = world.run("photos")
    cursor = noted(world).cursor
    world.folder("photos", PHOTOS[:4])
    assert world.run("photos").success
    world.instance.delete_run(first.run_id)
    shutil.rmtree(world.root / "photos")
    assert not world.run("photos").success
    noted(world, cursor)
    assert conditions(world) == [
        ("not_evaluated", True),
        ("not_evaluated", False),
        ("not_evaluated", True),
    ]


def test_failures_from_before_the_service_began_are_no_news(world):
    world.write("  photos: {source: photos}")
    world.register()
    assert not world.run("photos").success
    of_another_kind_of_sensor = '{"__class__": "RunStatusSensorCursor", "record_id": 1}'
    for cursor in ("", of_another_kind_of_sensor):
        begun = noted(world, cursor).cursor
        assert noted(world, begun).cursor == begun
    assert conditions(world) == []
    assert not world.run("photos").success
    noted(world, begun)
    assert conditions(world) == [("not_evaluated", True)]


def test_a_failure_of_an_earlier_dataset_of_that_name_is_no_news(world):
    world.write("  photos: {source: photos}")
    world.register()
    assert not world.run("photos").success
    unregister(world.state, "photos", datetime.now(UTC))
    register(world.state, ["photos"], datetime.now(UTC))
    assert "an earlier dataset of that name" in noted(world).skip_reason.skip_message
    assert conditions(world) == []


def test_somebody_who_writes_to_the_results_does_not_stop_alerts(world):
    world.folder("photos", PHOTOS[:4])
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print(1, flush=True); input()"
    with webhook() as hook:
        rule = "{source: photos, threshold: 0.9, basis: plain}"
        world.write(f"  photos: {rule}", alerts=f"{{urls: ['{hook.url}']}}")
        world.register()
        assert world.run("photos").success
        with subprocess.Popen(
            [sys.executable, "-c", code, str(world.results().path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as notebook:
            notebook.stdout.readline()
            said = world.alert()
            notebook.communicate(b"\n")
        assert hook.titles == ["visdiv: photos fell below its threshold"]
        assert "new evaluations are judged later: another program has" in said
