"""Pictures of results.

Here: charts and image sheets as bytes. Not here: computing what they show, where they appear.
"""
