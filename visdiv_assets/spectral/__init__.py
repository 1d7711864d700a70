"""Vectors → moments → spectrum → score: the mathematics of the diversity score.

Not here: files, images, models, Dagster. Pure functions of NumPy arrays; NumPy and SciPy only.
Start at `score.py` for the published score, or at `corrected.py` for the size-corrected one.
"""
