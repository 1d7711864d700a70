"""What a dataset holds more than once, what of it is in others, and what an image is most like.

Here: what the Dagster assets and the command line share, from store, warehouse and source.
Not here: pairs and clusters of vectors (`similarity/`), drawing (`report/sheets.py`).
"""
