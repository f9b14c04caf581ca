"""Which reranker teaches the experts, and how its scores are made."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, JsonValue, PositiveInt

from routerretriever.hashing import content_hash, file_hash
from routerretriever.settings import EndpointAccess, PoolSettings, TextLength

_READ = (".safetensors", ".bin", ".json", ".txt", ".model")
"""Files that a cross-encoder is loaded from."""


class TeacherSettings(PoolSettings):
    """What all teachers have in common."""

    depth: Annotated[int, Field(ge=1, le=1000)] = 50
    """The teacher scores so many of the base's best documents for each query, and the query's positives."""
    shard_size: PositiveInt = 64
    """Queries in one shard, the unit of work that is kept when a run stops."""
    batch_size: PositiveInt = 32
    """Documents that are scored in one pass, or sent in one request."""

    @property
    def pool(self) -> PoolSettings:
        """The workers that score."""
        return self


class CrossEncoderTeacher(TeacherSettings):
    """A cross-encoder that sentence-transformers reads, run by the workers."""

    kind: Literal["cross_encoder"] = "cross_encoder"
    """``cross_encoder``."""
    model: Annotated[str, Field(min_length=1)]
    """A folder, or a Hugging Face id."""
    revision: str | None = None
    """Hugging Face revision: a branch, a tag or a commit."""
    max_length: TextLength | None = None
    """Tokens of query and document together; longer pairs are cut. By default what the model's files say."""

    def folder(self) -> Path:
        """The local folder with the model's files; downloads them once if ``model`` is a hub id.

        Raises:
            EncoderError: it cannot be found or fetched.
        """
        from routerretriever.encoder.source import files_of_model

        return files_of_model(self.model, self.revision, "training.teacher.model")

    def identity(self) -> dict[str, Any]:
        """What the scores depend on: the model's files, whatever their folder is called."""
        own = self.model_dump(include={"kind", "depth", "max_length"})
        return own | {"files": _fingerprint(self.folder())}


class EndpointTeacher(TeacherSettings, EndpointAccess):
    """A reranker behind an HTTP endpoint (Text Embeddings Inference, vLLM, Cohere, Jina), which is asked at
    ``/rerank``."""

    api: Literal["cohere", "tei"] = "cohere"
    """The form of request and answer: ``cohere`` is that of Cohere, Jina and vLLM, ``tei`` that of Text
    Embeddings Inference."""
    model: Annotated[str, Field(min_length=1)]
    """The name by which the endpoint knows the model. Text Embeddings Inference has one model and is not
    asked for it by name; but scores are kept under this name."""
    extra_body: dict[str, JsonValue] = Field(default_factory=dict)
    """Further fields of every request, as ``{truncate_prompt_tokens: -1}``, by which vLLM cuts documents that
    are longer than its model reads, rather than refuse them. ``null`` leaves a field out that is sent
    otherwise: ``top_n``, ``raw_scores`` or ``truncate``."""

    _OURS: ClassVar[frozenset[str]] = EndpointAccess._OURS | {"query", "documents", "texts"}

    @property
    def pool(self) -> PoolSettings:
        """One process, with many threads: more would ask for more at a time than is allowed."""
        return self.model_copy(update={"workers": 1})

    def identity(self) -> dict[str, Any]:
        """What the scores depend on; where the model runs is not part of it."""
        more = {"extra_body"} if self.extra_body else set()
        return self.model_dump(include={"kind", "depth", "api", "model"} | more)


AnyTeacherSettings = Annotated[CrossEncoderTeacher | EndpointTeacher, Field(discriminator="kind")]


@lru_cache(maxsize=4)
def _fingerprint(folder: Path) -> str:
    """Sixteen hex digits over the files that a model is loaded from."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in _READ and path.name[:2] != "._")
    return content_hash([(path.relative_to(folder).as_posix(), file_hash(path)) for path in files])
