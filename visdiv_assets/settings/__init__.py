"""`visdiv.yaml`: its settings, reading it and editing it.

Not here: what the settings do; nothing in this folder opens a source, a store or a model.
Start at `model.py`, which lists every setting.
"""
