"""Campaigns: many random accidents, and whether anything was lost or wrong without a word.

    python -m visdiv_assets_tests.campaigns.kills     processes are killed, and run again
    python -m visdiv_assets_tests.campaigns.damage    files of a store are damaged, one at a time

Here: what happens in a round, and how it is judged (`kills.py`, `damage.py`); playing rounds and
telling what failed (`rounds.py`); the datasets that they are played with (`datasets.py`); the
processes that are killed (`victim.py`, `location.py`). The tests play a few rounds of each.
Not here: tests of single behaviours, which are in the folder of what they test.
"""
