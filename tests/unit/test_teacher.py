"""A training domain hands the loss its teacher's scores, in this process."""

import numpy as np
import pytest
import torch
from routerretriever.adapters.tower import load_tower
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.training.domains import ADAPTER, open_domain
from routerretriever.training.expert import expert_step
from routerretriever.training.objective import candidate_loss
from support.recipes import tiny_recipe
from support.workers import work_here
from support.writers import endpoint


@pytest.fixture
def opened(tiny_data, monkeypatch):
    """Opens the domain ``fruit`` as a trainer does, with some training settings."""
    work_here(monkeypatch, "corpus.build", "runtime.shards")

    def opens(**training):
        run = Pipeline(tiny_recipe(tiny_data, training=training))
        workspace = run.workspace
        step = expert_step(workspace.source("fruit"), workspace.encoder, workspace.training)
        workspace.build(part for part in step.inputs if part not in step.folds)
        tower = load_tower(workspace.encoder)
        tower.add_adapter(ADAPTER, step.job.training.adapter)
        return tower, open_domain(step.job.parts[0], step.job, tower, run.store, 0)

    return opens


def teacher_and_base(opened, **training):
    """The teacher's scores, the base's own, and the loss of a batch."""
    tower, domain = opened(**training)
    batch = domain.examples.batch(0, 0, 1)
    rows, candidates = domain.candidates(batch.candidate_rows, tower, tower.tower)
    scores = domain.teacher_scores(batch, rows, candidates)
    if scores is None:
        return None, None, None
    base = torch.from_numpy(batch.base_Bd) @ candidates.T
    settings = domain.examples.settings
    loss = candidate_loss(
        torch.from_numpy(batch.base_Bd), candidates, rows, batch.target_rows, batch.positive_rows,
        settings.temperature, scores, settings.distillation, settings.mask_above,
    )  # fmt: skip
    return scores, base, loss


def test_the_base_is_the_teacher_unless_words_are_weighed_in(opened):
    scores, base, loss = teacher_and_base(opened, distillation=1.0)
    assert torch.equal(scores, base)
    assert torch.isfinite(loss)
    hybrid, _, _ = teacher_and_base(opened, distillation=1.0, teacher_bm25=0.5)
    assert hybrid.shape == base.shape
    assert not torch.allclose(hybrid, base)


@pytest.mark.parametrize("objective", ["corpus", "sampled"])
def test_words_put_the_document_that_holds_both_of_the_query_s_first(opened, objective):
    tower, domain = opened(distillation=0.0, mask_above=1.0, teacher_bm25=0.9, objective=objective)
    batch = domain.examples.batch(0, 0, 1)
    rows, candidates = domain.candidates(batch.candidate_rows, tower, tower.tower)
    scores = domain.teacher_scores(batch, rows, candidates)
    np.testing.assert_array_equal(rows[scores.argmax(dim=1).numpy()], batch.target_rows)


def test_without_a_use_for_it_there_is_no_teacher(opened):
    assert teacher_and_base(opened, distillation=0.0, teacher_bm25=0.5) == (None, None, None)


def rerank(body):
    """A reranker that likes long documents."""
    return [{"index": number, "score": len(text)} for number, text in enumerate(body["texts"])]


@pytest.mark.parametrize("objective", ["corpus", "sampled"])
def test_a_reranker_orders_the_base_s_best_documents_and_the_base_the_others(opened, objective):
    with endpoint("rerank", rerank) as server:
        teacher = {"kind": "endpoint", "url": server.url, "api": "tei", "model": "m", "depth": 8}
        tower, domain = opened(teacher=teacher, objective=objective, random_negatives=8, hard_negatives=4)
    batch = domain.examples.batch(0, 0, 1)
    rows, candidates = domain.candidates(batch.candidate_rows, tower, tower.tower)
    scores = domain.teacher_scores(batch, rows, candidates).numpy()
    base = (torch.from_numpy(batch.base_Bd) @ candidates.T).numpy()
    contents = [domain.corpus.document(row).content for row in rows.tolist()]
    every = batch.base_Bd @ domain.corpus.matrix().T
    for own, by_base, whole, positives in zip(scores, base, every, batch.positive_rows, strict=True):
        best = np.argsort(-whole)[:8]
        listed = np.isin(rows, np.concatenate([best, positives]))
        np.testing.assert_array_equal(own[~listed], by_base[~listed])
        lengths = np.array([len(content) for content in contents])[listed]
        assert (np.diff(own[listed][np.argsort(lengths)]) >= -1e-6).all()
        assert own[listed].min() >= whole[best].min() - 1e-5
        assert own[listed].max() <= whole.max() + 1e-5


def test_copies_of_an_expert_see_the_queries_in_orders_of_their_own(opened):
    _, domain = opened(distillation=0.0)
    seen = [domain.examples.batch(0, 0, 1, copy).query_ids for copy in range(3)]
    assert len({tuple(sorted(one)) for one in seen}) == 1  # a batch of all
    assert len({tuple(one) for one in seen}) == 3
    assert domain.examples.batch(0, 0, 1).query_ids == seen[0]
