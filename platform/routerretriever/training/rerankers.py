"""Rerankers, which read query and document together: a cross-encoder, or an endpoint with one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from routerretriever.errors import TeacherError
from routerretriever.training.teacher_settings import AnyTeacherSettings, CrossEncoderTeacher

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

Scores = NDArray[np.float32]
_TRIAL = "a query to try"


@dataclass(frozen=True)
class Candidates:
    """A query, and the documents that are scored for it."""

    query: str
    documents: Sequence[str]


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
    from routerretriever.training.rerank_endpoint import EndpointReranker

    return EndpointReranker(settings)


class CrossEncoderReranker:
    """A cross-encoder of sentence-transformers; its scores are logits."""

    def __init__(self, settings: CrossEncoderTeacher) -> None:
        self._settings = settings

    def check(self) -> None:
        """Load the model and score one document."""
        self.score([Candidates(_TRIAL, ["a document to try"])])

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
            reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
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
