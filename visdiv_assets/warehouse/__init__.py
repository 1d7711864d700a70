"""Results in DuckDB: schema, migrations, writes, reads. Everything that is SQL.

Not here: computing what is written; embeddings and moments, which are files (`store/`).
Start at `warehouse.py`; `migrations/` holds the schema.
"""
