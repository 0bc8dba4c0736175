"""The performance model and what proposes schedules by it, on planted results."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor

from mars_core.layerwise.budget import Budget, parameters
from mars_core.layerwise.performance import enhance as enhance_module
from mars_core.layerwise.performance import predictors
from mars_core.layerwise.performance.encoding import encode
from mars_core.layerwise.performance.enhance import enhance
from mars_core.layerwise.performance.predictors import PREDICTORS, Encoder
from mars_core.layerwise.performance.space import draw_ranks
from mars_core.layerwise.performance.validate import cross_validate
from mars_core.layerwise.uniform import allocate
from mars_core.ranks import LayerRanks

RANK = 8


@pytest.fixture(scope="module")
def probe(made):
    return made([0.4, 0.9, 1.1, 2.0], width=64, hidden=160, kv=32)


@pytest.fixture(scope="module")
def drawn(probe):
    random = np.random.default_rng(0)
    return [draw_ranks(probe, Budget(RANK), random) for _ in range(96)]


@pytest.fixture(scope="module")
def encoded(probe, drawn):
    return encode(drawn, [probe], [RANK])


def planted(encoded):
    """Two metrics: the more rank in the last block, and the less in the first, the lower."""
    blocks = encoded[:, :, :-1].mean(axis=2)
    first = np.square(blocks[:, 0] - 0.5) - 0.6 * blocks[:, -1]
    return np.stack([first, first + 0.3 * np.square(blocks[:, 1] - 1)], axis=1)


def test_drawn_schedules_are_in_the_solution_space(probe, drawn):
    limit = Budget(RANK).limit(probe)
    for ranks in drawn:
        assert 0.995 * limit <= parameters(ranks, probe) <= limit
        assert min(ranks.values()) >= 1
    assert len({LayerRanks.of(ranks) for ranks in drawn}) > 60
    norms = probe.block_norms()
    rising = [
        np.mean([ranks[p.layer] for p in probe.places if p.block == block]) for ranks in drawn for block in (0, 3)
    ]
    assert norms[0] < norms[3]
    assert all(low <= high for low, high in zip(rising[::2], rising[1::2], strict=True))


def test_ranks_are_encoded_block_by_block(probe):
    ranks = allocate(probe, Budget(RANK)) | {"model.layers.2.up_proj": 12}
    (found,) = encode([ranks], [probe], [RANK])
    assert found.shape == (4, 8)
    components = sorted({place.component for place in probe.places})
    assert found[2, components.index("up")] == 1.5
    assert found.sum() == pytest.approx(4 * 7 + 0.5)
    (both,) = encode([ranks], [probe, probe], [RANK, 4])
    assert both.shape == (8, 8)
    assert set(both[:4, -1]) == {0.0}
    assert set(both[4:, -1]) == {1.0}


def test_every_model_beats_the_mean_on_schedules_it_has_not_seen(encoded, monkeypatch):
    monkeypatch.setattr(predictors, "EPOCHS", 60)
    names = [name for name in PREDICTORS if name not in ("lightgbm", "mean")]
    mean = cross_validate(PREDICTORS["mean"], encoded, planted(encoded))
    assert mean.mse == pytest.approx(1.0, abs=0.15)
    for name in names:
        found = cross_validate(PREDICTORS[name], encoded, planted(encoded))
        assert found.mse < 0.5 * mean.mse, name
        assert found.mae < mean.mae, name
        assert np.mean(found.by_fold) == pytest.approx(found.mse, rel=0.2)


def test_lightgbm_is_asked_for_where_it_is_missing(encoded):
    try:
        import lightgbm  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="LightGBM is not installed"):
            PREDICTORS["lightgbm"]()
        return
    found = cross_validate(PREDICTORS["lightgbm"], encoded, planted(encoded))
    assert found.mse < 0.8


def test_the_encoder_is_the_papers_and_repeats_itself(encoded, monkeypatch):
    monkeypatch.setattr(predictors, "EPOCHS", 5)
    y = planted(encoded)
    one, other = (Encoder(seed=3).fit(encoded, y) for _ in range(2))
    assert np.array_equal(one.predict(encoded), other.predict(encoded))
    attention = one.model.encoder.self_attn
    assert (attention.embed_dim, attention.num_heads) == (32, 4)
    with pytest.raises(ValueError, match="has learned nothing yet"):
        Encoder().predict(encoded)
    with pytest.raises(ValueError, match="5 folds need as many schedules, got 3"):
        cross_validate(PREDICTORS["mean"], encoded[:3], y[:3])


def test_enhancement_finds_better_schedules_than_drawing_alone_and_says_why_it_ended(probe, encoded, monkeypatch):
    monkeypatch.setattr(enhance_module, "POOL", 96)
    packs, forest = [], lambda: predictors.Flat(RandomForestRegressor(30, random_state=0))

    def draw(random):
        return LayerRanks.of(draw_ranks(probe, Budget(RANK), random))

    def encoded_of(schedules):
        return encode([dict(one.by_layer) for one in schedules], [probe], [RANK])

    def train(schedules):
        packs.append(len(schedules))
        return planted(encoded_of(schedules))

    found = enhance(draw, encoded_of, train, forest, first=8, each=4, runs=24)
    assert sum(packs) == len(found.tried) == len(set(found.tried)) <= 24
    assert packs[0] == 8
    assert found.ended == ("runs spent" if len(found.tried) == 24 else "proposal repeated")
    assert found.metrics[found.best].mean() < found.metrics[:8].mean(axis=1).min()
    assert found.metrics[found.best].mean() <= np.quantile(planted(encoded).mean(axis=1), 0.05)
    few = enhance(lambda _: found.tried[0], encoded_of, train, PREDICTORS["mean"], first=2, each=1, runs=4)
    assert few.ended == "proposal repeated"
    with pytest.raises(ValueError, match="the first of 4 runs must be 2 or more"):
        enhance(draw, encoded_of, train, PREDICTORS["mean"], first=5, each=1, runs=4)
