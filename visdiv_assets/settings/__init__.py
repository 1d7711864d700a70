"""`visdiv.yaml`: what can be set, reading it, editing it.

Not here: what settings do; nothing in this folder opens a source, a store or a model.
Start at `model.py`, which lists every setting.
"""
