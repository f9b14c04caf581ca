"""How far apart an encoder keeps unrelated texts, and what follows from it."""

import json

import numpy as np
import pytest
from routerretriever.adapters.tower import load_tower
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.encoder.spread import cosine_floor, spread_of, temperature_scale
from routerretriever.index.fusion_weights import FusionWeights
from routerretriever.index.settings import FusionSettings


class Cone:
    """Unrelated texts have about this cosine, and all vectors this length."""

    def __init__(self, cosine, length=1.0):
        self.cosine, self.length = cosine, length

    def encode_documents(self, texts):
        random = np.random.default_rng(0).normal(size=(len(texts), 512))
        random[:, 0] = 0
        random /= np.linalg.norm(random, axis=1, keepdims=True)
        axis = np.eye(512)[0]
        vectors = np.sqrt(self.cosine) * axis + np.sqrt(1 - self.cosine) * random
        return (self.length * vectors).astype(np.float32)


@pytest.mark.parametrize(
    ("cosine", "length", "spread", "floor", "scale"),
    [
        (0.0, 1.0, 1.0, -1.0, 1.0),
        (0.8, 1.0, 0.2, 0.556, 0.222),
        (0.8, 10.0, 20.0, None, 18.18),  # large dot products
    ],
)
def test_what_depends_on_the_spread_goes_with_it(cosine, length, spread, floor, scale):
    found = spread_of(Cone(cosine, length))
    assert found == pytest.approx(spread, rel=0.02)
    assert temperature_scale(found) == pytest.approx(scale, rel=0.02)
    if floor is not None:
        assert cosine_floor(found) == pytest.approx(floor, abs=0.02)


def test_the_default_encoder_keeps_the_published_floor_and_the_temperature_as_it_is_set():
    found = spread_of(load_tower(EncoderSettings()))
    assert (cosine_floor(found), temperature_scale(found)) == (-1.0, 1.0)


def test_fusing_takes_the_encoders_floor_unless_one_is_set():
    fitted = FusionSettings().for_encoder(Cone(0.8))
    assert fitted.floor == pytest.approx(0.556, abs=0.02)
    assert FusionSettings(cosine_floor=0.2).for_encoder(Cone(0.8)).floor == 0.2
    assert FusionSettings().floor == -1, "as in bundles of earlier releases"
    again = FusionWeights.from_json(json.loads(json.dumps(FusionWeights.fit({}, fitted).to_json())))
    assert again.settings.floor == fitted.floor
