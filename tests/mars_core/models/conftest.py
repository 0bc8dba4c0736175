"""The small instances of every family, as fixtures."""

from __future__ import annotations

import pytest

from tests.mars_core.models.small_instances import BATCHES, MODELS, llava_onevision, small_model


@pytest.fixture(scope="session")
def make_llava():
    """Makes a LLaVA-OneVision model; weights by torch's global random state."""
    return llava_onevision


@pytest.fixture(scope="session")
def image_batch():
    """Makes a batch with an image for a model type."""
    return lambda model_type: BATCHES[model_type]()


@pytest.fixture(params=MODELS)
def family_model(request):
    """(model type, model) of every known family."""
    return request.param, small_model(request.param)


@pytest.fixture
def llava():
    return small_model("llava_onevision")
