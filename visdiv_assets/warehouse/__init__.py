"""Results in DuckDB: schema, migrations, writes, reads.

Here: everything that is SQL. Not here: computing what is written, embeddings (they are files).
"""
