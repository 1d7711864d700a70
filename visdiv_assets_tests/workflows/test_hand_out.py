"""Who gets which unit: nothing is lost or tried for ever, and one bad worker spoils nothing."""

from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.workflows.hand_out import MOST_TRIES, HandOut


def play(queue, workers, fails, most=10_000):
    """Workers take turns until it is over; `fails(worker, unit)` says why one fails, or nothing."""
    done = []
    for _ in range(most):
        for worker in range(workers):
            unit = queue.next(worker)
            if unit is None:
                continue
            if reason := fails(worker, unit):
                queue.failed(worker, reason)
            else:
                queue.done(worker)
                done.append(unit)
        if queue.is_over:
            return done
    raise AssertionError("it is never over")


@given(st.integers(0, 40), st.integers(1, 6), st.randoms(use_true_random=False))
def test_every_unit_is_done_once_or_its_reason_is_told(units, workers, random):
    queue = HandOut(range(units), workers)
    done = play(queue, workers, lambda *_: "bad luck" if random.random() < 0.3 else "")
    assert len(done) == len(set(done))
    assert sorted([*done, *queue.failures]) == list(range(units))


@given(st.integers(1, 30), st.integers(2, 6))
def test_a_worker_that_fails_everything_leaves_all_units_to_the_others(units, workers):
    queue = HandOut(range(units), workers)
    done = play(queue, workers, lambda worker, _: "no model" if worker == 0 else "")
    assert sorted(done) == list(range(units))
    assert queue.failures == {}
    assert queue.retries <= MOST_TRIES


@given(st.integers(1, 30), st.integers(1, 6), st.data())
def test_a_unit_that_always_fails_is_given_up_and_no_other(units, workers, data):
    bad = data.draw(st.integers(0, units - 1))
    queue = HandOut(range(units), workers)
    tries = []

    def fails(_, unit):
        tries.append(unit)
        return "it cannot be read" if unit == bad else ""

    done = play(queue, workers, fails)
    assert sorted(done) == [unit for unit in range(units) if unit != bad]
    assert queue.failures == {bad: "it cannot be read"}
    assert tries.count(bad) == MOST_TRIES


def test_units_that_fail_by_no_fault_of_a_worker_dismiss_nobody():
    queue = HandOut(range(20), 1)
    done = []
    while not queue.is_over:
        unit = queue.next(0)
        if unit < 10:
            queue.failed(0, "not one image can be read", by_worker=False)
        else:
            queue.done(0)
            done.append(unit)
    assert done == list(range(10, 20))
    assert list(queue.failures) == list(range(10))


def test_where_all_workers_fail_it_ends_soon_and_says_which_units_nobody_tried():
    queue = HandOut(range(100), 2)
    assert play(queue, 2, lambda *_: "the disk is full") == []
    tried = [reason for reason in queue.failures.values() if reason]
    assert len(queue.failures) == 100
    assert len(tried) <= 2 * MOST_TRIES
