"""What starting costs: importing, scoring 200 cached images, loading Dagster's definitions.

    .venv/bin/python -m benchmarks.startup [--rounds 5]

Whole processes, from start to exit, beside a Python that does nothing. Modules are compiled before
(one run that does not count), as after an installation. Then the same evaluation of the demo
photographs, all cached, called as functions and through Dagster, both as processes and inside one.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.made_up import machine, seconds, told

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "examples" / "demo" / "photos"
HEAVY = ("torch", "pandas", "dagster", "onnxruntime")
ASSETS = "image_manifest,sscd_embeddings,embedding_moments,diversity_metrics"

INSIDE = """
import sys, time
from pathlib import Path
import dagster as dg
from visdiv_assets.definitions import build_defs
from visdiv_assets.defs.resources import SettingsResource
from visdiv_assets.embedding.embedder import SSCDEmbedder
from visdiv_assets.store.store import Store
from visdiv_assets.workflows.evaluate import evaluate
from visdiv_assets.settings.reading import load_settings
from visdiv_assets.sources.opening import open_source
from visdiv_assets.warehouse.warehouse import Warehouse

settings = load_settings(Path(sys.argv[1]))
quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}

def functions():
    store = Store(settings.store)
    source = open_source(settings.dataset("photos").source)
    evaluate("photos", source, SSCDEmbedder(), store, Warehouse(settings.store / "visdiv.duckdb"))

def dagster():
    resource = SettingsResource(config_path=sys.argv[1])
    job = build_defs(resource_overrides={"settings": resource}).resolve_job_def("evaluate_dataset")
    with dg.DagsterInstance.get() as instance:
        done = job.execute_in_process(
            partition_key="photos", instance=instance, run_config=quiet
        )
        assert done.success

for work in (functions, dagster):
    work()
for _ in range(int(sys.argv[2])):
    for work in (functions, dagster):
        started = time.perf_counter()
        work()
        print(work.__name__, time.perf_counter() - started)
"""

REGISTER = """
import dagster as dg
with dg.DagsterInstance.get() as instance:
    instance.add_dynamic_partitions("datasets", ["photos"])
"""


def main() -> None:
    """Measure in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        settings = home / "visdiv.yaml"
        settings.write_text(f"store: store\ndatasets:\n  photos: {{source: {PHOTOS}}}\n")
        (home / "dagster").mkdir()
        (home / "dagster/dagster.yaml").write_text("telemetry: {enabled: false}\n")
        environment = {
            **os.environ,
            "DAGSTER_HOME": str(home / "dagster"),
            "VISDIV_CONFIG": str(settings),
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": str(home / "bytecode"),
        }

        def run(*arguments: str) -> str:
            done = subprocess.run(  # noqa: S603
                [sys.executable, *arguments],
                check=True,
                capture_output=True,
                text=True,
                env=environment,
                cwd=ROOT,
            )
            return done.stdout

        run("-c", REGISTER)
        cli, dagster = ("-m", "visdiv_assets.cli.main"), ("-m", "dagster")
        module = ("-m", "visdiv_assets.definitions")
        commands = {
            "python -c pass": ("-c", "pass"),
            "import visdiv_assets": ("-c", "import visdiv_assets"),
            "visdiv --version": (*cli, "--version"),
            "visdiv score, 213 cached": (*cli, "score", "photos"),
            "dagster definitions validate": (*dagster, "definitions", "validate", *module),
            "dagster asset materialize": (
                *(*dagster, "asset", "materialize", "--select", ASSETS),
                *("--partition", "photos", *module),
            ),
        }
        for command in commands.values():
            run(*command)
        found: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                found[name].append(seconds(lambda command=command: run(*command)))  # type: ignore[misc]
        for name, measured in found.items():
            print(f"{name:<30}{told(measured)}")
        loaded = run("-c", "import sys, visdiv_assets; print(*sys.modules)").split()
        print(
            "import visdiv_assets loads:", ", ".join(set(HEAVY) & set(loaded)) or "none of", HEAVY
        )
        inside: dict[str, list[float]] = {"functions": [], "dagster": []}
        for line in run("-c", INSIDE, str(settings), str(rounds)).splitlines():
            name, measured = line.split()
            inside[name].append(float(measured))
    for name, measured in inside.items():
        print(f"{'in one process, ' + name:<30}{told(measured)}")
    medians = {name: statistics.median(each) for name, each in {**found, **inside}.items()}
    processes = medians["dagster asset materialize"] - medians["visdiv score, 213 cached"]
    print(
        f"Dagster costs {processes:.1f} s as a process of its own, "
        f"{medians['dagster'] - medians['functions']:.1f} s in one that runs already"
    )


if __name__ == "__main__":
    main()
