"""What Dagster assets and commands share: one module a capability, named like its command.

Not here: Dagster, tables for terminals, and mathematics (`spectral/`, `similarity/`, `guidance/`).
Start at `evaluate.py`: one dataset from its source to its score.
"""
