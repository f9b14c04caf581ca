"""What the folds of a cross-validation train on, and what they hold out."""

import json

import pytest
from routerretriever.datasets.judgements import load_judgements
from routerretriever.errors import DatasetError
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.training.expert import expert_step
from routerretriever.training.loop import evaluations
from support.collections import WORDS
from support.recipes import TINY_TRAINING, tiny_recipe
from support.workers import work_here

CUT = {"tokens": 8, "overlap": 2}


def write_domain(root, documents, queries, splits, sources=None):
    """The domain ``fruit``: texts by id, split -> query -> document, and what queries were written about."""
    folder = root / "data" / "fruit"
    (folder / "qrels").mkdir(parents=True)
    about = {query: {"metadata": {"source": source}} for query, source in (sources or {}).items()}
    for name, texts in (("corpus", documents), ("queries", queries)):
        lines = (json.dumps({"_id": one, "text": text} | about.get(one, {})) for one, text in texts.items())
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    for split, judged in splits.items():
        lines = [f"{query}\t{document}\t1\n" for query, document in judged.items()]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))


def write_short_documents(root, about, ask=lambda query, document: f"{query}: where is {document}", **known):
    """A domain of short documents; ``about`` is the document of each query of train and dev, by number."""
    train, dev = ([f"d{number}" for number in own] for own in about)
    judged = {f"q{number}": document for number, document in enumerate([*train, *dev])}
    ids = list(judged)
    documents = {document: f"{document} grows" for document in dict.fromkeys(judged.values())}
    queries = {query: ask(query, document) for query, document in judged.items()}
    splits = {"train": ids[: len(train)], "dev": ids[len(train) :]}
    splits = {split: {query: judged[query] for query in own} for split, own in splits.items()}
    write_domain(root, documents, queries, splits, **{name: make(judged) for name, make in known.items()})
    return judged


@pytest.fixture
def steps(tmp_path, monkeypatch):
    """Builds what the folds of the domain ``fruit`` need; gives its expert's step and the storage."""
    work_here(monkeypatch, "corpus.build")

    def build(domain=None, **training):
        workspace = workspace_of(tmp_path, domain or {}, **training)
        step = expert_step(workspace.source("fruit"), workspace.encoder, workspace.training)
        workspace.build(part for one in (step, *step.folds) for part in one.inputs if part not in step.folds)
        return step, workspace.store

    return build


def workspace_of(root, domain, **training):
    training = {**TINY_TRAINING, "selection": "cross_validation", **training}
    domains = {"fruit": {"path": "fruit", **domain}}
    return Pipeline(tiny_recipe(root, domains=domains, training=training)).workspace


def step_of(root, **training):
    """The step of the domain's expert; nothing is built."""
    workspace = workspace_of(root, {}, **training)
    return expert_step(workspace.source("fruit"), workspace.encoder, workspace.training)


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
    step, store = steps({"passages": CUT})
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


def test_the_same_question_by_several_users_is_in_one_fold(tmp_path, steps):
    judged = write_short_documents(
        tmp_path, ([*range(10), *range(10)], range(10)), ask=lambda _, document: f"Where is {document}?"
    )
    step, store = steps()
    held = []
    for trained, held_out in trained_and_held_out(step, store):
        assert not set(trained.queries.values()) & set(held_out.queries.values())
        assert len(held_out.queries) in (9, 12)
        held += held_out.queries
    assert sorted(held) == sorted(judged)


def test_queries_written_about_one_document_are_in_one_fold(tmp_path, steps):
    judged = write_short_documents(tmp_path, ([*range(8)] * 3, range(8, 12)), sources=dict)
    step, store = steps()
    for trained, held_out in trained_and_held_out(step, store):
        assert not {judged[query] for query in trained.queries} & {
            judged[query] for query in held_out.queries
        }


def test_a_source_that_names_no_judged_document_says_nothing_of_queries(tmp_path, steps):
    write_short_documents(
        tmp_path, (range(8), range(8, 12)), sources=lambda judged: dict.fromkeys(judged, "web")
    )
    step, store = steps()
    assert [len(held_out.queries) for _, held_out in trained_and_held_out(step, store)] == [4, 4, 4]


def test_folds_that_groups_move_have_other_keys_than_thirds_by_id(tmp_path):
    """With the keys of the thirds, what was stored of those would be taken for them."""
    sources = {"none": None, "apart": lambda judged: {query: query for query in judged}, "alike": dict}
    keys = {}
    for name, make in sources.items():
        own = {"sources": make} if make else {}
        write_short_documents(tmp_path / name, ([*range(10)] * 2, range(10, 14)), **own)
        step = step_of(tmp_path / name)
        parts = [fold.job.parts[0] for fold in step.folds]
        keys[name] = {step.key, *(fold.key for fold in step.folds)}
        keys[name] |= {key for part in parts for key in (part.train_key, part.dev_key)}
    assert keys["none"] == keys["apart"]
    assert not keys["none"] & keys["alike"]


@pytest.mark.parametrize(("train", "dev", "most"), [(8, 4, 8), (9, 3, 8), (6, 30, 6), (6, 4, 6)])
def test_a_fold_learns_from_no_more_queries_than_the_expert(tmp_path, steps, train, dev, most):
    write_short_documents(tmp_path, (range(train), range(train, train + dev)))
    step, store = steps()
    of_train = {f"q{number}" for number in range(train)}
    for trained, held_out in trained_and_held_out(step, store):
        assert len(trained.queries) == most
        assert of_train <= trained.queries.keys() | held_out.queries.keys()
        assert len(held_out.queries) in ((train + dev) // 3, (train + dev) // 3 + 1)
    assert step.folds[0].describe == f"{most} queries"


def test_queries_that_no_expert_trains_on_are_in_no_fold(tmp_path, steps):
    judged = write_short_documents(tmp_path, ([*range(8)] * 2, range(8, 12)), sources=dict)
    plain, (step, store) = step_of(tmp_path), steps(held_out_fraction=0.25)
    assert step.key != plain.key
    train_key = step.job.parts[0].train_key
    assert train_key != plain.job.parts[0].train_key
    train = load_judgements(store, train_key).queries.keys()
    assert len(train) == 12
    held_back = {query for query in judged if int(query[1:]) < 16} - train
    assert not {judged[query] for query in train} & {judged[query] for query in held_back}
    for trained, held_out in trained_and_held_out(step, store):
        assert not held_back & (trained.queries.keys() | held_out.queries.keys())
        assert len(trained.queries) <= 12


def test_two_labelled_queries_are_two_folds(tmp_path, steps):
    write_short_documents(tmp_path, ([0], [1]))
    step, store = steps()
    assert [fold.name for fold in step.folds] == ["fruit fold 1 of 2", "fruit fold 2 of 2"]
    for trained, held_out in trained_and_held_out(step, store):
        assert len(trained.queries) == len(held_out.queries) == 1


def test_queries_that_all_ask_the_same_are_refused_before_training(tmp_path):
    write_short_documents(tmp_path, ([0, 0, 0], [0]), ask=lambda *_: "where?")
    with pytest.raises(
        DatasetError, match=r"the 4 train and dev queries ask the same .*; add others, or set"
    ):
        step_of(tmp_path)
    assert not step_of(tmp_path, selection="best_step").folds
