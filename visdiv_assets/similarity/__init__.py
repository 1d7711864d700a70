"""What embeddings say about pairs of images: core-sets and near-duplicates.

Here: functions of embedding matrices. Not here: files, images, Dagster.
"""
