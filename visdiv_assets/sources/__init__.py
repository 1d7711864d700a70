"""Where images are: one module per way of storing them.

Here: listing a source and reading an image's bytes. Not here: decoding, embeddings, Dagster.
"""
