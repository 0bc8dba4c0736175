"""A final run that forgets more than is allowed is refused, with the figure in the reason."""

from mars_core.drift import Acceptance, Forgotten, judge_forgetting


def test_more_than_the_limit_is_refused_with_its_figure():
    refused = judge_forgetting(Forgotten(12.34, 10.0, 14.7, limit=10))
    assert refused is not None
    assert not refused.accepted
    assert "forgets 12.3 points (10.0 to 14.7)" in refused.reason
    assert "search.max_forgetting = 10" in refused.reason
    assert Acceptance.from_json(refused.to_json()) == refused


def test_up_to_the_limit_nothing_is_said():
    assert judge_forgetting(Forgotten(10.0, 8.0, 12.0, limit=10)) is None
    assert judge_forgetting(Forgotten(-3.0, -5.0, -1.0, limit=0)) is None


def test_decisions_stored_before_are_read():
    assert Acceptance.from_json({"accepted": True, "reason": "first", "score": None}).forgotten is None
