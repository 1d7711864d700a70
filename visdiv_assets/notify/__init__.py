"""Notifications: the text of alerts, and their delivery through Apprise.

Not here: which changes raise an alert (`quality/`), and the outbox of alerts (`warehouse/`).
Start at `delivery.py`.
"""
