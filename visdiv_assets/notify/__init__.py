"""Telling people: what an alert says, and getting it delivered through Apprise.

Not here: which changes are worth an alert (`quality/`), and where alerts wait (`warehouse/`).
Start at `delivery.py`.
"""
