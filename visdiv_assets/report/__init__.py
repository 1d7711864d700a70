"""Pictures of results: charts and contact sheets, as bytes.

Not here: computing what they show, and deciding where they appear.
Start at `charts.py` or `sheets.py`.
"""
