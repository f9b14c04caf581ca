"""Rerankers as teachers: a cross-encoder's folder, an endpoint that fails in every way, and what is kept."""

import shutil

import numpy as np
import pytest
from routerretriever.errors import EncoderError, TeacherError
from routerretriever.methods.experts import Experts
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.pipeline.plan import plan_run
from routerretriever.training.candidates import ScoreCandidates, read_candidates
from routerretriever.training.rerankers import Candidates, open_reranker
from routerretriever.training.teacher_settings import CrossEncoderTeacher, EndpointTeacher
from support.encoders import write_cross_encoder
from support.recipes import TINY_TRAINING, tiny_recipe, with_changes
from support.workers import work_here
from support.writers import endpoint

QUESTIONS = [
    Candidates("the quick fox", ["lazy dog", "copper and zinc " * 20, "a b"]),
    Candidates("zinc", ["text"]),
]


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory):
    return write_cross_encoder(tmp_path_factory.mktemp("teacher") / "model")


def test_a_cross_encoder_gives_each_pair_its_logit_whatever_the_batch(cross_encoder):
    one, other = (
        open_reranker(CrossEncoderTeacher(model=str(cross_encoder), batch_size=size)).score(QUESTIONS)
        for size in (1, 32)
    )
    assert [len(scores) for scores in one] == [3, 1]
    for alone, together in zip(one, other, strict=True):
        np.testing.assert_allclose(alone, together, atol=1e-4)
    assert any(scores.min() < 0 or scores.max() > 1 for scores in one)  # logits, no probabilities


def test_a_cross_encoder_keeps_its_scores_in_another_folder(cross_encoder, tmp_path):
    moved = tmp_path / "moved"
    moved.symlink_to(cross_encoder)
    there, here = (CrossEncoderTeacher(model=str(folder)).identity() for folder in (moved, cross_encoder))
    assert there == here
    copied = shutil.copytree(cross_encoder, tmp_path / "copied")
    (copied / "._config.json").write_bytes(b"a note of macOS")
    assert CrossEncoderTeacher(model=str(copied)).identity() == here
    assert CrossEncoderTeacher(model=str(moved), depth=7).identity() != here
    assert CrossEncoderTeacher(model=str(write_cross_encoder(tmp_path / "2", 2))).identity() != here


def test_what_is_no_cross_encoder_is_refused_in_one_line(tmp_path):
    def told(folder):
        with pytest.raises((TeacherError, EncoderError)) as refused:
            open_reranker(CrossEncoderTeacher(model=str(folder))).check()
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert "has 3 labels, and a teacher gives one score" in told(write_cross_encoder(tmp_path / "three", 3))
    broken = write_cross_encoder(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    assert "cannot be loaded as a cross-encoder" in told(broken)
    assert "training.teacher.model" in told(tmp_path)


def test_a_dry_run_refuses_a_teacher_that_cannot_score(tiny_data):
    folder = write_cross_encoder(tiny_data / "two", 2)
    teacher = {"kind": "cross_encoder", "model": str(folder)}
    pipeline = Pipeline(tiny_recipe(tiny_data, training={"teacher": teacher}))
    with pytest.raises(TeacherError, match="has 2 labels"):
        _ = pipeline.preflight


def cohere(body):
    """Cohere's form, best first."""
    rows = [
        {"index": number, "relevance_score": 1 / (1 + len(text))}
        for number, text in enumerate(body["documents"])
    ]
    return {"results": sorted(rows, key=lambda row: -row["relevance_score"])}


def tei(body):
    """That of Text Embeddings Inference, best first."""
    assert body["raw_scores"]
    assert body["truncate"]
    rows = [{"index": number, "score": -len(text)} for number, text in enumerate(body["texts"])]
    return sorted(rows, key=lambda row: -row["score"])


def asked(server, **changes):
    return open_reranker(
        EndpointTeacher(
            **{"kind": "endpoint", "url": server.url, "model": "m", "timeout_seconds": 30, **changes}
        )
    )


@pytest.mark.parametrize(("api", "reply"), [("cohere", cohere), ("tei", tei)])
def test_scores_come_in_the_order_of_the_documents_some_requests_at_a_time(api, reply):
    questions = [Candidates(f"query {number}", ["ccc", "a", "bb"]) for number in range(6)]
    with endpoint("rerank", reply) as server:
        scores = asked(server, api=api, batch_size=2, concurrency=3).score(questions)
    assert len(server.requests) == 12
    assert 1 <= server.most_at_once <= 3
    for own in scores:
        assert own[1] > own[2] > own[0]
    if api == "cohere":
        assert {body["model"] for body in server.requests} == {"m"}


def test_more_fields_are_sent_and_ours_can_be_left_out():
    extra = {"truncate_prompt_tokens": -1, "top_n": None}
    with endpoint("rerank", cohere) as server:
        asked(server, extra_body=extra).score(QUESTIONS[:1])
        plain = EndpointTeacher(kind="endpoint", url=server.url, model="m")
        with pytest.raises(ValueError, match="documents, model: not to be set here"):
            asked(server, extra_body={"model": "n", "documents": [], "top_k": 3})
    assert server.requests[0]["truncate_prompt_tokens"] == -1
    assert "top_n" not in server.requests[0]
    assert plain.model_copy(update={"extra_body": extra}).identity() != plain.identity()


def test_an_endpoint_that_fails_half_of_the_time_gives_every_score():
    with endpoint("rerank", cohere) as server:
        server.fails = lambda number: number % 2 == 0
        scores = asked(server, concurrency=1).score(QUESTIONS)
    assert [len(own) for own in scores] == [3, 1]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"html": True}, r"2 attempts failed, the last with: answered text/html, no scores"),
        ({"status": 500}, r"the last with: status 500: no; check.*finished shards are kept"),
        ({"status": 401}, r"refused a request without a key \(status 401\)"),
        ({"status": 402}, r"wants to be paid first \(status 402\)"),
        ({"status": 404}, r"reranks nothing.*give the API's root, without /rerank"),
        ({"status": 422}, r"refused a request \(status 422: .*batch_size lower.*truncate_prompt_tokens"),
    ],
    ids=str,
)
def test_an_endpoint_that_gives_no_scores_is_one_line(changes, told):
    with endpoint("rerank", cohere) as server:
        vars(server).update(changes)
        with pytest.raises(TeacherError, match=told) as failed:
            asked(server, attempts=2, concurrency=2).score(QUESTIONS)
    assert "\n" not in str(failed.value)


def test_scores_that_are_missing_are_no_scores():
    with (
        endpoint("rerank", lambda body: {"results": cohere(body)["results"][:1]}) as server,
        pytest.raises(TeacherError, match="1 scores for 3 documents"),
    ):
        asked(server, attempts=1).score(QUESTIONS[:1])


def test_the_key_comes_from_the_environment_and_is_in_no_message(monkeypatch, caplog):
    monkeypatch.delenv("OWN_KEY", raising=False)
    with endpoint("rerank", cohere) as server:
        own = asked(server, key_variable="OWN_KEY")
        with pytest.raises(TeacherError, match=r"key_variable: the environment variable OWN_KEY is not set"):
            own.check()
        monkeypatch.setenv("OWN_KEY", "very-secret")
        own.check()
        own.score(QUESTIONS[1:])
        assert server.keys == {"Bearer very-secret": 1}
        server.status = 403
        with pytest.raises(TeacherError) as refused:
            own.score(QUESTIONS)
    assert "very-secret" not in str(refused.value) + caplog.text


def test_a_url_with_a_password_is_in_no_card():
    settings = EndpointTeacher(kind="endpoint", url="https://me:very-secret@host/v1", model="m")
    assert "very-secret" not in settings.model_dump_json()


@pytest.fixture
def taught(tiny_data, monkeypatch):
    """A recipe whose one expert has an endpoint as teacher, worked on in this process."""
    work_here(monkeypatch, "corpus.build", "runtime.shards")

    def make(server, **changes):
        teacher = {"kind": "endpoint", "url": server.url, "model": "m", "depth": 5, "shard_size": 4}
        training = TINY_TRAINING | {"distillation": 1.0, "teacher": teacher | {"attempts": 1} | changes}
        return tiny_recipe(tiny_data, domains={"fruit": {"path": "fruit"}}, training=training)

    return make


def teaching(pipeline):
    return [step for step in pipeline.steps() if isinstance(step, ScoreCandidates)]


def test_each_train_query_has_the_base_s_best_documents_and_its_positives_scored_once(taught):
    with endpoint("rerank", cohere) as server:
        pipeline = Pipeline(taught(server))
        (step,) = teaching(pipeline)
        pipeline.workspace.build([step])
        requests = len(server.requests)
        pipeline.workspace.build([step])
        assert len(server.requests) == requests
    corpus = pipeline.workspace.open_corpus("fruit")
    qrels = pipeline.collections["fruit"].qrels("train")
    scored = {one.query_id: one for one in read_candidates(pipeline.store, step.key)}
    assert scored.keys() == qrels.keys()
    for query_id, one in scored.items():
        positives = {corpus.rows[document] for document in qrels[query_id]}
        assert positives <= set(one.rows.tolist())
        assert len(one.rows) - len(positives) <= 5 <= len(one.rows)
        assert (np.diff(one.rows) > 0).all()
        lengths = [len(corpus.document(row).content) for row in one.rows.tolist()]
        np.testing.assert_allclose(one.scores, 1 / (1 + np.array(lengths)), rtol=1e-5)


def test_an_endpoint_that_breaks_down_keeps_the_shards_that_are_finished(taught):
    with endpoint("rerank", cohere) as server:
        server.fails = lambda number: number >= 6
        pipeline = Pipeline(taught(server, concurrency=1))
        (step,) = teaching(pipeline)
        with pytest.raises(TeacherError, match="finished shards are kept"):
            pipeline.workspace.build([step])
        assert step.is_started(pipeline.store)
        server.fails = lambda number: False
        before = len(server.requests)
        pipeline.workspace.build([step])
        # One trial, and the ten queries of the shards that were missing.
        assert len(server.requests) == before + 1 + 10
    assert len(list(read_candidates(pipeline.store, step.key))) == 14


def test_nothing_is_started_for_an_endpoint_that_answers_html(taught, monkeypatch):
    with endpoint("rerank", cohere) as server:
        server.html = True
        pipeline = Pipeline(taught(server))
        monkeypatch.setattr(
            "routerretriever.runtime.shards.run_shards", lambda *_: pytest.fail("a worker was started")
        )
        with pytest.raises(TeacherError, match="answered text/html, no scores"):
            pipeline.workspace.build(teaching(pipeline))


def test_the_plan_shows_what_is_scored_and_folds_share_it(taught):
    with endpoint("rerank", cohere) as server:
        once = Pipeline(taught(server))
        folded = Pipeline(with_changes(once.recipe, training__selection="cross_validation"))
    (shown,) = [stage for stage in plan_run(once) if stage.stage.startswith("teach")]
    assert shown.to_do == "train of fruit: 14 queries x 5 documents, and positives"
    assert shown.asks_for == "1 worker, each 1 CPU"
    (alone,), both = teaching(once), teaching(folded)
    assert [step.split for step in both] == ["train", "dev"]
    assert both[0].key == alone.key
    step = folded.method(Experts).train_steps["fruit"]
    assert step.job.parts[0].candidate_keys == (alone.key,)
    for fold in step.folds:
        assert fold.job.parts[0].candidate_keys == tuple(one.key for one in both)
        assert {one.key for one in both} <= {one.key for one in fold.inputs}


def test_an_expert_s_key_tells_its_teacher(taught):
    with endpoint("rerank", cohere) as server:
        pipelines = [Pipeline(taught(server, depth=depth)) for depth in (5, 6)]
    keys = {pipeline.method(Experts).train_steps["fruit"].key for pipeline in pipelines}
    assert len(keys) == 2
