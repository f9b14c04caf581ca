"""BM25 beside a router's vectors, measured and learned on tiny collections, in this process."""

import json
import shutil

import numpy as np
import pytest
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.config.loading import parse_settings
from routerretriever.datasets.collection import open_collection
from routerretriever.errors import DatasetError, RecipeError, Refused
from routerretriever.evaluation.system import Kind
from routerretriever.generation.generate import Generation
from routerretriever.generation.settings import GenerationSettings
from routerretriever.index.fusion_weights import GRID, FusionWeights
from routerretriever.index.live import LiveCollection, Wanted
from routerretriever.index.settings import FusionSettings, IndexSettings, LexicalSettings
from routerretriever.measures import measure
from routerretriever.methods.hybrid import (
    BASE_FIXED,
    BM25,
    ROUTED_FIXED,
    ROUTED_LEARNED,
    SYSTEMS,
    WEIGHT_ORACLE,
    Hybrid,
    RoutedQueries,
)
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.reports.tables import calibration_table
from routerretriever.scoring.fusion import QueryVectors
from routerretriever.scoring.table import ScoredModel
from routerretriever.studies.analyses import weight_floor
from routerretriever.types import BASE
from support.recipes import tiny_recipe
from support.workers import work_here


@pytest.fixture
def pipeline(tiny_data, monkeypatch):
    """Opens a recipe whose workers are loops in this process."""
    work_here(monkeypatch, "corpus.build", "runtime.shards")
    return lambda **changes: Pipeline(tiny_recipe(tiny_data, **changes))


def base_twice(workspace):
    """A router over two experts that are both the bare base, half of each."""

    def routed(split, names):
        base = ScoredModel.base(workspace.encoder)
        steps = {name: workspace.score_steps(split, [base], [name]) * 2 for name in names}
        found = {}
        for name in names:
            halves = np.full((len(workspace.collections[name].queries(split)), 2), 0.5, dtype=np.float32)
            found[name] = RoutedQueries(["fruit", BASE], halves, QueryVectors(tuple(steps[name]), halves))
        return found

    return routed


def opened(pipeline):
    return Hybrid(pipeline.workspace, base_twice(pipeline.workspace))


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_rows_agree_with_the_score_table_and_with_what_the_service_finds(pipeline, similarity):
    encoder = {"name": "fake", "similarity": similarity}
    run = pipeline(corpus={"shard_size": 10, "fusion": {"prior": 0.12}}, encoder=encoder)
    workspace, hybrid = run.workspace, opened(run)
    systems = {system.name: system for system in hybrid.systems()}
    assert tuple(systems) == SYSTEMS
    table = workspace.scores(workspace.score_steps("test", [ScoredModel.base(workspace.encoder)], ["sport"]))
    (step,) = [step for step in hybrid.steps() if step.name == "sport"]
    fused = step.read(workspace.store)
    assert fused.query_ids == table["sport"].query_ids
    np.testing.assert_allclose(fused.at(0.0).ndcg_at_10, table["sport"].measured.ndcg_at_10[:, 0])
    # The mean of two halves of the base is the base.
    for dataset in ("fruit", "metal", "sport"):
        ours, theirs = (systems[name].measured[dataset] for name in (BASE_FIXED, ROUTED_FIXED))
        np.testing.assert_allclose(ours.ndcg_at_10, theirs.ndcg_at_10)
    collection = run.collections["sport"]
    service = LiveCollection(
        workspace.store, workspace.corpus_step("sport").key, "changes/none", IndexSettings(),
        lexical=LexicalSettings(),
    )  # fmt: skip
    texts = collection.queries("test")
    queries = list(zip([texts[i] for i in fused.query_ids], table["sport"].base_vectors, strict=True))
    for weight, name in ((0.12, BASE_FIXED), (1.0, BM25)):
        floor = workspace.fusion.floor
        wanted = [Wanted(text, vector, 28, weight, floor=floor) for text, vector in queries]
        hits = service.find("hybrid", wanted)
        found = {
            i: {hit.document.id: hit.score for hit in own}
            for i, own in zip(fused.query_ids, hits, strict=True)
        }
        expected = measure(collection.qrels("test"), found, fused.query_ids)
        np.testing.assert_allclose(systems[name].measured["sport"].ndcg_at_10, expected.ndcg_at_10)
    best, learned = (systems[name].measured["fruit"].ndcg_at_10 for name in (WEIGHT_ORACLE, ROUTED_LEARNED))
    assert (best >= learned).all()
    assert {systems[name].kind for name in SYSTEMS} == {Kind.HYBRID, Kind.ORACLE}


def test_weights_are_learned_from_dev_queries_and_not_from_those_of_a_zero_shot_collection(pipeline):
    hybrid = opened(pipeline())
    assert hybrid.weights.domains == ("fruit", "metal")
    with_sport = {"path": "sport", "expert": False, "calibrate": True}
    domains = {"fruit": {"path": "fruit"}, "metal": {"path": "metal", "lexical": None}, "sport": with_sport}
    other = opened(pipeline(domains=domains))
    assert other.weights.domains == ("fruit", "sport")
    assert [step.name for step in other.steps()] == ["fruit", "sport"]
    # Nothing is measured where no words are searched.
    assert "metal" not in other.systems()[0].measured
    found = other.calibrate("sport")
    assert (found.queries, list(found.ndcg_at_10)) == (7, list(GRID))
    assert found.weight == other.weights.for_domain("sport")
    assert calibration_table("sport", 7, found.ndcg_at_10, found.weight, found.prior).row_count == len(GRID)


def test_a_weight_is_learned_from_generated_queries(tiny_data, pipeline, monkeypatch):
    work_here(monkeypatch, "generation.step", "corpus.build", "runtime.shards")
    data, recipe = tiny_data / "data", tiny_recipe(tiny_data)
    (data / "sport" / "queries.jsonl").write_text("")
    shutil.rmtree(data / "sport" / "qrels")
    how = {"min_document_words": 1, "shard_size": 9, "writer": {"kind": "extract"}}
    own = parse_settings(GenerationSettings, how, "generation")
    sport, store = open_collection("sport", data / "sport"), ArtifactStore.open(recipe.storage)
    Generation(sport, store, recipe.encoder, recipe.corpus, own).run(data / "generated" / "sport")
    domain = {"path": "generated/sport", "expert": False, "calibrate": True}
    hybrid = opened(pipeline(domains={"fruit": {"path": "fruit"}, "sport": domain}))
    assert hybrid.weights.domains == ("fruit", "sport")
    found = hybrid.calibrate("sport")
    assert found.queries > 0
    assert found.weight == hybrid.weights.for_domain("sport")


def test_another_language_is_another_artifact(pipeline):
    plain = opened(pipeline()).steps()
    domains = {name: {"path": name} for name in ("fruit", "metal", "sport")}
    domains["metal"]["lexical"] = {"language": "code"}
    changed = opened(pipeline(domains=domains)).steps()
    assert [a.key == b.key for a, b in zip(plain, changed, strict=True)] == [True, False, True]
    assert "7 test queries at 13 weights" in plain[0].work()


def test_figures_by_another_least_cosine_are_made_anew(pipeline):
    def measured(**fusion):
        hybrid = opened(pipeline(corpus={"shard_size": 10, "fusion": fusion}))
        return next(system for system in hybrid.systems() if system.name == BASE_FIXED).measured["sport"]

    plain, set_high, again = measured(), measured(cosine_floor=0.9), measured()
    assert not np.allclose(plain.ndcg_at_10, set_high.ndcg_at_10)
    np.testing.assert_array_equal(plain.ndcg_at_10, again.ndcg_at_10)


def test_without_words_there_are_no_rows(pipeline):
    hybrid = opened(pipeline(corpus={"lexical": None}))
    assert hybrid.systems() == []
    assert hybrid.steps() == []
    assert hybrid.weights.domains == ()


def test_what_cannot_be_calibrated_is_refused_at_once(pipeline, tiny_data):
    with pytest.raises(RecipeError, match=r"domains\.fish: no such domain; there are fruit, metal, sport"):
        pipeline().calibrate("fish")
    with pytest.raises(RecipeError, match=r"domains\.fruit\.lexical: null"):
        pipeline(corpus={"lexical": None}).calibrate("fruit")
    with pytest.raises(Refused, match="learns no weight of BM25"):
        pipeline(methods={"ddr": {}}, deploy="ddr", serving={"port": 0}).calibrate("fruit")
    for split in ("train", "dev"):
        (tiny_data / "data" / "sport" / "qrels" / f"{split}.tsv").unlink()
    with pytest.raises(DatasetError, match="no dev split"):
        pipeline().calibrate("sport")
    domains = {"fruit": {"path": "fruit"}, "sport": {"path": "sport", "expert": False, "calibrate": True}}
    with pytest.raises(DatasetError, match=r"domains\.sport\.calibrate: .* has no dev split"):
        pipeline(domains=domains)


def test_a_searched_collection_decides_before_the_router():
    slope = 0.9 - np.abs(np.array(GRID) - 0.5)
    learned = FusionWeights.fit({"a": np.tile(slope, (500, 1)), "b": np.tile(-np.array(GRID), (500, 1))},
                                FusionSettings())  # fmt: skip
    weights = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    experts = ["b", "a", BASE]
    assert learned.of_queries(weights, experts).tolist() == [0.0, 0.5, 0.1]
    assert learned.of_queries(weights, experts, "a").tolist() == [0.5] * 3
    assert learned.of_queries(weights, experts, "unseen").tolist() == [0.1] * 3
    again = FusionWeights.from_json(json.loads(json.dumps(learned.to_json())))
    assert again.of_queries(weights, experts, "b").tolist() == [0.0] * 3
    assert FusionWeights.fit({}, FusionSettings()).of_queries(weights, experts).tolist() == [0.1] * 3


def test_words_of_another_query_are_a_floor_for_the_oracle_of_weights(pipeline):
    hybrid = opened(pipeline())
    own, others = hybrid.routed_scores["sport"], hybrid.with_others_words("sport")
    assert others.query_ids == own.query_ids
    np.testing.assert_array_equal(others.at(0.0).ndcg_at_10, own.at(0.0).ndcg_at_10)
    # Each query's words find its own document, and hardly ever another query's.
    assert own.at(1.0).ndcg_at_10.mean() == 1.0
    assert others.at(1.0).ndcg_at_10.mean() < 0.1
    floor = weight_floor(own, others, 0.1)
    assert floor.routed <= floor.oracle_of_others_words < floor.oracle
    assert floor.fixed == own.at(0.1).ndcg_at_10.mean()
