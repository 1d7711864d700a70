"""The demo: two small datasets, materialised through Dagster as any other.

Here: rendering the tracking frames, and running the job `evaluate_dataset` for both datasets.
Not here: what the job does, how results are printed (`cli.py`).
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
from PIL import Image, ImageDraw

from visdiv_assets.cli.home import dagster_home
from visdiv_assets.definitions import build_defs
from visdiv_assets.defs.jobs import evaluate_dataset
from visdiv_assets.defs.partitions import datasets
from visdiv_assets.defs.resources import SettingsResource
from visdiv_assets.errors import VisdivError
from visdiv_assets.settings.reading import load_settings

PHOTOS, TRACKING = "demo_photos", "demo_tracking"
BACKGROUNDS = ("beach3.jpg", "city5.jpg", "mountain3.jpg")
FRAMES_PER_BACKGROUND = 100


def render_tracking_frames(photos: Path, target: Path) -> int:
    """Render what a tracking dataset looks like: a small object over a fixed background.

    Three photographs, 100 frames each; frames that are there already are left alone.

    Args:
        photos: the folder of the demo photographs.
        target: where to write `<background>/<frame>.jpg`.

    Returns:
        how many frames were rendered.
    """
    rendered = 0
    for name in BACKGROUNDS:
        folder = target / Path(name).stem
        folder.mkdir(parents=True, exist_ok=True)
        with Image.open(photos / name) as photograph:
            background = photograph.convert("RGB")
        for frame in range(FRAMES_PER_BACKGROUND):
            path = folder / f"{frame:03}.jpg"
            if path.exists():
                continue
            partial = path.with_suffix(".part")
            _draw_ball(background.copy(), frame / FRAMES_PER_BACKGROUND).save(
                partial, "JPEG", quality=92
            )
            partial.replace(path)
            rendered += 1
    return rendered


def _draw_ball(picture: Image.Image, time: float) -> Image.Image:
    """A ball that bounces along the lower part of the picture; `time` runs from 0 to 1."""
    radius = picture.width / 40
    x = radius + time * (picture.width - 2 * radius)
    y = picture.height * (0.8 - 0.25 * abs(math.sin(3 * math.pi * time)))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(214, 60, 40))
    gleam = radius / 3
    draw.ellipse((x - 2 * gleam, y - 2 * gleam, x - gleam, y - gleam), fill=(255, 214, 200))
    return picture


def run_demo(settings_file: Path) -> Iterator[str]:
    """Materialise both demo datasets, one run each.

    Args:
        settings_file: must register both datasets; `dagster.yaml` is in its folder.

    Yields:
        the name of each dataset before its run begins.

    Raises:
        VisdivError: the demo's files are not there, or a run fails.
    """
    settings = load_settings(settings_file)
    photos = Path(settings.dataset(PHOTOS).source.uri)
    if not all((photos / name).is_file() for name in BACKGROUNDS):
        raise VisdivError(
            f"the demo photographs are not in {photos}; run the demo in a checkout of the project"
        )
    render_tracking_frames(photos, Path(settings.dataset(TRACKING).source.uri))
    resource = SettingsResource(config_path=str(settings_file.absolute()))
    job = build_defs(resource_overrides={"settings": resource}).resolve_job_def(
        evaluate_dataset.name
    )
    with _instance(settings_file.absolute().parent) as instance:
        instance.add_dynamic_partitions(datasets.name or "", [PHOTOS, TRACKING])
        for name in (PHOTOS, TRACKING):
            yield name
            result = job.execute_in_process(
                partition_key=name,
                instance=instance,
                raise_on_error=False,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
            if not result.success:
                raise _failure(name, result)


def _failure(name: str, result: dg.ExecuteInProcessResult) -> BaseException:
    """Why a run failed, in one sentence where it is known; Dagster takes Ctrl-C for a failure."""
    [event, *_] = result.filter_events(lambda event: event.is_step_failure)
    error, failure = event.step_failure_data.error, event.step_failure_data.user_failure_data
    if error and error.cls_name == "DagsterExecutionInterruptedError":
        return KeyboardInterrupt()
    reason = failure.description if failure else error and error.to_string()
    return VisdivError(f"the run {result.run_id} of {name} failed: {reason}")


@contextlib.contextmanager
def _instance(folder: Path) -> Iterator[dg.DagsterInstance]:
    """The instance that `make dev`, started in `folder`, uses too, whatever else there is."""
    with dg.DagsterInstance.from_config(str(dagster_home(folder))) as instance:
        yield instance
