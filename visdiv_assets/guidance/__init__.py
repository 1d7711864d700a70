"""What drives a score: slices, comparison, mixtures, drift, axes, augmentations.

Not here: reading the store. Everything is a pure function of moments, samples and embeddings.
Start at the module named like the command: `mixtures.py` for `visdiv mix`.
"""
