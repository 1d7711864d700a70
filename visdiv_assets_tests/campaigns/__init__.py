"""Campaigns: many random accidents, and whether anything was lost or wrong without a word.

    python -m visdiv_assets_tests.campaigns.kills     processes are killed, and run again
    python -m visdiv_assets_tests.campaigns.damage    files of a store are damaged, one at a time
    python -m visdiv_assets_tests.campaigns.cleanups  clean-ups and compactions are killed
    python -m visdiv_assets_tests.campaigns.soak      the service lives through an hour of accidents

Here: what happens in a round, and how it is judged (`kills.py`, `damage.py`, `cleanups.py`);
playing rounds and telling what failed (`rounds.py`); the datasets that they are played with
(`datasets.py`); the processes that are killed (`victim.py`, `location.py`). The soak has no rounds:
what happens when (`soak_schedule.py`), how (`soak_world.py`, `soak_service.py`, `soak_sources.py`,
`soak_servers.py`), and what is right after it (`soak_judge.py`). The tests play a few rounds of
each, and a small soak.
Not here: tests of single behaviours, which are in the folder of what they test.
"""
