"""Judging an evaluation: what is measured, against what, and what to do about it.

Here: decisions as pure functions. Not here: reading evaluations, Dagster's checks, alerts.
"""
