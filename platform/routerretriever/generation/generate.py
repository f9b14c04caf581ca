"""From a collection's documents to a collection with queries: the one path of all commands."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from routerretriever.artifacts.step import build_missing
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import corpus_key, open_corpus
from routerretriever.corpus.build import EncodeCorpus, corpus_step
from routerretriever.datasets.collection import Collection
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.generation.drafts import Drafts, new_file
from routerretriever.generation.filters import Ranks, apply_filters
from routerretriever.generation.folder import Generated, read_generated, write_generated
from routerretriever.generation.prompts import most_tokens, prompt_for
from routerretriever.generation.protocol import Teacher
from routerretriever.generation.settings import GenerationSettings, VllmSettings
from routerretriever.generation.sources import RealQueries, choose, real_queries
from routerretriever.generation.step import WriteQueries, read_drafts, require_answer, write_step
from routerretriever.generation.writers import open_writer
from routerretriever.hashing import content_hash
from routerretriever.index.settings import CollectionSettings
from routerretriever.runtime.progress import log

TRIAL_CALLS = 4


@dataclass(frozen=True)
class Estimate:
    """What a generation will take, from a few trial calls."""

    documents: int
    calls: int
    written: int
    """Calls whose answers are in storage, those of the trial among them."""
    tokens: int
    """Read and written by the calls to come."""
    seconds: float | None
    """That they take, on one worker; None where no call was tried."""
    examples: tuple[tuple[str, str], ...]
    """Type and query of each trial call that gave one."""

    def told(self) -> str:
        """The estimate, for people."""
        if self.seconds is None:
            to_come = f"at most {self.tokens} tokens to come (no trial calls: engines take minutes to start)"
        else:
            to_come = (
                f"about {self.tokens} tokens and {self.seconds / 60:.1f} minutes to come (one worker; from "
                f"{TRIAL_CALLS} trial calls)"
            )
        lines = [
            f"{self.documents} documents, {self.calls} calls, {self.written} of them made already",
            to_come,
        ]
        return "\n".join([*lines, *(f"  {type_}: {query}" for type_, query in self.examples)])


@dataclass(frozen=True)
class Generation:
    """A generation for one collection. Nothing is made before it is asked for."""

    collection: Collection
    store: ArtifactStore
    encoder: EncoderSettings
    corpus: CollectionSettings
    settings: GenerationSettings
    teacher: Teacher | None = None
    """What the domain's expert is taught by; it is asked about what the round trip keeps."""

    @property
    def asked_teacher(self) -> Teacher | None:
        """The teacher; None where there is none, or no round trip that finds documents for it."""
        return None if self.settings.filters.round_trip == "none" else self.teacher

    @cached_property
    def real(self) -> RealQueries:
        """What people have asked of it already."""
        return real_queries(self.collection)

    @cached_property
    def step(self) -> WriteQueries:
        """The step that writes the queries.

        Raises:
            DatasetError: there is no document to ask about.
        """
        return write_step(self.collection, choose(self.collection, self.real, self.settings), self.settings)

    def key(self) -> str:
        """A hash of everything that the new collection is made from."""
        real, settings = self.real, self.settings
        return content_hash(
            self.step.key,
            corpus_key(self.collection, self.encoder),
            settings.filters.model_dump(),
            self.corpus.model_dump(include={"index", "lexical", "fusion"}),
            settings.dev_fraction,
            [real.dev, real.dev_qrels, real.test, real.test_qrels],
            *self._teacher_facts().values(),
        )

    def estimate(self) -> Estimate:
        """Have a few of the missing queries written, and say what the others will take.

        What was written is kept, and counts for the budget: the run does not ask for it again. vLLM is not
        tried: its engines take longer to start than such calls.

        Raises:
            WriterError: none of the calls gave a query, or the budget is spent.
        """
        step, drafts = self.step, Drafts(self.store, self.step.drafts_key)
        writer = open_writer(self.settings, step.spent(self.store))
        writer.check()
        if isinstance(self.settings.writer, VllmSettings):
            return self._untried_estimate()
        tried = step.missing(self.store)[: TRIAL_CALLS + 1]
        # The first call loads the model, which is not to be timed.
        answers = drafts.extend(writer, tried[:1], new_file(), trial=True)
        start = time.monotonic()
        answers += drafts.extend(writer, tried[1:], new_file(), trial=True)
        seconds = (time.monotonic() - start) / max(1, len(tried) - 1)
        if tried:
            require_answer(answers)
        tokens = sum(written.tokens for written in answers) / max(1, len(tried))
        answered = drafts.read()
        to_come = len(answered.unsettled(step.requests))
        found = [(one.type, answered.settled[one.id].query) for one in tried if one.id in answered.settled]
        return Estimate(
            documents=len({request.document for request in step.requests}),
            calls=len(step.requests),
            written=len(step.requests) - to_come,
            tokens=round(tokens * to_come),
            seconds=seconds * to_come,
            examples=tuple((type_, query) for type_, query in found if query),
        )

    def _untried_estimate(self) -> Estimate:
        step, missing = self.step, self.step.missing(self.store)
        most = [
            most_tokens(prompt_for(one, self.settings), self.settings.max_query_tokens) for one in missing
        ]
        return Estimate(
            documents=len({request.document for request in step.requests}),
            calls=len(step.requests),
            written=len(step.requests) - len(missing),
            tokens=sum(most),
            seconds=None,
            examples=(),
        )

    def run(self, folder: Path) -> Generated:
        """Write the queries, filter them, and write the new collection.

        A run that was stopped goes on where it was; a folder that is there and was made from the same is
        given back.

        Raises:
            DatasetError: the folder is something else, or too few documents or queries are left.
            WriterError: the writer cannot write.
            TeacherError: the teacher cannot score.
        """
        key = self.key()
        if (there := read_generated(folder, key)) is not None:
            log.info("%s: there already", folder)
            return there
        if self.asked_teacher is not None:
            self.asked_teacher.check()
        step = self.step
        corpus = corpus_step(self.collection, self.encoder, self.corpus)
        build_missing([step, corpus], self.store)
        drafts, tokens = read_drafts(self.store, step)
        ranks, teacher_ranks = self._trips(corpus)
        drafts = apply_filters(drafts, self.real.texts, self.settings.filters, ranks, teacher_ranks)
        facts = {
            "key": key,
            "settings": self.settings.model_dump(mode="json", exclude={"workers", "shard_size"}),
            "tokens": tokens,
        } | self._teacher_facts()
        return write_generated(self.collection, self.real, drafts, folder, self.settings.dev_fraction, facts)

    def _trips(self, corpus: EncodeCorpus) -> tuple[Ranks | None, Ranks | None]:
        """The round trip and the teacher's, if they are asked for."""
        filters = self.settings.filters
        if filters.round_trip == "none":
            return None, None
        from routerretriever.adapters.tower import load_tower
        from routerretriever.generation.round_trip import RoundTrip, TeacherTrip

        encoded = open_corpus(self.store, corpus.key)
        trip = RoundTrip(encoded, load_tower(self.encoder), self.corpus, filters, self.store)
        if self.asked_teacher is None:
            return trip, None
        return trip, TeacherTrip(trip, encoded, self.asked_teacher, filters.depth)

    def _teacher_facts(self) -> dict[str, Any]:
        return {} if self.asked_teacher is None else {"teacher": self.asked_teacher.identity()}
