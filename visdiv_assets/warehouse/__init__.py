"""Results in DuckDB: schema, migrations, writes and reads. All SQL is here.

Not here: computing the results; embeddings and moments, which are files (`store/`).
Start at `warehouse.py`; `migrations/` holds the schema.
"""
