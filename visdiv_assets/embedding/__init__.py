"""Bytes → vectors: decoding, weights, model, runtimes, and the pipeline that runs them together.

Not here: where images come from (`sources/`), where vectors are stored (`store/`), what they are
used for (`spectral/`, `similarity/`).
Start at `embedder.py` for one batch, at `pipeline.py` for a whole dataset.
"""
