"""Comparison: which differences are surer than chance, and the published scores."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visdiv_assets.guidance.comparison import LEVEL, REACH, Scored, compare, published_scores


def scored(name, score, error):
    """A score whose logarithm has a standard error."""
    reach = math.exp(REACH * error)
    return Scored(name, score, score / reach, score * reach)


def found(*each):
    return [(difference.first, difference.second, difference.sure) for difference in compare(each)]


def test_scores_far_apart_differ_for_sure():
    assert found(scored("low", 0.3, 0.01), scored("high", 0.4, 0.01)) == [("high", "low", True)]


def test_scores_with_wide_intervals_may_differ_by_chance():
    assert found(scored("low", 0.3, 0.3), scored("high", 0.4, 0.3)) == [("high", "low", False)]


@pytest.mark.parametrize(("deviations", "sure"), [(1.95, False), (1.97, True)])
def test_the_line_is_at_1_96_standard_errors(deviations, sure):
    error = 0.02 / math.sqrt(2)
    one, other = scored("a", 0.4 * math.exp(0.02 * deviations), error), scored("b", 0.4, error)
    [difference] = compare([one, other])
    assert difference.sure is sure
    assert difference.p_value == pytest.approx(math.erfc(deviations / math.sqrt(2)))


def test_how_many_times_higher_is_said():
    [difference] = compare([scored("a", 0.2, 0.1), scored("b", 0.4, 0.1)])
    assert difference.ratio == pytest.approx(2)


def test_of_several_pairs_each_must_be_surer():
    other = scored("b", 0.40, 0.008)
    one = scored("a", 0.40 * math.exp(2.1 * 0.008 * math.sqrt(2)), 0.008)
    assert found(one, other) == [("a", "b", True)]
    among = found(one, other, scored("c", 0.405, 0.5))
    assert ("a", "b", False) in among


@given(
    st.lists(
        st.tuples(st.floats(0.01, 1), st.floats(0.001, 0.5)), min_size=2, max_size=6, unique=True
    )
)
def test_holms_procedure_decides(numbers):
    each = [scored(f"{at}", *number) for at, number in enumerate(numbers)]
    differences = compare(each)
    assert len(differences) == len(each) * (len(each) - 1) // 2
    values = [difference.p_value for difference in differences]
    assert values == sorted(values)
    holds = [value <= LEVEL / (len(values) - rank) for rank, value in enumerate(values)]
    accepted = holds.index(False) if False in holds else len(holds)
    assert [difference.sure for difference in differences] == [
        rank < accepted for rank in range(len(values))
    ]
    assert all(difference.ratio >= 1 for difference in differences)


@given(st.floats(0, 1), st.floats(0, 0.5))
def test_equal_scores_never_differ_for_sure(score, error):
    assert [sure for *_, sure in found(scored("a", score, error), scored("b", score, error))] == [
        False
    ]


def test_scores_that_are_known_exactly_differ_for_sure():
    assert found(scored("a", 0.30, 0), scored("b", 0.31, 0)) == [("b", "a", True)]


def test_one_picture_differs_from_many_for_sure_and_from_another_one_not():
    nothing, neither = Scored("nothing", 0.0, 0.0, 0.0), Scored("neither", 0.0, 0.0, 0.0)
    assert found(nothing, scored("many", 0.4, 0.01)) == [("many", "nothing", True)]
    assert found(nothing, neither)[0][2] is False


@pytest.mark.parametrize("each", [[], [scored("a", 0.4, 0.1)]])
def test_fewer_than_two_scores_have_no_difference(each):
    assert compare(each) == []


def test_thirteen_published_scores_are_in_order():
    published = published_scores()
    assert len(published) == len({each.name for each in published}) == 13
    scores = [each.score for each in published]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    assert {each.source for each in published} == {"FineVision", "visual-diversity-evaluation"}


def test_finevision_is_published_with_its_score():
    [finevision] = [each for each in published_scores() if each.name == "FineVision"]
    assert (finevision.n_images, finevision.score) == (17_300_000, 0.5)
