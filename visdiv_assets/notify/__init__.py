"""Telling people: what an alert says, and getting it delivered.

Here: messages, back-off, delivery through Apprise. Not here: which changes are worth an alert
(`quality/`), where alerts wait (`warehouse/`), Dagster's sensor.
"""
