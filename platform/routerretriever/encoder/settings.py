"""How the base encoder is chosen and run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, Field, PositiveInt

from routerretriever.settings import Settings


class EncoderSettings(Settings):
    """The shared, frozen base encoder and how text becomes one vector.

    ``name`` is ``all-MiniLM-L6-v2`` (shipped by a package, works offline), any Hugging Face id, a local
    folder, or ``fake`` (a tiny random encoder for tests).
    """

    name: str = "all-MiniLM-L6-v2"
    """Model of the base encoder."""
    revision: str | None = None
    """Hugging Face revision: a branch, a tag or a commit."""
    pooling: Literal["mean", "cls"] = "mean"
    """How token vectors become one: their mean, or the first token's."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """How a query and a document are compared. ``cosine`` normalises vectors to length 1."""
    query_prompt: str = ""
    """Text put before every query."""
    document_prompt: str = ""
    """Text put before every document."""
    query_max_length: PositiveInt = 256
    """Tokens of a query; longer ones are cut."""
    document_max_length: PositiveInt = 256
    """Tokens of a document; longer ones are cut."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the weights when encoding."""
    batch_size: PositiveInt = 64
    """Texts encoded in one pass."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to encode on; ``auto`` takes a GPU if there is one."""
    adapter: str | None = Field(default=None, validation_alias=AliasChoices("adapter", "general_prefix"))
    """A trained adapter of any kind that is part of the base, for queries and documents alike: a folder, or
    an artifact in storage. Dynamic Dense Retrieval's general prefix is one."""

    def identity(self) -> dict[str, Any]:
        """The settings that change a vector's meaning, but for the adapter; precision and device do not."""
        return self.model_dump(exclude={"dtype", "batch_size", "device", "adapter"})
