"""A model, a tokenizer and Dense layers from a folder; what is wrong with one is said in a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from routerretriever.encoder.settings import EncoderSettings
from routerretriever.encoder.source import is_static, model_folder, read_json, transformer_options
from routerretriever.encoder.whole import refuse_pointers
from routerretriever.errors import EncoderError, first_line

if TYPE_CHECKING:
    import torch
    from torch import nn

_UNUSED = ("pooler", "position_ids", "lm_head")
"""Parts of weights' names that an encoder does without."""


def dtype_of(settings: EncoderSettings) -> torch.dtype:
    """PyTorch's name of an encoder's precision."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[settings.dtype]


def read_model(folder: Path, settings: EncoderSettings) -> tuple[Any, Any]:
    """The tokenizer and the transformer of a folder, in the precision of the settings.

    Raises:
        EncoderError: files are missing, broken, of another kind of model, or need code that is not trusted.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    refuse_pointers(folder)
    static, inner = is_static(folder), model_folder(folder)
    if inner != folder:
        refuse_pointers(inner)
    folder = inner
    if static:
        from routerretriever.encoder.static import read_static

        tokenizer, table = read_static(folder)
        return tokenizer, table.to(dtype_of(settings))
    trusted = settings.trust_remote_code
    if trusted:
        _require_own_code(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
        kind = _encoder_of(config.model_type)
        _require_text(folder, config, kind is not AutoModel)
        # A model that is cast afterwards rounds what transformers keeps in fp32, as the angles of positions.
        options: dict[str, Any] = {"dtype": dtype_of(settings)}
        if kind is AutoModel:
            options["trust_remote_code"] = trusted
        model, loading = kind.from_pretrained(folder, output_loading_info=True, **options)
    except EncoderError:
        raise
    except Exception as error:  # what broken files raise is of many libraries' kinds
        raise EncoderError(_reason(folder, error)) from error
    missing = sorted(key for key in loading["missing_keys"] if not any(part in key for part in _UNUSED))
    if missing:
        raise EncoderError(
            f"encoder.name: {folder} lacks {len(missing)} weights of a {type(model).__name__}, {missing[0]} "
            "first; they would be random"
        )
    return _read_tokenizer(folder, settings), model


def read_tokenizer(folder: Path, settings: EncoderSettings) -> Any:
    """The tokenizer of a folder.

    Raises:
        EncoderError: its files are missing or broken, or need code that is not trusted.
    """
    static, folder = is_static(folder), model_folder(folder)
    if static:
        from routerretriever.encoder.static import read_static

        return read_static(folder)[0]
    return _read_tokenizer(folder, settings)


def _read_tokenizer(folder: Path, settings: EncoderSettings) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
        if transformer_options(folder).get("do_lower_case"):
            _lower_first(tokenizer)
    except Exception as error:  # what broken files raise is of many libraries' kinds
        raise EncoderError(_reason(folder, error)) from error
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise EncoderError(f"encoder.name: the tokenizer in {folder} knows no word; its files are missing")
    return tokenizer


def _lower_first(tokenizer: Any) -> None:
    """Put texts into lower case before all else, as sentence-transformers does.

    In the tokenizer, so that special tokens in a text stay what they are, and exports hold it too.
    """
    from tokenizers.normalizers import Lowercase, Sequence

    if not tokenizer.is_fast:
        tokenizer.do_lower_case = True
        return
    inner = tokenizer.backend_tokenizer
    inner.normalizer = Sequence([Lowercase(), *([inner.normalizer] if inner.normalizer else [])])


def _encoder_of(model_type: str) -> Any:
    """The class whose encoder alone is run."""
    from transformers import AutoModel, MT5EncoderModel, T5EncoderModel, UMT5EncoderModel

    encoders = {"t5": T5EncoderModel, "mt5": MT5EncoderModel, "umt5": UMT5EncoderModel}
    return encoders.get(model_type, AutoModel)


def _require_text(folder: Path, config: Any, encoder_alone: bool) -> None:
    kind = config.model_type
    if getattr(config, "vision_config", None) is not None or hasattr(config, "image_size"):
        raise EncoderError(
            f"encoder.name: {folder} is a {kind} model, which reads images; name a text encoder"
        )
    if getattr(config, "is_encoder_decoder", False) and not encoder_alone:
        raise EncoderError(f"encoder.name: {folder} is a {kind} model with a decoder; name a text encoder")


def _require_own_code(folder: Path) -> None:
    """Code in another repository changes without the revision, and is not run."""
    for name in ("config.json", "tokenizer_config.json"):
        code = (read_json(folder / name) or {}).get("auto_map") or {}
        named = [one for value in code.values() for one in (value if isinstance(value, list) else [value])]
        if foreign := next((one.partition("--")[0] for one in named if one and "--" in one), None):
            raise EncoderError(
                f"encoder.name: {folder} takes its code from {foreign}, which the "
                "revision does not pin; save that code beside the model and name the folder"
            )


def read_dense(folders: Sequence[Path]) -> list[nn.Module]:
    """sentence-transformers' Dense layers.

    Raises:
        EncoderError: files are missing or broken.
    """
    if not folders:
        return []
    from sentence_transformers.sentence_transformer.modules import Dense

    try:
        return [Dense.load(str(folder)).requires_grad_(False) for folder in folders]
    except Exception as error:  # what broken files raise is of many libraries' kinds
        reason = first_line(error)
        raise EncoderError(
            f"encoder.name: {folders[0].parent}: a Dense layer cannot be read: {reason}"
        ) from None


def _reason(folder: Path, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            f"encoder.name: {folder} needs Python code of its own; set encoder.trust_remote_code: true and a "
            "revision if you trust it"
        )
    if "ignore_mismatched_sizes" in str(error):
        return f"encoder.name: {folder}: the weights are not of the sizes that its config.json gives"
    return f"encoder.name: {folder} cannot be loaded as a text encoder: {first_line(error)}"
