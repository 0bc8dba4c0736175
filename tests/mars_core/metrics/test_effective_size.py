"""Effective sizes against values worked out by hand."""

import pytest

from mars_core.metrics.effective_size import effective_samples


@pytest.mark.parametrize(
    ("epochs", "worth"),
    [
        (0.25, 250.0),
        (1.0, 1000.0),
        (2.0, 1968.22),  # 1 + 15.4 (1 - exp(-1/15.4)) = 1 + 15.4 * 0.0628717
        (3.0, 2875.57),  # 1 + 15.4 (1 - exp(-2/15.4)) = 1 + 15.4 * 0.1217905
        (12.0, 8861.06),  # 1 + 15.4 (1 - exp(-11/15.4)) = 1 + 15.4 * 0.5104583
    ],
)
def test_repeated_epochs_are_worth_ever_less(epochs, worth):
    assert effective_samples(1000, epochs) == pytest.approx(worth, abs=0.01)


def test_however_many_epochs_the_worth_is_bounded():
    assert effective_samples(1000, 1e6) == pytest.approx(16_400)


@pytest.mark.parametrize(("unique", "epochs"), [(0, 1.0), (10, 0.0), (10, -1.0)])
def test_nothing_is_refused(unique, epochs):
    with pytest.raises(ValueError, match="positive"):
        effective_samples(unique, epochs)
