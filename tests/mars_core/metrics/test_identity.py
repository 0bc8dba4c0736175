from __future__ import annotations

import hashlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mars_core.metrics.identity import content_hash, run_id

RUN = {
    "model_id": "m",
    "data_hash": "d",
    "recipe_hash": "r",
    "r_me": 8,
    "r_llm": 16,
    "seed": 0,
    "data_seed": 0,
    "adapted": "a",
    "horizon": 256,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_a_hash_is_that_of_the_canonical_json_text():
    text = '{"a":[1,2.5,null,true,"é"],"b":{"c":""}}'
    value = {"b": {"c": ""}, "a": [1, 2.5, None, True, "é"]}
    assert content_hash(value) == hashlib.sha256(text.encode()).hexdigest()[:16]
    assert content_hash(value, length=64) == hashlib.sha256(text.encode()).hexdigest()


def test_a_run_keeps_its_identity_between_releases():
    """Stored studies find their runs by it: a change of this value makes every study calibrate again."""
    text = '["m","d","r",8,16,0,0,"a",256]'
    assert run_id(**RUN) == hashlib.sha256(text.encode()).hexdigest()[:12]


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.text(), JSON, min_size=2, max_size=5), st.randoms())
def test_the_order_of_keys_does_not_matter(value, random):
    keys = list(value)
    random.shuffle(keys)
    assert content_hash({key: value[key] for key in keys}) == content_hash(value)


@pytest.mark.parametrize("name", RUN)
def test_every_part_of_a_runs_identity_counts(name):
    changed = RUN[name] + (1 if isinstance(RUN[name], int) else "x")
    assert run_id(**RUN | {name: changed}) != run_id(**RUN)


def test_ranks_and_seeds_are_not_interchangeable():
    assert run_id(**RUN | {"r_me": 16, "r_llm": 8}) != run_id(**RUN)
    rates = {run_id(**RUN | {"learning_rates": given}) for given in ((1e-4, 1e-4, 1e-4), (2e-4, 1e-4, 1e-4), None)}
    parts = {run_id(**RUN | {"part": given}) for given in ("range-test", "other", None)}
    assert len(rates) == len(parts) == 3
    assert rates & parts == {run_id(**RUN)}
    assert run_id(**RUN | {"seed": 1}) != run_id(**RUN | {"data_seed": 1})


def test_the_order_of_a_list_counts():
    assert content_hash([1, 2]) != content_hash([2, 1])


def test_values_without_a_stable_text_are_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        content_hash([math.nan])
    with pytest.raises(TypeError, match="not JSON serializable"):
        content_hash({"a": {1, 2}})
