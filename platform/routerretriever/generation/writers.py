"""Which model or writer a setting names, and the writer that needs no model."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence

from routerretriever.datasets.texts import without_punctuation, words
from routerretriever.errors import WriterError
from routerretriever.generation.prompts import Request, clean, prompt_for, without_thoughts
from routerretriever.generation.protocol import LanguageModel, Writer, Written, still_thinking
from routerretriever.generation.settings import (
    EndpointSettings,
    ExtractSettings,
    GenerationSettings,
    VllmSettings,
    WriterSettings,
)
from routerretriever.hashing import content_hash


def open_writer(settings: GenerationSettings, spent: int = 0) -> Writer:
    """The writer that settings name.

    Args:
        settings: of the generation.
        spent: tokens of its budget that earlier runs have spent.
    """
    if isinstance(settings.writer, ExtractSettings):
        return ExtractWriter(settings.writer, settings.seed)
    if isinstance(settings.writer, VllmSettings):
        from routerretriever.generation.vllm import VllmModel

        return ModelWriter(VllmModel(settings, settings.writer, spent), settings)
    model = open_model(settings.writer, settings.max_query_tokens, spent, "generation.writer")
    return ModelWriter(model, settings)


def open_model(settings: WriterSettings, max_tokens: int, spent: int, field: str) -> LanguageModel:
    """The language model that settings name.

    Args:
        settings: of the model.
        max_tokens: the longest answer.
        spent: tokens of its budget that earlier runs have spent.
        field: where the settings stand in the recipe, for messages.

    Raises:
        WriterError: they name no language model, or one that only writes queries.
    """
    if isinstance(settings, ExtractSettings):
        raise WriterError(f"{field}.kind: 'extract' is no language model; name 'endpoint' or 'local'")
    if isinstance(settings, VllmSettings):
        raise WriterError(
            f"{field}.kind: 'vllm' writes queries and grades nothing; start vLLM's own server and name "
            "'endpoint', or name 'local'"
        )
    if isinstance(settings, EndpointSettings):
        from routerretriever.generation.endpoint import EndpointModel

        return EndpointModel(settings, max_tokens, spent, field)
    from routerretriever.generation.local import LocalModel

    return LocalModel(settings, max_tokens, field)


class ModelWriter:
    """Has a language model write the queries."""

    def __init__(self, model: LanguageModel, settings: GenerationSettings) -> None:
        self.model = model
        self._settings = settings

    def check(self) -> None:
        """Whether the model can answer."""
        self.model.check()

    def write(self, requests: Sequence[Request]) -> Iterator[tuple[int, Written]]:
        """Ask for each query."""
        prompts = [prompt_for(request, self._settings) for request in requests]
        for number, answer in self.model.answer(prompts):
            query = clean(answer.text)
            problem = answer.problem
            if not query and not problem:
                thought = without_thoughts(answer.text) != answer.text
                problem = still_thinking(self._settings.max_query_tokens) if thought else "empty answer"
            yield number, Written(query, answer.tokens, problem, answer.passing)


class ExtractWriter:
    """The words of a document that are rarest in it and longest, in an order of its own."""

    def __init__(self, settings: ExtractSettings, seed: int) -> None:
        self._settings = settings
        self._seed = seed

    def check(self) -> None:
        """Always can."""

    def write(self, requests: Sequence[Request]) -> Iterator[tuple[int, Written]]:
        """Extract the words."""
        for number, request in enumerate(requests):
            counts = Counter(words(without_punctuation(request.text)))
            rare = sorted(counts, key=lambda word: (counts[word], -len(word), word))[: self._settings.words]
            random.Random(content_hash(self._seed, request.document, request.type)).shuffle(rare)
            yield number, Written(" ".join(rare))
