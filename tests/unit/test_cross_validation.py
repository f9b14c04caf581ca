"""What the folds of a cross-validation train on, and what they hold out."""

import json

import pytest
from routerretriever.datasets.judgements import load_judgements
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.training.expert import expert_step
from routerretriever.training.loop import evaluations
from support.collections import WORDS
from support.recipes import TINY_TRAINING, tiny_recipe
from support.workers import work_here

CUT = {"tokens": 8, "overlap": 2}


def write_domain(root, documents, queries, splits):
    """The domain ``fruit``: texts by id, and split -> query id -> document id."""
    folder = root / "data" / "fruit"
    (folder / "qrels").mkdir(parents=True)
    for name, texts in (("corpus", documents), ("queries", queries)):
        lines = (json.dumps({"_id": identifier, "text": text}) + "\n" for identifier, text in texts.items())
        (folder / f"{name}.jsonl").write_text("".join(lines))
    for split, judged in splits.items():
        lines = [f"{query}\t{document}\t1\n" for query, document in judged.items()]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """Builds what the folds of the domain ``fruit`` need; gives its expert's step and the storage."""
    work_here(monkeypatch, "corpus.build")

    def build(**domain):
        training = {**TINY_TRAINING, "selection": "cross_validation"}
        fruit = {"path": "fruit", **domain}
        workspace = Pipeline(tiny_recipe(tmp_path, domains={"fruit": fruit}, training=training)).workspace
        step = expert_step(workspace.source("fruit"), workspace.encoder, workspace.training)
        workspace.build(part for fold in step.folds for part in fold.inputs)
        return step, workspace.store

    return build


def trained_and_held_out(step, store):
    """The judgements that each fold trains on, and those that it holds out."""
    parts = [fold.job.parts[0] for fold in step.folds]
    return [(load_judgements(store, part.train_key), load_judgements(store, part.dev_key)) for part in parts]


def test_folds_of_long_documents_train_on_passages_and_measure_documents(tmp_path, steps):
    words = WORDS["fruit"]
    documents = {
        f"d{n}": " ".join(f"{word} {other} grows." for other in words) for n, word in enumerate(words)
    }
    queries = {f"q{n}": f"where does {word} grow" for n, word in enumerate(words)}
    judged = {f"q{n}": f"d{n}" for n in range(len(words))}
    dev = {"q6": judged.pop("q6"), "q7": judged.pop("q7")}
    write_domain(tmp_path, documents, queries, {"train": judged, "dev": dev})
    step, store = steps(passages=CUT)
    for trained, held_out in trained_and_held_out(step, store):
        assert all(
            document.startswith("d") and "#" in document for own in trained.qrels.values() for document in own
        )
        assert held_out.passages
        assert all(list(own) == [f"d{query[1:]}"] for query, own in held_out.qrels.items())
    for fold in step.folds:
        *_, end = evaluations(fold.job, store)
        assert end.progress.step > 0
        assert max(end.progress.base_values) > 0  # a passage is found for its document
