"""How the base encoder is chosen and run."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import AliasChoices, Field, PositiveInt, model_validator

from routerretriever.settings import PlaceName, Settings


class DocumentEncoderSettings(Settings):
    """Another encoder of the same space, for documents; how it is run is what its own files say."""

    name: PlaceName
    """A Hugging Face id, or a local folder."""
    revision: str | None = None
    """Hugging Face revision: a branch, a tag or a commit."""
    trust_remote_code: bool = False
    """Run the model's own Python code. For a hub id only with a pinned ``revision``."""

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        _require_pin(self.name, self.revision, self.trust_remote_code)
        return self


class EngineSettings(Settings):
    """What runs the encoder and its experts."""

    kind: Literal["auto", "torch", "openvino"] = "auto"
    """``openvino`` compiles them for the CPU, which takes some seconds at the start. ``auto`` does so where
    it can, and leaves them to PyTorch elsewhere: on a GPU, or if an encoder cannot be compiled."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """Of the compiled products. ``bf16`` is faster on CPUs that have it (AMX, AVX512-BF16), ``int8`` on those
    that have VNNI. Both are less exact."""

    @model_validator(mode="after")
    def _compiled_only(self) -> Self:
        if self.kind == "torch" and self.precision != "fp32":
            raise ValueError(
                f"precision {self.precision} is for compiled encoders, and kind: torch compiles none; "
                "encoder.dtype sets PyTorch's"
            )
        return self


class EncoderSettings(Settings):
    """The shared, frozen base encoder and how text becomes one vector.

    ``name`` is ``all-MiniLM-L6-v2`` (shipped by a package, works offline), any Hugging Face id, a local
    folder, or ``fake`` (a tiny random encoder for tests).
    """

    name: PlaceName = "all-MiniLM-L6-v2"
    """Model of the base encoder."""
    revision: str | None = None
    """Hugging Face revision: a branch, a tag or a commit."""
    trust_remote_code: bool = False
    """Run the model's own Python code. For a hub id only with a pinned ``revision``: a commit."""
    documents: DocumentEncoderSettings | None = None
    """Another encoder that reads the documents, as a large teacher does for a small student of the same
    space; ``document_prompt`` and ``document_max_length`` are then its own. By default one encoder reads
    both."""
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
    matryoshka_dimensions: tuple[PositiveInt, ...] | None = None
    """Smaller widths for which the encoder was trained too (Matryoshka, arXiv 2205.13147). ``/v1/embeddings``
    cuts vectors to them when a client asks; by default those that the encoder's own files name."""
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
        _require_pin(self.name, self.revision, self.trust_remote_code)
        if self.documents and self.adapter:
            raise ValueError("documents: an adapter that is part of the base needs one encoder for both")
        return self

    def for_documents(self) -> EncoderSettings:
        """The settings of the encoder that reads documents."""
        if self.documents is None:
            return self
        own = ("similarity", "document_prompt", "document_max_length", "dtype", "batch_size", "device")
        shared = {name: getattr(self, name) for name in own}
        return EncoderSettings(**self.documents.model_dump(), **shared)

    def identity(self) -> dict[str, Any]:
        """The settings that change a vector's meaning, but for those of other files; precision does not."""
        others = {
            "dtype", "batch_size", "device", "adapter", "documents", "trust_remote_code",
            "matryoshka_dimensions",
        }  # fmt: skip
        return self.model_dump(exclude=others)


def _require_pin(name: str, revision: str | None, trusted: bool) -> None:
    local = name.startswith(("/", ".", "~"))
    if trusted and not local and not re.fullmatch("[0-9a-f]{40}", revision or ""):
        raise ValueError(
            "trust_remote_code needs a pinned revision, a commit of 40 hex digits: the code that is run must "
            "not change"
        )
