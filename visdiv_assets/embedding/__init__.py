"""Bytes → vectors: decoding, weights, model, runtimes, and the pipeline that runs them at once.

Not here: where images come from (`sources/`), where vectors are kept (`store/`), what they are
good for (`spectral/`, `similarity/`).
Start at `embedder.py` for one batch, at `pipeline.py` for a whole dataset.
"""
