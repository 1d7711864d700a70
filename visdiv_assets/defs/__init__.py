"""Dagster, and nothing else: assets, jobs, partitions, resources. Thin.

Here: fetching inputs, calling one function of the domain packages, reporting metadata.
Not here: any decision or computation.
"""
