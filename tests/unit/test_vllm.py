"""The writer that runs vLLM through Ray Data, with stubs of Ray's processor and of the cluster."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
from ray.exceptions import RayActorError
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.config.loading import parse_settings
from routerretriever.errors import BadInput, RecipeError, WriterError
from routerretriever.generation.generate import Generation
from routerretriever.generation.settings import GenerationSettings, VllmSettings
from routerretriever.generation.sources import RealQueries, choose
from routerretriever.generation.step import read_drafts, write_step
from routerretriever.generation.vllm import engine_config
from routerretriever.generation.writers import open_model
from support.collections import documents_alone
from support.recipes import tiny_recipe

TOKENS = 100


class Engines:
    """What the stub of Ray's processor does, and what it saw."""

    def __init__(self) -> None:
        self.installed = True
        self.gpus = 2
        self.starts: list[int] = []
        """Engines of each start."""
        self.asked: list[str] = []
        self.refuses = lambda prompt: False
        self.dies_after: int | None = None

    def build(self, config, postprocess):
        """In the place of ``build_processor``."""
        self.starts.append(config.concurrency)
        return lambda rows: Dataset(self, rows, postprocess)

    def room(self, cpus, gpus):
        """In the place of ``room_for``."""
        if self.gpus < gpus:
            raise BadInput(f"the cluster's machines can hold {self.gpus // gpus} such worker(s)")
        return int(self.gpus // gpus)


class Dataset:
    def __init__(self, engines: Engines, rows, postprocess) -> None:
        self._engines, self._rows, self._postprocess = engines, rows, postprocess

    def iter_rows(self) -> Iterator[dict]:
        for done, row in enumerate(reversed(self._rows)):
            if done == self._engines.dies_after:
                raise RayActorError()
            prompt = row["messages"][-1]["content"]
            self._engines.asked.append(prompt)
            if self._engines.refuses(prompt):
                yield {
                    **row,
                    "generated_text": "",
                    "__inference_error__": "ValueError: the prompt is too long",
                }
                continue
            tokens = {"num_input_tokens": TOKENS - 10, "num_generated_tokens": 10}
            text = f"Query: where is number {row['sampling_params']['seed']}"
            yield {**self._postprocess({**row, **tokens, "generated_text": text}), "__inference_error__": ""}


@pytest.fixture
def engines(monkeypatch):
    told, find = Engines(), importlib.util.find_spec

    def found(name, *rest):
        return told.installed or None if name == "vllm" else find(name, *rest)

    monkeypatch.setattr("importlib.util.find_spec", found)
    monkeypatch.setattr("routerretriever.generation.vllm.join_quietly", lambda: None)
    monkeypatch.setattr("routerretriever.generation.vllm.room_for", told.room)
    monkeypatch.setattr("ray.data.from_items", list)
    monkeypatch.setattr("ray.data.llm.build_processor", told.build)
    return told


@pytest.fixture
def documents(tmp_path):
    return documents_alone(tmp_path / "fruit")


@pytest.fixture
def store(tmp_path):
    return ArtifactStore.open(str(tmp_path / "storage"))


def settings(writer=(), **changes) -> GenerationSettings:
    own = {"kind": "vllm", "model": "m", **dict(writer)}
    given = {"min_document_words": 1, "documents": 20, "shard_size": 5, "writer": own, **changes}
    return parse_settings(GenerationSettings, given, "generation")


def step_of(documents, own):
    return write_step(documents, choose(documents, RealQueries(), own), own)


def test_one_start_of_the_engines_answers_all_and_a_row_that_fails_is_dropped(documents, store, engines):
    step = step_of(documents, settings())
    bad = step.requests[7].text
    engines.refuses = lambda prompt: bad in prompt
    type(step).build_all([step], store)
    drafts, tokens = read_drafts(store, step)
    assert engines.starts == [2]
    assert [number for number, one in enumerate(drafts) if one.problem == "refused by vLLM"] == [7]
    assert sum(one.query.startswith("where is number") for one in drafts) == 19
    assert len({one.query for one in drafts}) == 20
    assert tokens == 19 * TOKENS == step.spent(store)


def test_engines_that_die_lose_no_answer_and_the_same_command_asks_for_the_rest(documents, store, engines):
    step = step_of(documents, settings())
    engines.dies_after = 13
    with pytest.raises(WriterError, match=r"vLLM stopped \(.*run the same command again") as said:
        type(step).build_all([step], store)
    assert "\n" not in str(said.value)
    assert len(step.missing(store)) == 7
    engines.dies_after = None
    type(step).build_all([step], store)
    assert all(one.query for one in read_drafts(store, step)[0])
    assert len(engines.asked) == len(set(engines.asked)) == 20


def test_what_a_shard_has_gathered_is_kept_while_the_engines_go_on(documents, store, engines):
    step = step_of(documents, settings())
    left = []
    engines.refuses = lambda prompt: left.append(len(step.missing(store)))
    type(step).build_all([step], store)
    assert left == [20 - number // 5 * 5 for number in range(20)]


def test_engines_that_answer_nothing_of_use_end_the_run_in_one_line(documents, store, engines):
    step = step_of(documents, settings())
    engines.refuses = lambda prompt: True
    with pytest.raises(WriterError, match=r"none of 5 requests in a row gave a query \(refused by vLLM\)"):
        type(step).build_all([step], store)
    assert len(engines.asked) == 5
    engines.refuses = lambda prompt: False
    type(step).build_all([step], store)
    assert all(one.query for one in read_drafts(store, step)[0])


def test_the_budget_is_kept_over_runs_and_what_it_paid_for_too(documents, store, engines):
    budget = 1500
    step = step_of(documents, settings({"token_budget": budget}))
    with pytest.raises(WriterError, match=r"token_budget: 1500 tokens, .*run the same command again"):
        type(step).build_all([step], store)
    first = step.spent(store)
    assert 0 < first < budget
    with pytest.raises(WriterError, match="token_budget"):
        type(step).build_all([step], store)
    assert first <= step.spent(store) <= budget
    richer = step_of(documents, settings({"token_budget": 100_000}))
    assert richer.key == step.key
    type(richer).build_all([richer], store)
    assert richer.spent(store) == 20 * TOKENS
    assert len(engines.asked) == 20


def test_without_vllm_or_a_gpu_one_line_says_so_and_nothing_is_started(documents, store, engines):
    step = step_of(documents, settings({"gpus": 4}))
    with pytest.raises(
        WriterError, match=r"'vllm' needs a machine with 4 GPU\(s\) for an engine \(.*add one"
    ):
        type(step).build_all([step], store)
    engines.installed = False
    with pytest.raises(WriterError, match=r"not installed; get it with `pip install 'ray\[llm\]'`"):
        type(step).build_all([step], store)
    labelled = step_of(documents, settings(labels={"zone": "a"}))
    engines.installed = True
    with pytest.raises(WriterError, match=r"leave generation\.labels out"):
        type(labelled).build_all([labelled], store)
    assert engines.starts == []


def test_the_dry_run_starts_no_engine(documents, store, engines, tmp_path):
    recipe = tiny_recipe(tmp_path)
    estimate = Generation(documents, store, recipe.encoder, recipe.corpus, settings()).estimate()
    assert (estimate.calls, estimate.written, estimate.seconds) == (20, 0, None)
    assert estimate.tokens > 20 * 32
    assert "at most" in estimate.told()
    assert engines.starts == []


def test_ray_s_processor_gets_the_model_its_gpus_and_the_user_s_own_arguments():
    own = VllmSettings(kind="vllm", model="m", gpus=2, batch_size=8, engine={"max_model_len": 4096})
    config = engine_config(own, engines=3)
    assert (config.model_source, config.concurrency, config.batch_size) == ("m", 3, 8)
    assert config.engine_kwargs.items() >= {"tensor_parallel_size": 2, "max_model_len": 4096}.items()
    assert config.should_continue_on_error


def test_a_token_among_the_engine_s_arguments_is_refused_and_not_shown():
    values = {"kind": "vllm", "model": "m", "engine": {"hf_token": "very-secret"}}
    with pytest.raises(RecipeError, match=r"engine: hf_token .*set HF_TOKEN") as refused:
        parse_settings(VllmSettings, values, "generation.writer")
    assert "very-secret" not in str(refused.value)


def test_as_many_engines_are_started_as_were_asked_for_and_fit(documents, store, engines):
    engines.gpus = 8
    assert step_of(documents, settings({"gpus": 2}, workers=3)).asks_for() == "3 workers, each 1 CPU, 2 GPU"
    for workers, started in ((3, 3), (9, 4), (None, 4)):
        step = step_of(documents, settings({"gpus": 2}, workers=workers, seed=started + (workers or 0)))
        type(step).build_all([step], store)
        assert engines.starts[-1] == started


def test_a_judge_names_a_server_of_vllm_instead():
    with pytest.raises(WriterError, match=r"judging\.writer\.kind: 'vllm' writes queries and grades nothing"):
        open_model(VllmSettings(kind="vllm", model="m"), 16, 0, "judging.writer")
