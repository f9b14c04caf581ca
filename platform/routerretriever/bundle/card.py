"""Model cards: what an expert or a bundle is, its figures, and what it is not good for. Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from routerretriever.encoder.settings import EncoderSettings
from routerretriever.encoder.source import hub_id

_LIMITS = """\
## Limits

- Figures are of the test sets named here; on other data measure again.
- Queries longer than {query} tokens and documents longer than {document} are cut.
- It knows the languages and subjects of its base encoder and of its training queries, no others.
"""


def base_of(encoder: EncoderSettings) -> str:
    """How to call a base encoder where its folder's path means nothing."""
    return hub_id(encoder) or "the base encoder (a local folder when this was made)"


def expert_card(name: str, card: Mapping[str, Any], encoder: EncoderSettings, merged: bool | None) -> str:
    """The card of one expert.

    Args:
        name: what the expert is called.
        card: what its training recorded.
        encoder: the base.
        merged: whether the adapter is part of the weights that lie beside it; None: no files lie there.
    """
    verdict = card.get("verdict") or {}
    lines = [
        f"# Expert `{name}`",
        "",
        f"A query encoder for the collection `{card.get('domain', name)}`: {base_of(encoder)} with an "
        "adapter that RouterRetriever trained. Documents are encoded with the base, without the adapter.",
        "",
        "| | nDCG@10 on dev |",
        "|---|---:|",
        f"| this expert | {_figure(card.get('dev_ndcg_at_10'))} |",
        f"| the base | {_figure(card.get('base_dev_ndcg_at_10'))} |",
        "",
    ]
    if verdict:
        lines += [f"On held-out queries: {verdict['sentence']}.", ""]
    if card.get("deployed") is False:
        lines += ["It was not better than the base, so its adapter changes nothing (scale 0).", ""]
    lines += [
        f"Best of {card.get('steps', '?')} steps at {card.get('best_step', '?')}; scale "
        f"{card.get('scale', 1.0):g}; base fingerprint `{card['encoder_fingerprint']}`.",
        "",
    ]
    if merged is not None:
        lines += [*_usage(encoder, merged), ""]
    return _front_matter(encoder, merged) + "\n".join(lines) + "\n" + _limits(encoder)


def bundle_card(manifest: Mapping[str, Any]) -> str:
    """The card of a bundle: what was deployed, on which collections, with which figures."""
    encoder = EncoderSettings.model_validate(manifest["encoder"])
    experts = ", ".join(f"`{pin['name']}`" for pin in manifest["experts"]) or "none"
    lines = [
        f"# Bundle of recipe `{manifest['recipe'].get('name', '?')}`",
        "",
        f"A router over experts ({experts}) on {base_of(encoder)}. A query is embedded by the expert, or the "
        "mixture of experts, that suits it; documents are embedded by the base.",
        "",
        *_figures(manifest.get("evaluation") or {}),
        "Searches these collections: " + (", ".join(f"`{name}`" for name in manifest["corpora"]) or "none"),
        "",
    ]
    return "\n".join(lines) + "\n" + _limits(encoder)


def _figures(evaluation: Mapping[str, Any]) -> list[str]:
    figures, deployed = evaluation.get("ndcg_at_10"), evaluation.get("deployed")
    if not figures or deployed not in figures:
        return []
    shown = [name for name in (deployed, "base") if name in figures]
    rows = ["| test set | queries | " + " | ".join(f"{name}" for name in shown) + " |"]
    rows.append("|---|---:|" + "---:|" * len(shown))
    for dataset in evaluation["datasets"]:
        zero_shot = "" if dataset in evaluation["with_expert"] else " (no expert)"
        values = " | ".join(_figure(figures[name].get(dataset)) for name in shown)
        rows.append(f"| {dataset}{zero_shot} | {evaluation['queries'][dataset]} | {values} |")
    return ["nDCG@10 on test:", "", *rows, ""]


def _usage(encoder: EncoderSettings, merged: bool) -> list[str]:
    if merged:
        return ["```python", "from sentence_transformers import SentenceTransformer", "",
                'queries = SentenceTransformer("THIS FOLDER").encode_query(["a query"])', "```"]  # fmt: skip
    base = hub_id(encoder) or "BASE"
    return [
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        'queries = SentenceTransformer("THIS FOLDER").encode_query(["a query"])',
        "",
        "# or with PEFT alone; pooling and prompts are then yours to add",
        "from peft import PeftModel",
        "from transformers import AutoModel",
        "",
        f'model = PeftModel.from_pretrained(AutoModel.from_pretrained("{base}"), "THIS FOLDER")',
        "```",
    ]


def _front_matter(encoder: EncoderSettings, merged: bool | None) -> str:
    if merged is None:
        return ""
    base = hub_id(encoder)
    library = "sentence-transformers" if merged else "peft"
    lines = ["---", f"library_name: {library}", "pipeline_tag: sentence-similarity"]
    lines += [f"base_model: {base}"] if base else []
    return "\n".join([*lines, "tags: [retrieval, routerretriever]", "---", "", ""])


def _limits(encoder: EncoderSettings) -> str:
    return _LIMITS.format(query=encoder.query_max_length, document=encoder.document_max_length)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
