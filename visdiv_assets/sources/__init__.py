"""Where images are: one module for each way of storing them.

Not here: decoding and embedding. A source lists images and reads their bytes.
Start at `source.py`, the protocol; `opening.py` chooses the source for a URI.
"""
