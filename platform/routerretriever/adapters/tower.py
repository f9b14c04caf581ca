"""The query tower: a base encoder that runs as itself or as one of its loaded adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from routerretriever.adapters.base import AdapterKind, AdapterSettings
from routerretriever.adapters.files import base_adapter_folder
from routerretriever.adapters.kinds import KINDS, kind_named, kind_of, merge_adapter
from routerretriever.encoder.encoder import Encoder, Features
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import EncoderError
from routerretriever.types import BASE, Vectors


def load_tower(settings: EncoderSettings) -> QueryTower:
    """Load a base encoder, frozen, with the adapter that is part of it.

    Raises:
        EncoderError: files cannot be found, fetched or read, or do not fit together.
    """
    tower = QueryTower.load(settings)
    if settings.adapter is not None:
        merge_adapter(tower, "encoder.adapter", base_adapter_folder(settings.adapter))
    return tower


class QueryTower(Encoder):
    """An encoder with any number of adapters, of which one at a time runs.

    Documents and routing features are the bare base's, so one set of document vectors serves every adapter.
    Not thread-safe: the active adapter is a property of the model.
    """

    @property
    def adapters(self) -> list[str]:
        """Names of the loaded adapters."""
        return [name for kind in KINDS for name in kind.loaded(self)]

    def add_adapter(self, name: str, settings: AdapterSettings, modules: Sequence[str] = ()) -> None:
        """Add a fresh, trainable adapter, which the tower runs with from now on; see ``AdapterKind.attach``.

        Raises:
            EncoderError: it does not fit the base.
        """
        self._require_torch()
        if not self.linear_layers:
            what = (
                f"is a {self.transformer.config.model_type} model, whose layers are no nn.Linear"
                if self.transformer_layers
                else "is a table of static embeddings, without a layer that an expert could adapt"
            )
            raise EncoderError(
                f"encoder.name: {self.settings.name} {what}; it encodes and routes, and "
                "experts need another base"
            )
        kind_named(settings.kind).attach(self, name, settings, modules)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load a saved adapter for inference under a name; a loaded one of that name is replaced.

        Raises:
            EncoderError: files are missing or made for another architecture.
        """
        self._require_torch()
        kind_of(name, folder).load(self, name, folder)

    def save_adapter(self, name: str, folder: Path) -> None:
        """Write ``adapter_model.safetensors`` and ``adapter_config.json``."""
        self._kind(name).save(self, name, folder)

    def restrict(self, name: str, modules: Sequence[str]) -> None:
        """From now on, the tower runs with an adapter, and with these of its modules.

        Raises:
            EncoderError: no such adapter is loaded, or its kind has no modules.
        """
        self._kind(name).restrict(self, name, modules)

    def encode_documents(self, texts: Sequence[str], adapter: str = BASE) -> Vectors:
        """Embed documents: [B, d] float32. By the base, unless the adapter is to become part of it.

        Raises:
            EncoderError: no such adapter is loaded, or another encoder reads the documents.
        """
        if adapter != BASE and self._documents is not None:
            raise EncoderError("encoder.documents: another encoder reads the documents, so no adapter does")
        with self._active(adapter):
            return super().encode_documents(texts)

    def encode_queries(self, texts: Sequence[str], adapter: str = BASE) -> Vectors:
        """Embed queries as one adapter, or as the bare base: [B, d] float32.

        Raises:
            EncoderError: no such adapter is loaded.
        """
        with self._active(adapter):
            return super().encode_queries(texts)

    def token_features(self, rows: Sequence[Sequence[int]], features: Features) -> Vectors:
        """What a router reads of tokenised queries, from the bare base; see ``Encoder.token_features``."""
        with self._active(BASE):
            return super().token_features(rows, features)

    @contextmanager
    def _active(self, adapter: str) -> Iterator[None]:
        if adapter != BASE:
            self._kind(adapter)
        with ExitStack() as stack:
            for kind in KINDS:
                stack.enter_context(kind.active(self, adapter))
            yield

    def _require_torch(self) -> None:
        if self._engine is not None:
            raise EncoderError("this tower is compiled and runs no adapter of its own; load another one")

    def _kind(self, adapter: str) -> AdapterKind:
        for kind in KINDS:
            if adapter in kind.loaded(self):
                return kind
        raise EncoderError(f"no adapter {adapter!r} is loaded; there are {self.adapters or 'none'}")
