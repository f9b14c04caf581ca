"""An adapter's files, and the adapter that is part of a base encoder. Read without importing torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from routerretriever.encoder.fingerprint import encoder_fingerprint, files_hash
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import EncoderError, NotFound, StorageError
from routerretriever.hashing import content_hash

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""PEFT's own names, which every kind uses."""
_OF_ITS_PLACE = ("base_model_name_or_path", "inference_mode", "peft_version")
"""Settings that PEFT writes, and that say nothing about the adapter."""


def adapter_config(name: str, folder: Path) -> dict[str, Any]:
    """The settings of a saved adapter.

    Raises:
        EncoderError: files are missing.
    """
    for file in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / file).is_file():
            raise EncoderError(f"expert {name!r}: {folder} lacks {file}")
    config: dict[str, Any] = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    return config


def write_weights(weights: Mapping[str, Tensor], file: Path) -> None:
    """Write an adapter's tensors so that others may read them, which safetensors' ``save_file`` does not."""
    from safetensors.torch import save

    file.write_bytes(save(dict(weights)))


def base_adapter_folder(location: str) -> Path:
    """A local folder with the adapter of a base: a folder that holds one, or an artifact in storage.

    Raises:
        EncoderError: there is none.
    """
    from routerretriever.artifacts.store import ArtifactStore

    if (Path(location) / ADAPTER_CONFIG).is_file():
        return Path(location)
    storage, _, name = location.rpartition("/experts/")
    try:
        if not storage:
            raise NotFound("no adapter lies here")
        return ArtifactStore.open(storage).fetch(f"experts/{name}")
    except (NotFound, StorageError) as error:
        raise EncoderError(f"encoder.adapter: {location}: {error}") from None


def tower_fingerprint(settings: EncoderSettings) -> str:
    """Sixteen hex digits over a base encoder and the adapter that is part of it.

    Raises:
        EncoderError: files are missing.
    """
    if settings.adapter is None:
        return encoder_fingerprint(settings)
    return encoder_fingerprint(settings, **_adapter_hash(base_adapter_folder(settings.adapter)))


@lru_cache(maxsize=16)
def _adapter_hash(folder: Path) -> dict[str, str]:
    config = adapter_config("base", folder)
    if config.get("kind") == "prefix":
        # As when a base could have no other kind: what was encoded with such a base keeps its key.
        return {"general_prefix": files_hash(folder)}
    meant = {key: value for key, value in config.items() if key not in _OF_ITS_PLACE}
    return {"adapter": content_hash(files_hash(folder), meant)}
