"""The files on disk: manifests, embeddings, image indexes, moments.

Not here: scores and findings (`warehouse/`), models, deciding what to embed.
Start at `store.py`, which describes the layout.
"""
