"""What is recorded in databases: results in DuckDB, and the service's state in SQLite.

Here: schemas, migrations, writes and reads; all SQL. Not here: computing the results; embeddings
and moments, which are files (`store/`).
Start at `warehouse.py`; `migrations/` holds the schema. `state/` is what nobody queries.
"""
