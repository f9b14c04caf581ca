"""A chat model that vLLM runs on GPUs, through Ray Data's own processor.

The processor is a Ray dataset with actors of its own. So it is asked from the driver, never within an actor,
and once for all prompts: each time starts the engines anew, which takes minutes.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from routerretriever.errors import BadInput, WriterError
from routerretriever.generation.budget import Budget
from routerretriever.generation.prompts import Prompt, most_tokens
from routerretriever.generation.protocol import Answer
from routerretriever.generation.settings import GenerationSettings, VllmSettings
from routerretriever.runtime.cluster import room_for
from routerretriever.runtime.progress import log
from routerretriever.runtime.shards import join_quietly
from routerretriever.settings import PoolSettings

if TYPE_CHECKING:
    from ray.data.llm import vLLMEngineProcessorConfig

_FIELD = "generation.writer"
_ERROR = "__inference_error__"
"""Ray's column with what went wrong in a row; empty if nothing did."""


class VllmModel:
    """Has engines on the cluster answer prompts, each with a seed of its own."""

    def __init__(self, settings: GenerationSettings, vllm: VllmSettings, spent: int) -> None:
        """Nothing is started yet.

        Args:
            settings: of the generation.
            vllm: its writer.
            spent: tokens of the budget that earlier runs have spent.
        """
        self._vllm = vllm
        self._pool = engine_pool(settings, vllm)
        self._max_tokens = settings.max_query_tokens
        self._budget = Budget(vllm.token_budget, spent, _FIELD)

    def check(self) -> None:
        """Make sure that vLLM is installed and that the cluster has the GPUs of one engine.

        Raises:
            WriterError: it cannot write; the message says what to do.
        """
        if importlib.util.find_spec("vllm") is None:
            raise WriterError(
                f"{_FIELD}.kind: 'vllm' needs vLLM, which is not installed; get it with "
                "`pip install 'ray[llm]'` on every machine, or name 'endpoint' or 'local'"
            )
        if self._pool.labels:
            raise WriterError(
                f"{_FIELD}.kind: Ray chooses the machines of vLLM's engines by their GPUs alone; leave "
                "generation.labels out"
            )
        self._engines()

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
        """Answer as many prompts as the budget allows for, in no order."""
        reserved, refused = self._reserve(prompts)
        for row in self._run([self._row(number, prompts[number]) for number in range(len(reserved))]):
            number, answer = int(row["number"]), _answer_of(row)
            self._budget.settle(reserved[number], answer.tokens)
            yield number, answer
        if refused is not None:
            raise refused

    def _reserve(self, prompts: Sequence[Prompt]) -> tuple[list[int], WriterError | None]:
        """What is set aside for the first prompts, and why there is nothing for the next one."""
        reserved: list[int] = []
        for prompt in prompts:
            tokens = most_tokens(prompt, self._max_tokens)
            try:
                self._budget.reserve(tokens)
            except WriterError as error:
                return reserved, error
            reserved.append(tokens)
        return reserved, None

    def _row(self, number: int, prompt: Prompt) -> dict[str, Any]:
        sampling = {
            "temperature": self._vllm.temperature,
            "max_tokens": self._max_tokens,
            "seed": prompt.seed,
            "detokenize": False,  # a stage of the processor does it
        }
        return {"number": number, "messages": list(prompt.messages), "sampling_params": sampling}

    def _run(self, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        if not rows:
            return
        import ray
        from ray.data.llm import build_processor
        from ray.exceptions import RayActorError, RayTaskError

        engines = self._engines()
        try:
            processor = build_processor(engine_config(self._vllm, engines), postprocess=_result)
            yield from processor(ray.data.from_items(list(rows))).iter_rows()
        except (OSError, ValueError, RayActorError, RayTaskError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
            raise WriterError(
                f"{_FIELD}: vLLM stopped ({reason}); check model, gpus and engine, and run the same command "
                "again: what was answered is kept"
            ) from None

    def _engines(self) -> int:
        """How many engines are started.

        Raises:
            WriterError: the cluster has no room for one.
        """
        join_quietly()
        try:
            room = room_for(self._pool.cpus_per_worker, self._pool.gpus_per_worker)
        except BadInput as error:
            raise WriterError(
                f"{_FIELD}.kind: 'vllm' needs a machine with {self._vllm.gpus} GPU(s) for an engine "
                f"({error}); add one, or name 'endpoint' or 'local'"
            ) from None
        return min(self._pool.workers or room, room)


def engine_pool(settings: GenerationSettings, vllm: VllmSettings) -> PoolSettings:
    """What the engines ask of the cluster: each of them is a worker with its GPUs."""
    return PoolSettings(
        workers=settings.workers,
        cpus_per_worker=settings.cpus_per_worker,
        gpus_per_worker=vllm.gpus,
        labels=settings.labels,
    )


def engine_config(vllm: VllmSettings, engines: int) -> vLLMEngineProcessorConfig:
    """Ray's settings for the processor; a row that fails is marked and ends nothing."""
    from ray.data.llm import vLLMEngineProcessorConfig

    return vLLMEngineProcessorConfig(
        model_source=vllm.model,
        engine_kwargs={"enable_prefix_caching": True, "tensor_parallel_size": vllm.gpus, **vllm.engine},
        concurrency=engines,
        batch_size=vllm.batch_size,
        should_continue_on_error=True,
        log_engine_metrics=False,
    )


def _result(row: dict[str, Any]) -> dict[str, Any]:
    """What is left of a row that was answered; Ray hands on one that failed as it is."""
    tokens = int(row["num_input_tokens"]) + int(row["num_generated_tokens"])
    return {"number": row["number"], "text": row["generated_text"], "tokens": tokens}


def _answer_of(row: dict[str, Any]) -> Answer:
    if reason := row.get(_ERROR):
        log.warning("%s: vLLM: %s", _FIELD, str(reason)[:200])
        return Answer("", 0, "refused by vLLM")
    return Answer(str(row["text"]), int(row["tokens"]))
