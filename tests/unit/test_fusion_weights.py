import json

import numpy as np
import pytest
from routerretriever.errors import BadInput
from routerretriever.index.fusion_weights import GRID, FusionWeights
from routerretriever.index.settings import FusionSettings


def curves(best, queries, slope=1.0):
    return np.tile(0.9 - slope * np.abs(np.array(GRID) - best), (queries, 1))


def test_a_domain_gets_its_own_weight_and_a_stranger_the_prior():
    weights = FusionWeights.fit({"a": curves(0.3, 400), "b": curves(0.0, 400)}, FusionSettings())
    assert weights.for_domain("a") == 0.3
    assert weights.for_domain("b") == 0.0
    assert weights.for_domain("c") == 0.1
    assert weights.predict(np.zeros((1, 2))).tolist() == [0.1]
    assert FusionWeights.fit({}, FusionSettings(prior=0.12)).for_domain("a") == 0.12


def test_little_evidence_leaves_the_prior():
    settings = FusionSettings(caution=0.05)
    few, many = (FusionWeights.fit({"a": curves(0.5, n, 0.3)}, settings) for n in (3, 3000))
    assert few.for_domain("a") == settings.prior
    assert many.for_domain("a") == 0.5


def test_saved_weights_are_read_again():
    weights = FusionWeights.fit({"a": curves(0.3, 40)}, FusionSettings())
    again = FusionWeights.from_json(json.loads(json.dumps(weights.to_json())))
    assert again.for_domain("a") == weights.for_domain("a")
    with pytest.raises(BadInput, match="other weights"):
        FusionWeights.from_json({**weights.to_json(), "grid": [0, 1]})


def test_values_of_another_shape_are_refused():
    with pytest.raises(BadInput, match="a: expected nDCG"):
        FusionWeights.fit({"a": np.zeros((3, 2))}, FusionSettings())
