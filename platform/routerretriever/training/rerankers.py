"""Rerankers, which read query and document together: a cross-encoder, or an endpoint with one.

An endpoint answers with a list of ``{"index", "score" or "relevance_score"}``, as Text Embeddings Inference
does, or with such a list as ``results``, as Cohere, Jina and vLLM do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import httpx
import numpy as np

from routerretriever.errors import TeacherError, first_line
from routerretriever.runtime.endpoint import (
    Passing,
    key_header,
    key_refused,
    media_type,
    open_client,
    post,
    reason_told,
    retrying,
)
from routerretriever.training.teacher_settings import (
    AnyTeacherSettings,
    CrossEncoderTeacher,
    EndpointTeacher,
)
from routerretriever.types import Scores

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder


@dataclass(frozen=True)
class Candidates:
    """A query, and the documents that are scored for it."""

    query: str
    documents: Sequence[str]


TRIAL = Candidates("a query to try", ("a document", "another"))
"""Whether a reranker scores at all is told by this."""


class Reranker(Protocol):
    """Scores documents for queries, on a scale of its own."""

    def check(self) -> None:
        """Make sure of what can be made sure of without the work of others.

        Raises:
            TeacherError: it cannot score; the message says what to do.
        """

    def score(self, questions: Sequence[Candidates]) -> list[Scores]:
        """The scores of each query's documents [D], in their order.

        Raises:
            TeacherError: they cannot be had.
        """


def open_reranker(settings: AnyTeacherSettings) -> Reranker:
    """The reranker that settings name; nothing is loaded or asked yet."""
    if isinstance(settings, CrossEncoderTeacher):
        return CrossEncoderReranker(settings)
    return EndpointReranker(settings)


class CrossEncoderReranker:
    """A cross-encoder of sentence-transformers; its scores are logits."""

    def __init__(self, settings: CrossEncoderTeacher) -> None:
        self._settings = settings

    def check(self) -> None:
        """Load the model and try it."""
        self.score([TRIAL])

    def score(self, questions: Sequence[Candidates]) -> list[Scores]:
        """Score all pairs together, in batches of similar length."""
        import torch

        pairs = [(one.query, document) for one in questions for document in one.documents]
        scores = self._model.predict(
            pairs,
            batch_size=self._settings.batch_size,
            # A sigmoid, the usual default, flattens what is surely relevant to one score.
            activation_fn=torch.nn.Identity(),
            show_progress_bar=False,
        )
        scores = np.asarray(scores, dtype=np.float32).reshape(len(pairs))
        if not np.isfinite(scores).all():
            raise TeacherError(
                f"training.teacher.model: {self._settings.model} gives scores that are not finite; name "
                "another model"
            )
        return np.split(scores, np.cumsum([len(one.documents) for one in questions])[:-1])

    @cached_property
    def _model(self) -> CrossEncoder:
        import transformers
        from sentence_transformers import CrossEncoder

        transformers.utils.logging.disable_progress_bar()
        name, folder = self._settings.model, self._settings.folder()
        try:
            model = CrossEncoder(str(folder), max_length=self._settings.max_length, local_files_only=True)
            labels = model.num_labels
        except Exception as error:  # whatever such files can cause
            reason = first_line(error)[:200]
            raise TeacherError(
                f"training.teacher.model: {name} cannot be loaded as a cross-encoder ({reason}); name the "
                "folder or id of one"
            ) from None
        if labels != 1:
            raise TeacherError(
                f"training.teacher.model: {name} has {labels} labels, and a teacher gives one score; name a "
                "reranker with one label"
            )
        return model


class EndpointReranker:
    """Asks ``/rerank`` for the scores of some documents a request."""

    def __init__(self, settings: EndpointTeacher) -> None:
        self._settings = settings
        self._url = f"{settings.url.rstrip('/')}/rerank"

    def check(self) -> None:
        """Make sure of the key and the proxies; nobody is asked, as all scores may be there."""
        self._open().close()

    def score(self, questions: Sequence[Candidates]) -> list[Scores]:
        """Send the requests, some at a time; the first that fails for good ends it."""
        size = self._settings.batch_size
        parts = [
            (number, Candidates(one.query, one.documents[start : start + size]))
            for number, one in enumerate(questions)
            for start in range(0, len(one.documents), size)
        ]
        scores: list[list[float]] = [[] for _ in questions]
        with (
            self._open() as http,
            ThreadPoolExecutor(self._settings.concurrency) as pool,
        ):
            futures = [pool.submit(self._ask, http, part) for _, part in parts]
            try:
                for (number, _), future in zip(parts, futures, strict=True):
                    scores[number] += future.result()
            except TeacherError:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [np.array(own, dtype=np.float32) for own in scores]

    def _open(self) -> httpx.Client:
        settings = self._settings
        return open_client(self._headers(), settings.timeout_seconds, settings.concurrency, TeacherError)

    def _ask(self, http: httpx.Client, part: Candidates) -> list[float]:
        try:
            return retrying(self._settings.attempts)(self._send, http, part)
        except Passing as error:
            raise TeacherError(
                f"training.teacher.url: {self._url}: {self._settings.attempts} attempts failed, the last "
                f"with: {error}; check the endpoint and run the same command again: finished shards "
                "are kept"
            ) from None

    def _send(self, http: httpx.Client, part: Candidates) -> list[float]:
        response = post(http, self._url, self._body(part))
        if response.status_code >= 400:
            raise TeacherError(self._refusal(response))
        try:
            answer = response.json()
            rows = answer["results"] if isinstance(answer, dict) else answer
            found = {int(row["index"]): float(row.get("relevance_score", row.get("score"))) for row in rows}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise Passing(f"answered {media_type(response)}, no scores") from None
        scores = [found.get(index, math.nan) for index in range(len(part.documents))]
        if not all(map(math.isfinite, scores)):
            given = sum(map(math.isfinite, scores))
            raise Passing(f"{given} scores for {len(part.documents)} documents")
        return scores

    def _body(self, part: Candidates) -> dict[str, Any]:
        documents = list(part.documents)
        if self._settings.api == "tei":
            own = {"query": part.query, "texts": documents, "raw_scores": True, "truncate": True}
        else:
            own = {
                "model": self._settings.model,
                "query": part.query,
                "documents": documents,
                "top_n": len(documents),
            }
        return self._settings.complete(own)

    def _headers(self) -> dict[str, str]:
        return key_header(self._settings.key_variable, "training.teacher.key_variable", TeacherError)

    def _refusal(self, response: httpx.Response) -> str:
        status = response.status_code
        if told := key_refused(response, self._url, self._settings.key_variable, "training.teacher"):
            return told
        if status in (404, 405):
            return (
                f"training.teacher.url: {self._url} reranks nothing, or knows no model "
                f"{self._settings.model!r} (status {status}); give the API's root, without /rerank"
            )
        return (
            f"training.teacher: {self._url} refused a request (status {status}: {reason_told(response)!r}); "
            "check api and model, or set batch_size lower; a server that refuses long documents may cut them "
            "if asked to, as vLLM by extra_body: {truncate_prompt_tokens: -1}"
        )
