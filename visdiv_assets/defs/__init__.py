"""Dagster, and nothing else: assets, checks, jobs, partitions, resources, sensors, schedules.

Not here: any decision or computation. Each object fetches its inputs, calls one function of
`workflows/`, and reports metadata.
Start at `assets/score.py`; `definitions.py`, one folder up, puts everything together.
"""

from visdiv_assets import refuse_windows

refuse_windows()  # before anything is imported that is not there
