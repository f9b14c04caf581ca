"""Whether an encoder's files are all there and whole. Read without torch, so that it is known in a second."""

from __future__ import annotations

from pathlib import Path

from routerretriever.encoder.card import read_card
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.encoder.source import FAKE, encoder_folder, is_here, is_path, model_folder, read_json
from routerretriever.errors import EncoderError

_POINTER = b"version https://git-lfs"
_INDEX = "model.safetensors.index.json"


def require_whole(settings: EncoderSettings) -> None:
    """Read what an encoder's files say, and whether its weights are whole; nothing is fetched for it.

    Raises:
        EncoderError: in one line, what is missing or broken.
    """
    if settings.name == FAKE or not (is_path(settings.name) or is_here(settings)):
        return
    read_card(settings.model_copy(update={"documents": None}))
    folder = encoder_folder(settings)
    inner = model_folder(folder)
    for own in dict.fromkeys((folder, inner)):
        refuse_pointers(own)
    _require_weights(inner)
    if settings.documents is not None:
        require_whole(settings.for_documents())


def refuse_pointers(folder: Path) -> None:
    """Git without LFS leaves a line of text where weights, and often tokenizers, should be.

    Raises:
        EncoderError: a file is such a line.
    """
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                if file.read(len(_POINTER)) == _POINTER:
                    raise EncoderError(f"encoder.name: {path} is a Git LFS pointer; run `git lfs pull` there")


def _require_weights(folder: Path) -> None:
    from safetensors import SafetensorError, safe_open

    parts = set(((read_json(folder / _INDEX) or {}).get("weight_map") or {}).values())
    if lacking := sorted(name for name in parts if not (folder / name).is_file()):
        raise EncoderError(f"encoder.name: {folder} lacks {', '.join(lacking)}, which {_INDEX} names")
    weights = sorted(folder.glob("[!.]*.safetensors"))
    if not weights and not any(folder.glob("pytorch_model*.bin")):
        raise EncoderError(f"encoder.name: {folder} holds no weights (*.safetensors or pytorch_model.bin)")
    for path in weights:
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise EncoderError(
                f"encoder.name: {path} is damaged or cut short ({error}); fetch it again"
            ) from None
