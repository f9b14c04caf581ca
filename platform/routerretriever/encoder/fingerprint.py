"""The fingerprint of what an encoder does to a text, to which experts and corpora are tied."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from routerretriever.encoder.card import read_card
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.encoder.source import FAKE, encoder_folder, model_folder
from routerretriever.errors import EncoderError
from routerretriever.hashing import content_hash, file_hash

_CONTENT = (
    "[!.]*.safetensors", "pytorch_model*.bin", "tokenizer.json", "vocab.txt", "[!.]*.model", "merges.txt",
)  # fmt: skip
"""Not ``._model.safetensors``, in which macOS keeps notes of its own on disks of others."""
_CONFIGURATION = ("config.json", "tokenizer_config.json", "special_tokens_map.json")
_FIRST_RELEASE = "34810bcb8826678f"
"""The packaged MiniLM's. Its fingerprint is as it was before these files counted, so that what was made with
it keeps its keys."""


def encoder_fingerprint(settings: EncoderSettings, **merged: str) -> str:
    """Sixteen hex digits over the weights, the tokenizer and all settings that change a vector's meaning.

    Precision, device and batch size are left out: an expert trained in bf16 serves in fp32.

    Args:
        settings: the encoder.
        merged: hashes of what is made part of it after loading, by its kind.
    """
    card = read_card(settings)
    identity = card.settings.identity() | merged
    if settings.name == FAKE:
        files = "fake-1"
    else:
        folder = model_folder(encoder_folder(settings))
        files = files_hash(folder)
        configured = _configuration(folder, card.dense)
        if configured != _FIRST_RELEASE:
            identity["configuration"] = configured
        if card.is_lowered:
            identity["lower_case"] = True
    if settings.documents:
        identity["documents"] = encoder_fingerprint(card.settings.for_documents())
    # The same files under another name or in another place are the same encoder.
    del identity["name"], identity["revision"]
    return content_hash(files, identity)


def _configuration(folder: Path, dense: Sequence[Path]) -> str:
    """Hash of what else changes a vector: architecture, tokenizer's settings, the layers after pooling."""
    names = [name for name in _CONFIGURATION if (folder / name).is_file()]
    return content_hash(
        [(name, file_hash(folder / name)) for name in names],
        [(own.name, files_hash(own), file_hash(own / "config.json")) for own in dense],
    )


@lru_cache(maxsize=16)
def files_hash(folder: Path) -> str:
    """SHA-256 over a folder's weights and tokenizer files, in hex digits.

    Raises:
        EncoderError: there are no weights.
    """
    patterns = _CONTENT if (folder / "tokenizer.json").is_file() else (*_CONTENT, "vocab.json")
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not any(path.suffix in (".safetensors", ".bin") for path in paths):
        raise EncoderError(f"encoder.name: {folder} holds no weights (*.safetensors or pytorch_model.bin)")
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
