"""`visdiv plan`, `embed` and `merge`, with the real model; and the scripts in examples/workers."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from visdiv_assets.store.store import Store

ROOT = Path(__file__).parents[2]
PHOTOS = sorted((ROOT / "examples/demo/photos").glob("*.jpg"))
COMMANDS = Path(sys.executable).parent
WORKERS = ROOT / "examples/workers"

SETTINGS = """
store: store
datasets:
  photos: {source: photos}
  sampled: {source: photos, sample: {precision: 0.1}}
"""


@pytest.fixture
def photos(project_folder):
    """A folder with eight photographs, and the settings of a dataset that is there."""
    folder = project_folder / "photos"
    folder.mkdir()
    for path in PHOTOS[:8]:
        shutil.copy(path, folder)
    return folder


def run(command, folder, **environment):
    """A program, with `visdiv` on its path and a store of its own."""
    path = f"{COMMANDS}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "VISDIV_STORE": str(folder / "store"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_dataset_is_planned_embedded_in_shares_and_merged(photos, visdiv):
    told = visdiv("plan", "photos", "--images", "3").stdout
    assert "photos: 8 images, of which 8 are to be embedded, in 3 units" in told
    assert "visdiv embed photos --units K/N" in told
    told = visdiv("merge", "photos", code=1).stderr
    assert told.startswith("error: 3 of 3 units of photos are not embedded yet (1, 2, 3); run `vis")
    assert (
        "photos: 1 unit embedded, 3 new images\n"
        in visdiv("embed", "photos", "--units", "2/3").stdout
    )
    told = visdiv("embed", "photos").stdout
    assert "photos: 2 units embedded, 1 already there, 5 new images\n" in told
    merged = json.loads(visdiv("merge", "photos", "--json").stdout)
    assert merged["n_images"] == 8
    scored = json.loads(visdiv("score", "photos", "--json").stdout)
    assert scored["score"] == merged["score"]
    assert json.loads(visdiv("plan", "photos", "--json").stdout)["units"] == 0


def test_wrong_shares_and_missing_plans_are_one_sentence(photos, visdiv):
    assert visdiv("embed", "photos", code=1).stderr == (
        "error: there is no plan of photos; run `visdiv plan photos`\n"
    )
    visdiv("plan", "photos")
    told = visdiv("embed", "photos", "--units", "0/3", code=1).stderr
    assert told == "error: '0/3' is no share of the units; for the third of 64, write 3/64\n"
    told = visdiv("plan", "sampled", code=1).stderr
    assert told.startswith("error: sampled is scored from a sample, which one process embeds; to ")


def test_the_script_for_one_machine_runs_and_goes_on(photos, project_folder):
    told = run([WORKERS / "two_processes.sh", "photos"], project_folder)
    assert told.returncode == 0, told.stderr
    assert "photos" in told.stdout
    assert "8" in told.stdout
    store = Store(project_folder / "store")
    [model_id] = store.model_ids()
    keys = [store.segment_keys(model_id, name)[0] for name in store.segment_names(model_id)]
    assert sum(map(len, keys)) == 8


def test_the_script_ends_its_processes_with_itself(photos, project_folder):
    for number in range(40):
        for path in PHOTOS[:8]:
            data = path.read_bytes()
            (photos / f"{number}{path.name}").write_bytes(
                data[:-2] + number.to_bytes(2) + data[-2:]
            )
    environment = {
        **os.environ,
        "PATH": f"{COMMANDS}{os.pathsep}{os.environ['PATH']}",
        "VISDIV_STORE": str(project_folder / "store"),
    }
    # Whoever runs the tests, or another test, may ignore signals, and a shell can't trap those.
    script = subprocess.Popen(
        ["env", "--default-signal=INT,TERM", WORKERS / "two_processes.sh", "photos"],
        cwd=project_folder,
        env=environment,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while sum(b"--units" in command for command in _in_session(script.pid)) < 2:
        assert script.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(script.pid, signal.SIGINT)  # as a terminal does
    assert script.wait(60) == 130
    assert not any(b"visdiv" in command for command in _in_session(script.pid))


def _in_session(leader):
    """The command lines of the processes that are in its session."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if fields[3] == str(leader) and fields[0] != "Z":
                found.append((path / "cmdline").read_bytes())
    return found


def test_a_job_of_slurm_takes_its_share(photos, project_folder):
    assert run(["visdiv", "plan", "photos", "--images", "1"], project_folder).returncode == 0
    told = run(
        ["bash", WORKERS / "slurm.sbatch", "photos"], project_folder, SLURM_ARRAY_TASK_ID="2"
    )
    assert (told.returncode, told.stdout) == (0, "photos: 1 unit embedded, 1 new image\n")


def test_the_job_for_kubernetes_gives_each_pod_its_share(photos, project_folder):
    job = yaml.safe_load((WORKERS / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    kubernetes_validate.validate(job, "1.33", strict=True)
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"]) == ("Indexed", 64)
    [container] = spec["template"]["spec"]["containers"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert run(["visdiv", "plan", "photos", "--images", "1"], project_folder).returncode == 0
    command = [*container["command"], *container["args"]]
    told = run(command, project_folder, JOB_COMPLETION_INDEX="5")
    assert (told.returncode, told.stdout) == (0, "photos: 1 unit embedded, 1 new image\n")
    told = run(command, project_folder, JOB_COMPLETION_INDEX="63")
    assert (told.returncode, told.stdout) == (0, "photos: 0 units embedded, 0 new images\n")


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_again_and_again_loses_no_unit(photos, project_folder, ending):
    for path in PHOTOS[8:60]:
        shutil.copy(path, photos)
    assert run(["visdiv", "plan", "photos", "--images", "4"], project_folder).returncode == 0
    environment = {**os.environ, "VISDIV_STORE": str(project_folder / "store")}
    results = project_folder / "store/indexes/photos"
    seen = 0
    for _ in range(4):
        process = subprocess.Popen(
            ["env", "--default-signal=TERM", COMMANDS / "visdiv", "embed", "photos"],
            cwd=project_folder,
            env=environment,
        )
        deadline = time.monotonic() + 120
        while len([*results.rglob("*+*.parquet")]) <= seen and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(ending)
        process.wait()
        now = len([*results.rglob("*+*.parquet")])
        assert now > seen or now == 15
        seen = now
    assert run(["visdiv", "embed", "photos"], project_folder).returncode == 0
    told = run(["visdiv", "merge", "photos", "--json"], project_folder)
    assert told.returncode == 0, told.stderr
    alone = run(
        ["visdiv", "score", "photos", "--json"],
        project_folder,
        VISDIV_STORE=str(project_folder / "alone"),
    )
    scores = [json.loads(each.stdout) for each in (told, alone)]
    for each in scores:
        for name in ("evaluated_at", "evaluation_id", "seconds", "left_out", "number"):
            each.pop(name, None)
    assert scores[0] == scores[1]
