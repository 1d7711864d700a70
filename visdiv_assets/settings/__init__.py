"""`visdiv.yaml`: its settings, reading it, editing it, and what holds while it is broken.

Not here: what the settings do; nothing in this folder opens a source, a store or a model.
Start at `model.py`, which lists every setting.
"""
