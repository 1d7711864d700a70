"""What embeddings say about pairs of images: core-sets, and near-duplicates when they come.

Here: functions of embedding matrices. Not here: files, images, Dagster.
"""
