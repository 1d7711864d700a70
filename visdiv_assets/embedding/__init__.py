"""Bytes → vectors: weights, model, preprocessing, runtimes, pipeline, store.

Here: everything between an encoded image and a row in the store.
Not here: where images come from (`sources/`), what rows are good for (`spectral/`), Dagster.
"""
