"""Pairs of similar embeddings, clusters of them, and core-sets.

Not here: files, images, Dagster. Everything is a function of embedding matrices.
Start at `pairs.py` for near-duplicates, or at `coreset.py` for core-sets.
"""
