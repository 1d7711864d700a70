"""Vectors → moments → spectrum → score.

Here: the mathematics of the diversity score, as pure functions of NumPy arrays.
Not here: files, images, models, Dagster. NumPy and SciPy only.
"""
