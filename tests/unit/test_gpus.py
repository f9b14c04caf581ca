"""A GPU that is asked for is used, or the reason is said."""

import pytest
import torch
from routerretriever.encoder import encoder
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import EncoderError, RecipeError
from support.recipes import tiny_recipe


def test_a_gpu_that_torch_cannot_use_is_an_error_and_none_is_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = EncoderSettings(name="fake")
    assert encoder.Encoder.load(settings).device.type == "cpu"
    monkeypatch.setattr(encoder, "granted_gpus", lambda: ["0"])
    with pytest.raises(
        EncoderError, match=r"Ray gave this worker GPU 0, which torch \S+ cannot use; install"
    ):
        encoder.Encoder.load(settings)
    with pytest.raises(EncoderError, match="Ray gave this worker GPU 0"):
        encoder.Encoder.load(settings.model_copy(update={"device": "cuda"}))
    assert encoder.Encoder.load(settings.model_copy(update={"device": "cpu"})).device.type == "cpu"


def test_a_recipe_does_not_take_a_gpu_for_an_encoder_on_the_cpu(tmp_path):
    with pytest.raises(RecipeError, match=r"encoder\.device: cpu, and training\.gpus_per_worker"):
        tiny_recipe(tmp_path, encoder={"name": "fake", "device": "cpu"}, training={"gpus_per_worker": 0.5})
