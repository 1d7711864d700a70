"""How long a writer waits when eight processes record evaluations in one DuckDB file at once.

    .venv/bin/python -m benchmarks.concurrent_writers

Each records ten, one after the other without a pause, which is far more than eight runs do.
"""

import itertools
import multiprocessing
import tempfile
import time
from datetime import UTC, datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np

from visdiv_assets.warehouse.records import Evaluation
from visdiv_assets.warehouse.warehouse import Warehouse

WRITERS, EACH = 8, 10


def write(number: int, path: str, start: Barrier) -> list[float]:
    """Record evaluations and return how many seconds each took."""
    warehouse = Warehouse(path)
    start.wait()
    seconds = []
    for count in range(EACH):
        evaluation = Evaluation(
            evaluation_id=f"{number}-{count}",
            dataset=f"set{number}",
            evaluated_at=datetime.now(UTC),
            run_id=None,
            model_id="model",
            n_images=100,
            n_failed=0,
            dimension=512,
            effective_rank=100.0,
            participation_ratio=50.0,
            diversity_score=0.14,
            rating="Very Low",
            stars=1,
            manifest_fingerprint="0",
            seconds=1.0,
        )
        started = time.perf_counter()
        warehouse.record(evaluation, np.ones(512))
        seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Write, and print how long it took and what is there."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Manager() as manager:
        path = str(Path(folder) / "visdiv.duckdb")
        start = manager.Barrier(WRITERS)
        with context.Pool(WRITERS) as pool:
            jobs = [(number, path, start) for number in range(WRITERS)]
            waited = pool.starmap(write, jobs, chunksize=1)
        seconds = sorted(itertools.chain.from_iterable(waited))
        rows = sum(len(Warehouse(path).history(f"set{number}")) for number in range(WRITERS))
    print(f"{WRITERS} processes x {EACH} evaluations at once: {rows} rows in the file")
    print(f"one record: median {seconds[len(seconds) // 2]:.2f} s, longest {seconds[-1]:.2f} s")


if __name__ == "__main__":
    main()
