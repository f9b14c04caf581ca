"""How the base encoder is chosen and run."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import AliasChoices, Field, PositiveInt, model_validator

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
    trust_remote_code: bool = False
    """Run the model's own Python code. For a hub id only with a pinned ``revision``."""
    pooling: Literal["mean", "cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"] | None = None
    """How token states become one vector. This and the next five are by default what the encoder's own files
    say."""
    similarity: Literal["cosine", "dot"] | None = None
    """Whether vectors are of unit length."""
    query_prompt: str | None = None
    """What is put before a query."""
    document_prompt: str | None = None
    """What is put before a document."""
    query_max_length: PositiveInt | None = None
    """Tokens of a query, without its prompt; longer ones are cut."""
    document_max_length: PositiveInt | None = None
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

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if self.trust_remote_code and self.revision is None and not self.name.startswith(("/", ".", "~")):
            raise ValueError("trust_remote_code needs a revision: the code that is run must not change")
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that change a vector's meaning, but for the adapter; precision and device do not."""
        return self.model_dump(exclude={"dtype", "batch_size", "device", "adapter", "trust_remote_code"})
