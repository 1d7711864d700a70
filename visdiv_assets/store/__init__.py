"""What is kept on disk: manifests, embeddings, image indexes, moments.

Not here: scores and findings (`warehouse/`), models, and the decision what to embed.
Start at `store.py`, which draws the layout.
"""
