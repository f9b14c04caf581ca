"""Experts whose step and scale are chosen on held-out queries, through Ray Train, on the fake encoder."""

import pytest
from routerretriever.adapters.tower import load_tower
from routerretriever.methods.experts import Experts
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.training.candidates import ScoreCandidates, read_candidates
from support.collections import write_collection
from support.encoders import write_cross_encoder
from support.recipes import TINY_TRAINING, tiny_recipe

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("selection", ["cross_validation", "dev"])
def test_an_expert_is_its_chosen_share_or_the_base(cluster, tmp_path, selection):
    write_collection(tmp_path / "data" / "fruit", "fruit")
    training = TINY_TRAINING | {"selection": selection, "distillation": 1.0}
    if selection == "cross_validation":
        folder = write_cross_encoder(tmp_path / "teacher")
        training |= {"soup": 2, "teacher": {"kind": "cross_encoder", "model": str(folder), "depth": 5}}
    recipe = tiny_recipe(tmp_path, domains={"fruit": {"path": "fruit"}}, training=training)
    pipeline = Pipeline(recipe)
    expert = pipeline.method(Experts).experts["fruit"]
    card, folder = expert.card, expert.folder(pipeline.store)
    assert card["verdict"]["deployed"] == card["deployed"]
    assert card["verdict"]["low"] <= card["verdict"]["gain"] <= card["verdict"]["high"]
    collection = pipeline.collections["fruit"]
    labelled = len(collection.qrels("dev"))
    if selection == "cross_validation":
        labelled += len(collection.qrels("train"))
        assert card["best_step"] == card["steps"]
        assert card["training"]["soup"] == 2
        scored = [step for step in pipeline.steps() if isinstance(step, ScoreCandidates)]
        queries = [one.query_id for step in scored for one in read_candidates(pipeline.store, step.key)]
        assert len(queries) == len(set(queries)) == labelled
    assert card["verdict"]["queries"] == labelled
    assert card["scale"] in recipe.training.scales

    encoder = load_tower(recipe.encoder)
    base = encoder.encode_queries(["a ripe plum"])
    encoder.load_adapter("fruit", folder)
    answers_as_base = (encoder.encode_queries(["a ripe plum"], "fruit") == base).all()
    assert answers_as_base != card["deployed"]
    assert (folder / "undeployed").is_dir() != card["deployed"]
