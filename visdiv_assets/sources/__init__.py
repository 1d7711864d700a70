"""Sources of images: one module per storage format.

Not here: decoding and embedding. A source lists images and reads their bytes.
Start at `source.py`, the protocol; `opening.py` selects the source for a URI.
"""
