"""What an encoder's own files say about it: pooling, similarity, prompts, lengths. Read without torch.

Order of precedence: the recipe, then the files that sentence-transformers writes, then a table of known
families whose files say too little, then defaults.

The files are read here, and not by sentence-transformers, whose import takes 3 s: fingerprints, plans and dry
runs need no more than this. What it computes (Dense layers, most pooling) is run by its own modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from routerretriever.encoder.settings import EncoderSettings
from routerretriever.encoder.source import (
    FAKE,
    encoder_folder,
    is_lowered,
    is_static,
    model_folder,
    modules_of,
    read_json,
    transformer_options,
)
from routerretriever.encoder.supported import require_supported
from routerretriever.errors import EncoderError, first_line

_DEFAULTS = {
    "pooling": "mean", "similarity": "cosine", "query_prompt": "", "document_prompt": "",
    "query_max_length": 256, "document_max_length": 256, "matryoshka_dimensions": (),
}  # fmt: skip
_INSTRUCTED = {"query_prompt": "Represent this sentence for searching relevant passages: "}
_INSTRUCTED_ZH = {"query_prompt": "为这个句子生成表示以用于检索相关文章："}
_E5 = {"query_prompt": "query: ", "document_prompt": "passage: "}
_NOMIC = {"query_prompt": "search_query: ", "document_prompt": "search_document: "}
_FAMILIES: dict[str, dict[str, Any]] = {
    "contriever": {"pooling": "mean", "similarity": "dot"},
    "dragon-plus": {"pooling": "cls", "similarity": "dot"},
    "dragon-roberta": {"pooling": "cls", "similarity": "dot"},
    "tas-b": {"pooling": "cls", "similarity": "dot"},
    "tas_b": {"pooling": "cls", "similarity": "dot"},
    "-dot-v": {"similarity": "dot"},
    "bge-small-en": _INSTRUCTED,
    "bge-base-en": _INSTRUCTED,
    "bge-large-en": _INSTRUCTED,
    "bge-small-zh": _INSTRUCTED_ZH,
    "bge-base-zh": _INSTRUCTED_ZH,
    "bge-large-zh": _INSTRUCTED_ZH,
    "uae-large-v1": _INSTRUCTED,
    "e5-small": _E5,
    "e5-base": _E5,
    "e5-large": _E5,
    "nomic-embed-text-v1.5": _NOMIC | {"matryoshka_dimensions": (512, 256, 128, 64)},
    "nomic-embed-text-v1": _NOMIC,
    "modernbert-embed": _NOMIC,
    "embeddinggemma-300m": {"matryoshka_dimensions": (512, 256, 128)},
    "snowflake-arctic-embed-m-v1.5": {"matryoshka_dimensions": (256,)},
    "snowflake-arctic-embed-m-v2.0": {"matryoshka_dimensions": (256,)},
    "snowflake-arctic-embed-l-v2.0": {"matryoshka_dimensions": (256,)},
}
"""By a part of the name, the first that fits: what the authors' model cards say and their files do not."""
_POOLING_KEYS = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean", "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
_OFFSET_POSITIONS = {
    "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text", "xmod",
    "ibert", "roberta-prelayernorm",
}  # fmt: skip
"""Model types that count positions from behind the padding id, so some of their table is never used."""
_OF_DOCUMENTS = ("document_prompt", "document_max_length")
_BESIDE = " + "
"""Between the names of poolings whose vectors are put side by side."""
_LENGTHS = {"query_max_length": "query_length", "document_max_length": "document_length"}
"""A recipe's names of the two lengths, and sentence-transformers'."""
_UNSTATED_LIMIT = 512
_UNBOUNDED = 10**6
"""Tokens above which a tokenizer's limit is none; transformers writes 1e30."""
_STATIC_LIMIT = 8192
"""Static embeddings have no positions; this bounds what a batch takes."""


@dataclass(frozen=True)
class EncoderCard:
    """The settings that an encoder is run with, none left open, and where each came from."""

    settings: EncoderSettings
    sources: dict[str, str]
    """recipe, files, known family or default, by field."""
    dense: tuple[Path, ...] = ()
    """Folders of the layers that follow pooling."""
    warnings: tuple[str, ...] = field(default=())
    is_lowered: bool = False
    """Whether texts are put into lower case for a tokenizer that does not do so itself."""

    def lines(self) -> list[str]:
        """One line a setting, for logs."""
        return [f"{name}: {one['value']!r} ({one['source']})" for name, one in self.stated().items()]

    def stated(self) -> dict[str, dict[str, Any]]:
        """Setting -> its value and its source, for reports."""
        values = self.settings.model_dump()
        return {name: {"value": values[name], "source": source} for name, source in self.sources.items()}


def read_card(settings: EncoderSettings) -> EncoderCard:
    """Fill in what a recipe leaves to the encoder's own files.

    Raises:
        EncoderError: the encoder cannot be found, or its files describe what cannot be run here.
    """
    if settings.name == FAKE:
        return resolve_card(settings)
    folder = encoder_folder(settings)
    try:
        require_supported(folder)
        stated, dense, contradictions = _stated(folder)
        lowered = is_lowered(model_folder(folder))
        _require_one_pooling(folder, settings, stated)
        wanted = settings.model_dump(include=set(_DEFAULTS), exclude_none=True)
        EncoderSettings.model_validate({"name": settings.name, **stated, **wanted})
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # ValidationError is a ValueError
        raise EncoderError(
            f"encoder.name: {folder}: its JSON files do not say what sentence-transformers' do "
            f"({first_line(error)})"
        ) from None
    own = settings
    if settings.documents is not None:
        own = settings.model_copy(update=dict.fromkeys(_OF_DOCUMENTS))
    card = resolve_card(own, stated, _family(settings.name), dense)
    # What the recipe says is what is meant, whatever the files say to each other.
    meant = [text for name, text in contradictions.items() if card.sources[name] != "recipe"]
    card = replace(card, warnings=(*card.warnings, *meant), is_lowered=lowered)
    return card if settings.documents is None else _with_documents(card, settings)


def _with_documents(card: EncoderCard, settings: EncoderSettings) -> EncoderCard:
    """What is said of documents is said by the encoder that reads them."""
    theirs = read_card(settings.for_documents())
    said = {name: getattr(theirs.settings, name) for name in _OF_DOCUMENTS}
    return replace(
        card,
        settings=card.settings.model_copy(update=said),
        sources=card.sources | {name: theirs.sources[name] for name in _OF_DOCUMENTS},
        warnings=(*card.warnings, *theirs.warnings),
    )


def resolve_card(
    settings: EncoderSettings,
    stated: Mapping[str, Any] = MappingProxyType({}),
    family: Mapping[str, Any] = MappingProxyType({}),
    dense: tuple[Path, ...] = (),
) -> EncoderCard:
    """Fill in what settings leave open, from what files state, a known family, and defaults."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    warnings = []
    for name, default in _DEFAULTS.items():
        wanted = getattr(settings, name)
        choices = (("recipe", wanted), ("files", stated.get(name)), ("known family", family.get(name)))
        sources[name], values[name] = next(
            ((source, value) for source, value in choices if value is not None), ("default", default)
        )
        if wanted is not None and _contradicts(name, wanted, stated.get(name)):
            warnings.append(f"encoder.{name}: {wanted!r} by the recipe; the files say {stated[name]!r}")
    return EncoderCard(settings.model_copy(update=values), sources, dense, tuple(warnings))


def _contradicts(name: str, wanted: Any, stated: Any) -> bool:
    """Whether a recipe's value means another thing than the files'; to read less of a text is no matter."""
    if stated is None:
        return False
    return bool(wanted > stated) if name.endswith("_max_length") else bool(wanted != stated)


def _family(name: str) -> dict[str, Any]:
    last = name.rstrip("/").rpartition("/")[2].lower()
    # multilingual-e5 and e5 share their prompts; an instruction-tuned e5 has others.
    if "instruct" in last:
        return {}
    return next((known for part, known in _FAMILIES.items() if part in last), {})


def _stated(folder: Path) -> tuple[dict[str, Any], tuple[Path, ...], dict[str, str]]:
    """Settings that are in the files, by field; folders of Dense layers; contradictions, by field."""
    stated: dict[str, Any] = {}
    contradictions: dict[str, str] = {}
    dense: list[Path] = []
    modules = modules_of(folder)
    about = read_json(folder / "config_sentence_transformers.json") or {}
    if about.get("similarity_fn_name") in ("cosine", "dot"):
        stated["similarity"] = about["similarity_fn_name"]
    if is_static(folder):
        stated["pooling"] = "mean"
        if not modules:
            normalised = (read_json(folder / "config.json") or {}).get("normalize")
            stated["similarity"] = "cosine" if normalised else "dot"
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        own = folder / module["path"]
        if kind == "Pooling":
            stated["pooling"] = _BESIDE.join(_pooling(own, read_json(own / "config.json") or {}))
        elif kind == "Dense":
            dense.append(own)
        elif kind == "Normalize":
            stated["similarity"] = "cosine"
    prompts = about.get("prompts") or {}
    named = about.get("similarity_fn_name")
    # Of vectors of unit length, every one of sentence-transformers' functions gives the same order.
    if named not in (None, "cosine", "dot") and "similarity" not in stated:
        contradictions["similarity"] = (
            f"encoder.similarity: the files name {named!r}, which is not supported; set cosine or dot"
        )
    default_name = about.get("default_prompt_name")
    if default_name is not None and default_name not in prompts:
        contradictions["query_prompt"] = (
            f"encoder.query_prompt: the files' default prompt is {default_name!r}, and they have none of "
            "that name"
        )
    default = prompts.get(default_name)
    for field_name, names in (("query_prompt", ("query",)),
                              ("document_prompt", ("document", "passage", "corpus"))):  # fmt: skip
        found = next((prompts[name] for name in names if prompts.get(name) is not None), default)
        if found is not None:
            stated[field_name] = found
    widths = (read_json(model_folder(folder) / "config.json") or {}).get("matryoshka_dimensions")
    if widths:
        stated["matryoshka_dimensions"] = tuple(widths)
    stated |= _lengths(folder)
    return stated, tuple(dense), contradictions


def _pooling(folder: Path, config: dict[str, Any]) -> list[str]:
    """The ways in which token states are pooled; the vectors of several are put side by side."""
    if config.get("include_prompt") is False:
        raise EncoderError(f"encoder.name: {folder} leaves the prompt out of pooling, which is not supported")
    mode = config.get("pooling_mode")
    if mode is None:
        return [mode for key, mode in _POOLING_KEYS.items() if config.get(key)] or ["mean"]
    return [mode] if isinstance(mode, str) else [str(one) for one in mode]


def _require_one_pooling(folder: Path, settings: EncoderSettings, stated: Mapping[str, Any]) -> None:
    """Vectors of several poolings side by side are not made here; a recipe can have one of them alone.

    Raises:
        EncoderError: the files name several, or modules without any, and the recipe none.
    """
    if settings.pooling is None and modules_of(folder) and "pooling" not in stated:
        raise EncoderError(
            f"encoder.name: {folder}: modules.json has no Pooling, as of a model with a vector for every "
            "token; set encoder.pooling if it makes one of a text"
        )
    if settings.pooling is None and _BESIDE in stated.get("pooling", ""):
        raise EncoderError(
            f"encoder.name: {folder} puts the vectors of several poolings side by side "
            f"({stated['pooling']}), which is not supported; set encoder.pooling to one of them"
        )


def usable_positions(config: dict[str, Any]) -> int | None:
    """The longest input in tokens that a model's position table takes; None if there is no table."""
    positions = config.get("max_position_embeddings")
    if positions is None:
        return None
    if config.get("model_type") in _OFFSET_POSITIONS:
        return int(positions) - int(config.get("pad_token_id", 1)) - 1
    return int(positions)


def _lengths(folder: Path) -> dict[str, int]:
    """Tokens that are read of a query and of a document, by field; none if the files name no length."""
    inner = model_folder(folder)
    if is_static(folder):
        cut = (read_json(inner / "tokenizer.json") or {}).get("truncation") or {}
        return dict.fromkeys(_LENGTHS, int(cut.get("max_length", _STATIC_LIMIT)))
    config = read_json(inner / "config.json") or {}
    positions = usable_positions({**config, **config.get("text_config", {})})
    options = transformer_options(inner)
    longest = _length(options, (read_json(inner / "tokenizer_config.json") or {}), positions)
    found: dict[str, int] = {}
    for field_name, own in _LENGTHS.items():
        length = longest if options.get(own) is None else int(options[own])
        if length is not None:
            found[field_name] = length if positions is None else min(length, positions)
    return found


def _length(options: Mapping[str, Any], tokenizer: Mapping[str, Any], positions: int | None) -> int | None:
    if (stated := options.get("max_seq_length")) is not None:
        return int(stated)
    limit = tokenizer.get("model_max_length")
    # sentence-transformers has kept the length there since version 6. Of others it is what the tokenizer can
    # read, which may be far more than is wanted.
    if "transformer_task" in options and limit is not None and limit <= _UNBOUNDED:
        return int(limit)
    known = [int(length) for length in (limit, positions) if length is not None]
    return min(*known, _UNSTATED_LIMIT) if known else None
