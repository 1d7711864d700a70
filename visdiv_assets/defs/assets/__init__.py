"""The asset graph: one module for each Dagster group, named like the group.

Not here: checks, jobs and resources, one folder up.
Start at `ingest.py` → `embed.py` → `score.py`, the chain that ends in a score.
"""
