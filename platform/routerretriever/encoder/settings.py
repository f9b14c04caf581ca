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
    revision: str | None = None
    pooling: Literal["mean", "cls"] = "mean"
    similarity: Literal["cosine", "dot"] = "cosine"
    query_prompt: str = ""
    document_prompt: str = ""
    query_max_length: PositiveInt = 256
    document_max_length: PositiveInt = 256
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    batch_size: PositiveInt = 64
    device: Literal["auto", "cpu", "cuda"] = "auto"
    adapter: str | None = Field(default=None, validation_alias=AliasChoices("adapter", "general_prefix"))
    """A trained adapter of any kind that is part of the base, for queries and documents alike: a folder, or
    an artifact in storage. Dynamic Dense Retrieval's general prefix is one."""

    def identity(self) -> dict[str, Any]:
        """The settings that change a vector's meaning, but for the adapter; precision and device do not."""
        return self.model_dump(exclude={"dtype", "batch_size", "device", "adapter"})
