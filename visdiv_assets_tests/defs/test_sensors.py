"""Sensors, schedule and checks on Dagster's real SQLite storage."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from visdiv_assets import VisdivError
from visdiv_assets.definitions import build_defs
from visdiv_assets.defs.assets import embed as embed_module
from visdiv_assets.defs.resources import (
    SettingsResource,
    StoreResource,
    WarehouseResource,
)
from visdiv_assets.defs.schedules import nightly_reevaluation
from visdiv_assets.defs.sensors import (
    alert_sensor,
    dataset_change_sensor,
    dataset_registry_sensor,
)
from visdiv_assets.warehouse.warehouse import Warehouse
from visdiv_assets.workflows.evaluate import embed_dataset
from visdiv_assets_tests.defs.conftest import CheapEmbedder
from visdiv_assets_tests.embedding.fakes import write_images
from visdiv_assets_tests.notify.receivers import webhook

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


def test_broken_settings_change_nothing(world):
    world.write("  a: {source: a}")
    world.register()
    (world.root / "visdiv.yaml").write_text("datasets: [")
    skipped = world.register()
    assert isinstance(skipped, dg.SkipReason)
    assert "not a valid YAML file" in skipped.skip_message
    assert partitions(world) == ["a"]


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


def test_the_same_change_has_the_same_run_key_so_a_failing_run_is_not_repeated(world):
    world.folder("photos", PHOTOS[:3])
    world.write("  photos: {source: photos}")
    world.register()
    first, second = (world.look().run_requests[0].run_key for _ in range(2))
    assert first == second
    assert world.run("photos").success
    (world.root / "photos" / PHOTOS[0].name).unlink()
    third = world.look().run_requests[0].run_key
    assert world.run("photos").success
    shutil.copy2(PHOTOS[0], world.root / "photos")
    assert world.look().run_requests[0].run_key not in (first, third)


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


def test_when_time_is_short_every_dataset_still_gets_its_turn(world, monkeypatch):
    world.folder("photos", PHOTOS[:3])
    world.write("\n".join(f"  d{number}: {{source: photos}}" for number in range(4)))
    world.register()
    monkeypatch.setattr("visdiv_assets.defs.sensors.TICK_SECONDS", -1.0)
    monkeypatch.setattr("visdiv_assets.defs.sensors.time.monotonic", iter(range(0, 1000)).__next__)
    monkeypatch.setattr("visdiv_assets.defs.sensors.TICK_SECONDS", 1.5)
    seen = [name for _ in range(4) for name in world.asked()]
    assert sorted(seen) == ["d0", "d1", "d2", "d3"]


# --- nightly ---


def nightly(world: World, at: datetime):
    with dg.build_schedule_context(
        instance=world.instance,
        scheduled_execution_time=at,
        resources={"settings": world.settings},
    ) as context:
        return nightly_reevaluation(context)


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


def test_a_nightly_run_over_unchanged_images_embeds_none_and_its_checks_run_with_it(world):
    world.folder("photos", PHOTOS[:6])
    world.write("  photos: {source: photos}")
    world.register()
    for expected in (6, 0):
        result = world.run("photos")
        [event] = result.asset_materializations_for_node("sscd_embeddings")
        assert event.metadata["newly embedded"].value == expected
        assert len(result.get_asset_check_evaluations()) == 9


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
    assert measured["plain score"] == measured["diversity score"]
    assert (measured["judged by"], measured["corrected score"]) == ("plain", "too few to tell")
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
        assert hook.titles == ["visdiv: photos has not been evaluated for more than 26 hours"]
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
    [(alert, targets, delivered, _)] = world.results().alerts()
    assert (alert.condition, targets, delivered) == ("below_threshold", 0, 0)


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
