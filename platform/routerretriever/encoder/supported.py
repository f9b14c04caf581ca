"""Whether an encoder's small files describe what can be run here. Read without torch.

What they say and is not run would change every vector without a word, so it is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from routerretriever.encoder.source import model_folder, modules_of, read_json, transformer_options
from routerretriever.errors import EncoderError

_ORDER = {"Transformer": 0, "StaticEmbedding": 0, "Pooling": 1, "Dense": 2, "Normalize": 3}
"""In which order sentence-transformers' modules are run."""
_ARGUMENTS = (
    "model_kwargs", "model_args", "config_kwargs", "config_args", "processor_kwargs", "tokenizer_args",
)  # fmt: skip
"""What sentence-transformers hands to transformers, by its names of now and of old."""
_SAME_VECTORS = {
    "attn_implementation", "dtype", "torch_dtype", "device_map", "low_cpu_mem_usage", "use_cache", "use_fast",
    "padding_side", "add_pooling_layer", "trust_remote_code",
}  # fmt: skip
"""Arguments that change no vector, or that the recipe has a setting for."""
_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}
"""How sentence-transformers says that a text's last hidden states are used."""


def require_supported(folder: Path) -> None:
    """Refuse what is no encoder of one vector a text, or not run here as sentence-transformers would.

    Raises:
        EncoderError: in one line, what is in the files.
    """
    inner = model_folder(folder)
    _require_whole_model(inner)
    about = read_json(folder / "config_sentence_transformers.json") or {}
    kind = about.get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        raise EncoderError(
            f"encoder.name: {folder} is a {kind}, which does not make one dense vector of a text; name one "
            "that does"
        )
    modules = modules_of(folder)
    _require_order(folder, modules)
    for module in modules:
        _require_plain_module(folder, module)
    _require_plain_transformer(inner)


def _require_whole_model(folder: Path) -> None:
    """An adapter's folder has the weights of an adapter alone, or is read as its base with it."""
    adapter = read_json(folder / "adapter_config.json")
    if adapter is not None:
        base = adapter.get("base_model_name_or_path") or "its base"
        raise EncoderError(
            f"encoder.name: {folder} is an adapter; set encoder.name to {base} and encoder.adapter to this "
            "folder"
        )


def _require_order(folder: Path, modules: list[dict[str, str]]) -> None:
    """Modules are run in one order, whatever order they are listed in."""
    before = ""
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        if kind == "Dropout":
            continue
        if kind not in _ORDER:
            raise EncoderError(f"encoder.name: {folder} has a {kind} module, which cannot be run here")
        if before and _ORDER[kind] < _ORDER[before]:
            raise EncoderError(
                f"encoder.name: {folder}: modules.json has {kind} after {before}, which cannot be run here"
            )
        before = kind


def _require_plain_module(folder: Path, module: dict[str, str]) -> None:
    """A module of sentence-transformers' own, which works on the vectors of texts."""
    kind = module["type"]
    if not kind.startswith("sentence_transformers."):
        raise EncoderError(
            f"encoder.name: {folder}: modules.json names {kind}, which is not sentence-transformers' own and "
            "is not run here"
        )
    if kind.rpartition(".")[2] not in ("Dense", "Normalize"):
        return
    own = folder / module["path"] / "config.json"
    config = read_json(own) or {}
    for name in ("module_input_name", "module_output_name"):
        if config.get(name) not in (None, "sentence_embedding"):
            raise EncoderError(
                f"encoder.name: {own} has {name} {config[name]!r}; only sentence_embedding is run here"
            )


def _require_plain_transformer(folder: Path) -> None:
    """A transformer that is run as its own files say, on text, to its last hidden states."""
    options = transformer_options(folder)
    for name in _ARGUMENTS:
        if changed := sorted(set(options.get(name) or {}) - _SAME_VECTORS):
            raise EncoderError(
                f"encoder.name: {folder}: sentence-transformers would run it with {name}: {changed[0]}, "
                "which is not read here; write it into config.json or tokenizer_config.json"
            )
    text = options.get("processing_kwargs") or {}
    if changed := sorted(name for name in ("common", "text") if text.get(name)):
        raise EncoderError(
            f"encoder.name: {folder}: sentence-transformers would read texts with processing_kwargs: "
            f"{changed[0]}, which is not done here"
        )
    read: dict[str, Any] | None = options.get("modality_config")
    if read is not None and read.get("text") != _TEXT:
        raise EncoderError(
            f"encoder.name: {folder}: sentence-transformers would read texts by {read.get('text')}, which is "
            "not done here; only the last hidden states are"
        )
