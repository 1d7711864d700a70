"""What the service remembers from tick to tick: conditions, alerts, deliveries, looks. SQLite.

Not here: evaluations and findings, which people query (`warehouse/`); what counts as a condition
(`quality/`); sending (`notify/`). Start at `database.py`; `migrations/` holds the schema.
"""
