"""Training where queries are documents themselves: a query's own document is nothing to be told from."""

import pytest
from routerretriever.corpus.artifact import open_corpus
from routerretriever.datasets.collection import Document, open_collection
from routerretriever.datasets.judgements import Judgements
from routerretriever.encoder.encoder import Encoder
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.index.dense import SearchIndex
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.training.examples import Examples
from routerretriever.training.expert import expert_step
from routerretriever.training.settings import TrainingSettings
from support.collections import WORDS, write_collection
from support.corpora import CORPUS, write_corpus
from support.recipes import tiny_recipe

TICKETS = {f"t{number}": f"printer {number % 5} on floor {number // 2} is broken" for number in range(12)}
PARTNERS = {f"t{number}": f"t{number + 1}" for number in range(0, 12, 2)}


@pytest.fixture(scope="module")
def encoder():
    return Encoder.load(EncoderSettings(name="fake"))


def examples_of(folder, encoder, objective, passages=False, **judged):
    """Batches of one query, with three hard negatives: an even ticket, whose partner is relevant."""
    documents = {
        one: text for ticket, text in TICKETS.items() for one in (parts(ticket) if passages else [ticket])
    }
    vectors = encoder.encode_documents(list(documents.values()))
    rows = [
        (Document(one, "", text, None), vector)
        for (one, text), vector in zip(documents.items(), vectors, strict=True)
    ]
    corpus = open_corpus(write_corpus(folder, [rows]), CORPUS)
    qrels = {
        ticket: dict.fromkeys(parts(partner) if passages else [partner], 1)
        for ticket, partner in PARTNERS.items()
    }
    qrels["t0"] |= judged
    queries = {ticket: TICKETS[ticket] for ticket in PARTNERS}
    train = Judgements(queries, qrels, frozenset({"t2"}), passages)
    settings = TrainingSettings(hard_negatives=3, random_negatives=0, batch_size=1)
    examples = Examples(train, corpus, encoder, settings, objective)
    examples.mine(SearchIndex.flat(list(vectors), corpus.ids, encoder.dimension), encoder, train)
    return corpus, {batch.query_ids[0]: batch for batch in (examples.batch(step, 0, 1) for step in range(6))}


def parts(ticket):
    return [f"{ticket}#1", f"{ticket}#2"]


@pytest.mark.parametrize("passages", [False, True])
def test_it_is_no_hard_negative_but_where_results_keep_it(tmp_path, encoder, passages):
    corpus, batches = examples_of(tmp_path, encoder, "sampled", passages)
    assert batches.keys() == PARTNERS.keys()
    for ticket, batch in batches.items():
        own = {corpus.rows[one] for one in (parts(ticket) if passages else [ticket])}
        assert len(batch.candidate_rows) == 4
        if ticket == "t2":
            assert own <= set(batch.candidate_rows.tolist())
            assert not len(batch.left_out_rows[0])
        else:
            assert not own & set(batch.candidate_rows.tolist())
            assert own == set(batch.left_out_rows[0].tolist())


def test_no_hard_negatives_are_drawn_where_none_are_wanted(tmp_path, encoder):
    rows = [
        (Document(one, "", text, None), vector)
        for (one, text), vector in zip(
            TICKETS.items(), encoder.encode_documents(list(TICKETS.values())), strict=True
        )
    ]
    corpus = open_corpus(write_corpus(tmp_path, [rows]), CORPUS)
    train = Judgements(dict(TICKETS), {ticket: {ticket: 1} for ticket in TICKETS}, frozenset(), False)
    settings = TrainingSettings(objective="sampled", hard_negatives=0, random_negatives=3, batch_size=1)
    batch = Examples(train, corpus, encoder, settings, "sampled").batch(0, 0, 1)
    assert set(batch.target_rows) <= set(batch.candidate_rows)
    assert len(batch.candidate_rows) <= 4


def test_where_it_is_judged_relevant_it_stays_a_positive(tmp_path, encoder):
    corpus, batches = examples_of(tmp_path, encoder, "corpus", t0=1)
    assert corpus.rows["t0"] in batches["t0"].positive_rows[0]
    assert not len(batches["t0"].left_out_rows[0])


def test_only_experts_that_it_changes_have_another_key(tmp_path):
    """A setting that leaves out what no query has, or that keeps all, changes nothing."""
    folder = write_collection(tmp_path / "data" / "fruit", WORDS["fruit"])

    def key(rule):
        domains = {"fruit": {"path": "fruit", "ignore_identical_ids": rule}}
        workspace = Pipeline(tiny_recipe(tmp_path, domains=domains)).workspace
        return expert_step(workspace.source("fruit"), workspace.encoder, workspace.training).key

    assert key("auto") == key(True) == key(False)
    with (folder / "queries.jsonl").open() as queries, (folder / "corpus.jsonl").open("a") as corpus:
        corpus.write(next(queries))
    assert open_collection("fruit", folder).own_left_out("train") == {"q0"}
    assert open_collection("fruit", folder).own_left_out("dev") == frozenset()
    assert len({key("auto"), key(False)}) == 2
