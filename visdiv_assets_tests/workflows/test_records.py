"""What was found is kept in the warehouse."""

import pyarrow.parquet as pq

from visdiv_assets.embedding.pictures import Size
from visdiv_assets.workflows.duplicates import known_sizes, record_duplicates
from visdiv_assets.workflows.leakage import find_overlap, record_leakage
from visdiv_assets_tests.embedding.fakes import WatchedSource


def test_what_is_found_is_in_the_warehouse_and_its_exports(birds):
    found = birds.find("birds")
    record_duplicates(found, birds.warehouse)
    [row] = birds.warehouse.rows("redundancy", "birds")
    assert (row["n_images"], row["n_near"], row["n_clusters"]) == (74, 1, 1)
    assert row["corrected_without"] == found.after.corrected.score
    assert [
        each["image_id"] for each in birds.warehouse.rows("duplicates", "birds")
    ] == found.images["image_id"].to_pylist()
    exported = pq.read_table(birds.root / "store/exports/duplicates.parquet")
    assert len(exported) == len(found.images)
    for copy in ("large of 000", "copy of 000", "copy of 003", "another of 003"):
        birds.path("birds", f"{copy}.png").unlink()
    record_duplicates(birds.find("birds"), birds.warehouse)
    assert birds.warehouse.rows("duplicates", "birds") == []
    assert birds.warehouse.rows("redundancy", "birds")[0]["rate"] == 0


def test_sizes_that_are_known_are_not_looked_at_again(birds):
    evaluation = birds.evaluate("birds")
    record_duplicates(birds.find("birds", evaluation=evaluation), birds.warehouse)
    known = known_sizes("birds", birds.warehouse)
    small = birds.path("birds", "000.png").stat().st_size
    assert Size(8, 8, small) in known.values()
    assert len(known) == 2  # of the copies of 003 nothing was decided by size
    source = WatchedSource(birds.root / "birds")
    again = birds.find("birds", evaluation=evaluation, source=source, known=known)
    assert source.read_ids == []
    assert again.images.equals(birds.find("birds", evaluation=evaluation).images)


def test_leaks_are_in_the_warehouse_with_what_could_not_be_compared(leaky):
    birds, bench = leaky.evaluate("birds"), leaky.evaluate("bench")
    found = find_overlap(birds, bench, leaky.store, threshold=0.95)
    record_leakage("birds", [found], {"other": "why"}, leaky.warehouse)
    leaks = leaky.warehouse.rows("leaks", "birds")
    assert [each["benchmark_image_id"] for each in leaks] == ["x.png", "y.png", "x.png", "x.png"]
    compared, skipped = leaky.warehouse.rows("leakage", "birds")
    assert (compared["n_leaked"], compared["n_benchmark_seen"]) == (4, 2)
    assert (skipped["benchmark"], skipped["not_compared"]) == ("other", "why")
    record_leakage("birds", [], {}, leaky.warehouse)
    assert leaky.warehouse.rows("leaks", "birds") == leaky.warehouse.rows("leakage", "birds") == []
