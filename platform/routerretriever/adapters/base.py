"""What an adapter kind is: the door for a new one. See ``docs/how-to/write-an-adapter-kind.md``.

A kind is one class with the life of its adapters: attached fresh and trained, saved, loaded, run together in
one batch, merged into the base. ``routerretriever.adapters.kinds`` lists the kinds that a recipe can name.

Shapes: B rows, E experts, T named by a caller, d dimensions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

from routerretriever.errors import EncoderError
from routerretriever.settings import Settings
from routerretriever.types import BASE, Vectors

if TYPE_CHECKING:
    from torch import Tensor

    from routerretriever.encoder.encoder import Encoder

Merge = Literal["weights", "embeddings"]
"""How a query's mixture of experts is made: of their weights in one pass, or of their vectors."""


class AdapterSettings(Settings):
    """Base of a kind's settings. A subclass adds ``kind: Literal["its name"]``, by which a recipe chooses."""

    kind: str
    """The kind of adapter."""

    def identity(self) -> dict[str, Any]:
        """What an expert's key is made from."""
        return self.model_dump(exclude={"kind"})


class BatchedAdapters(Protocol):
    """Experts on one base encoder, run together. As little thread-safe as the encoder itself."""

    merges: frozenset[Merge]
    """Mixtures that ``embed`` can make. Without "weights", each row has all its weight on one expert."""

    @property
    def megabytes(self) -> float:
        """Memory of all experts' weights, in MB (10^6 bytes)."""

    def embed(self, rows: Sequence[Sequence[int]], weights_BT: Vectors, experts: Sequence[str]) -> Vectors:
        """Vectors [B, d] float32 of tokenised queries, each by its own mixture.

        Args:
            rows: token ids of each query.
            weights_BT: how much of each expert goes into it: zero or more, and 1 in all.
            experts: whose weights these are; the bare base may be among them.

        Raises:
            KeyError: no such expert.
            BadInput: a row mixes weights, which this kind does not merge.
        """


class AdapterKind(ABC):
    """One kind of adapter on a base encoder's query tower.

    All state lies on the encoder that is given, so one object serves any number of encoders. Nothing heavy is
    imported before a method needs it: recipes are checked without torch.
    """

    name: ClassVar[str]
    """The settings' ``kind``."""
    settings: ClassVar[type[AdapterSettings]]
    merges: ClassVar[frozenset[Merge]]
    starts_as_base: ClassVar[bool] = True
    """Whether a fresh adapter changes no vector."""
    can_be_scaled: ClassVar[bool] = True
    """Whether a share of such an adapter is an adapter too, and so is a mean of several."""
    opens_elsewhere: ClassVar[bool] = False
    """Whether PEFT reads what ``save`` writes, and ``merge`` changes nothing but weights."""

    @abstractmethod
    def wrote(self, config: Mapping[str, Any]) -> bool:
        """Whether a saved adapter with this ``adapter_config.json`` is of this kind."""

    @abstractmethod
    def attach(self, encoder: Encoder, name: str, settings: Any, modules: Sequence[str] = ()) -> None:
        """Add a fresh, trainable adapter, which the tower runs with from now on.

        Args:
            encoder: the base.
            name: what the adapter is called.
            settings: of this kind.
            modules: names of the parts that a kind with several parts weighs in each layer.

        Raises:
            EncoderError: it does not fit the base.
        """

    @abstractmethod
    def load(self, encoder: Encoder, name: str, folder: Path) -> None:
        """Load a saved adapter, frozen, under a name; a loaded one of that name is replaced.

        Raises:
            EncoderError: files are missing or made for another architecture.
        """

    @abstractmethod
    def save(self, encoder: Encoder, name: str, folder: Path) -> None:
        """Write ``adapter_model.safetensors`` and ``adapter_config.json``."""

    @abstractmethod
    def loaded(self, encoder: Encoder) -> list[str]:
        """Names of the adapters of this kind that the encoder has."""

    @abstractmethod
    def active(self, encoder: Encoder, name: str) -> AbstractContextManager[None]:
        """Within, the tower runs with an adapter of this kind; with none if the name is another's."""

    @abstractmethod
    def batch(self, encoder: Encoder, folders: Mapping[str, Path]) -> BatchedAdapters:
        """Load saved adapters, by expert, to be run together on an encoder that has none of its own.

        Raises:
            EncoderError: files are missing, made for another architecture, or cannot be run together.
        """

    @abstractmethod
    def merge(self, encoder: Encoder, name: str, folder: Path) -> None:
        """Make a saved adapter part of the base for good, for all that it encodes.

        Raises:
            EncoderError: files are missing or made for another architecture.
        """

    def worth_trying(self, settings: Any) -> dict[str, list[Any]]:
        """Setting of this kind -> values around its own that a search tries by default."""
        return {}

    def restrict(self, encoder: Encoder, name: str, modules: Sequence[str]) -> None:
        """From now on, the tower runs with an adapter, and with these of its modules.

        Raises:
            EncoderError: this kind has no modules.
        """
        raise EncoderError(f"an adapter of kind {self.name!r} has no modules to choose from")


def embed_by_mixture(
    encoder: Encoder,
    rows: Sequence[Sequence[int]],
    weights_BE: Vectors,
    run: Callable[[Vectors, Tensor, Tensor], Tensor],
) -> Vectors:
    """Vectors [B, d] of tokenised queries, those with the same mixture at a time.

    For an encoder whose layers run on more than a batch's rows, so that a layer cannot tell whose turn it is.

    Args:
        encoder: the base.
        rows: token ids of each query.
        weights_BE: their mixtures.
        run: gets a mixture [E], token ids [b, L] and mask [b, L], and returns vectors [b, d].
    """
    mixtures, inverse = np.unique(weights_BE, axis=0, return_inverse=True)
    vectors = np.zeros((len(rows), encoder.dimension), dtype=np.float32)
    for number, mixture_E in enumerate(mixtures):
        own = np.flatnonzero(inverse.reshape(-1) == number).tolist()

        def embed(ids: Tensor, mask: Tensor, _: list[int], mixture_E: Vectors = mixture_E) -> Tensor:
            return run(mixture_E, ids, mask)

        vectors[own] = encoder.embed_tokens([rows[row] for row in own], embed)
    return vectors


def spread_weights(numbers: Mapping[str, int], weights_BT: Vectors, experts: Sequence[str]) -> Vectors:
    """Weights [B, E] of all experts, by their numbers; what the base has is left out.

    Raises:
        KeyError: no such expert.
    """
    weights_BE = np.zeros((len(weights_BT), len(numbers)), dtype=np.float32)
    for column, name in enumerate(experts):
        if name != BASE:
            weights_BE[:, numbers[name]] = weights_BT[:, column]
    return weights_BE
