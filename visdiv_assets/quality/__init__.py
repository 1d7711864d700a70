"""Judging an evaluation: what was measured, against which limit, and what to do about it.

Not here: reading evaluations, Dagster's checks, sending alerts. Decisions are pure functions.
Start at `verdicts.py` for checks, or at `conditions.py` for what raises an alert.
"""
