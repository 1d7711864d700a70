"""What datasets are to each other, and their parts to them: slices, comparison, mixtures, drift.

Here: pure functions of moments and samples. Not here: reading them from the store, commands.
"""
