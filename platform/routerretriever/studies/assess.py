"""Which of the experts that exist helps a new collection? Answered by queries generated from its documents.

The idea is LARMOR's (Khramtsova et al., arXiv 2402.04853): rank models on a collection without labels by
queries that a language model wrote. Each system is compared with the base, query by query.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.table import Table

from routerretriever.config.recipe import Recipe
from routerretriever.datasets.collection import Collection, open_collection
from routerretriever.errors import RecipeError
from routerretriever.evaluation.significance import Difference, compare_all
from routerretriever.generation.folder import Generated
from routerretriever.index.base import Hits, Queries
from routerretriever.index.hybrid import open_hybrid
from routerretriever.measures import Run, measure
from routerretriever.methods.base import Workspace
from routerretriever.methods.experts import Experts
from routerretriever.pipeline.documents import generate_from, require_domain_name, with_examples
from routerretriever.pipeline.pipeline import Pipeline, require_trained
from routerretriever.runtime.progress import figures_table
from routerretriever.types import BASE, Values

BM25, HYBRID = "BM25", "base with BM25"
_DEPTH = 100


@dataclass(frozen=True)
class Assessment:
    """How well each system finds the documents that queries were generated from."""

    collection: str
    queries: int
    ndcg_at_10: Mapping[str, float]
    """System -> mean; the base is one of them."""
    differences: Mapping[str, Difference]
    """System -> difference to the base."""

    def ranked(self) -> list[str]:
        """The systems, the best first."""
        return sorted(self.ndcg_at_10, key=lambda name: (-self.ndcg_at_10[name], name))

    def verdict(self) -> str:
        """What to do, in a sentence."""
        better = [
            name for name in self.ranked() if name != BASE and self.differences[name].low > 0
            and self.differences[name].significant
        ]  # fmt: skip
        if not better:
            return f"{self.collection}: no system is better than the base beyond chance"
        best = self.differences[better[0]]
        return (
            f"{self.collection}: {better[0]} helps most: {100 * best.mean:+.1f} nDCG@10 over the base "
            f"[{100 * best.low:+.1f}, {100 * best.high:+.1f}] on {self.queries} generated queries"
        )

    def table(self) -> Table:
        """The systems and their differences to the base, in points."""
        header = ("system", "nDCG@10", "over the base", "95 % interval", "adjusted p")
        table = figures_table(*header, title=f"{self.collection}: {self.queries} generated queries")
        for name in self.ranked():
            row = [name, f"{100 * self.ndcg_at_10[name]:.1f}"]
            if name in self.differences:
                one = self.differences[name]
                interval = f"[{100 * one.low:+.1f}, {100 * one.high:+.1f}]"
                row += [f"{100 * one.mean:+.1f}", interval, f"{one.adjusted_p_value:.3f}"]
            table.add_row(*row)
        return table


def assess_documents(
    recipe: Recipe,
    name: str,
    documents: Path,
    examples: Path | None = None,
    tell: Callable[[Generated], object] | None = None,
) -> Assessment:
    """Generate queries about files, and measure a recipe's systems on them.

    Args:
        recipe: whose experts are trained; nothing of it changes.
        name: what the collection is called; ``add_from_documents`` with it uses the same queries.
        documents: a file or folder of documents, or an imported collection.
        examples: a file of up to eight queries as people write them.
        tell: is given what was generated, before anything is measured.

    Raises:
        RouterRetrieverError: see ``generate_from`` and ``assess``.
    """
    pipeline = Pipeline(with_examples(recipe, examples))
    require_domain_name(recipe, name)
    _require_ready(pipeline, name)  # before hours of generation
    generated = generate_from(pipeline.recipe, name, documents)
    if tell is not None:
        tell(generated)
    return assess(pipeline, open_collection(name, generated.folder))


def assess(pipeline: Pipeline, collection: Collection) -> Assessment:
    """Measure the base, every expert of a recipe, and BM25 on a collection's generated queries.

    Args:
        pipeline: a recipe whose experts are trained; nothing of it changes.
        collection: one that was generated; all its train and dev queries count, as nothing is trained on it.

    Raises:
        RecipeError: an expert is not trained, or a domain of the recipe has the collection's name.
    """
    _require_ready(pipeline, collection.name)
    own = pipeline.workspace
    workspace = replace(own, collections={**own.collections, collection.name: collection})
    models = pipeline.method(Experts).models
    values: dict[str, list[Values]] = {}
    for split in ("train", "dev"):
        scores = workspace.scores(workspace.score_steps(split, models, [collection.name]))[collection.name]
        for model in models:
            values.setdefault(model.name, []).append(scores.measured.ndcg_at_10[:, scores.of(model.name)])
        if workspace.corpus.lexical is not None:
            texts = collection.queries(split)
            asked = Queries([texts[query] for query in scores.query_ids], scores.base_vectors)
            runs = _with_words(workspace, collection.name, asked, scores.query_ids)
            for name, run in runs.items():
                found = measure(collection.qrels(split), run, scores.query_ids).ndcg_at_10
                values.setdefault(name, []).append(found)
    joined = {name: np.concatenate(parts) for name, parts in values.items()}
    base = joined[BASE]
    return Assessment(
        collection.name,
        len(base),
        {name: float(each.mean()) for name, each in joined.items()},
        compare_all({name: (each, base) for name, each in joined.items() if name != BASE}),
    )


def _require_ready(pipeline: Pipeline, name: str) -> None:
    if name in pipeline.collections:
        raise RecipeError(f"domains.{name}: is in the recipe already; give another --name")
    require_trained(pipeline)


def _with_words(
    workspace: Workspace, name: str, queries: Queries, query_ids: Sequence[str]
) -> dict[str, Run]:
    """Results of BM25 alone, and of the base with BM25 at the prior weight."""
    corpus = workspace.open_corpus(name)
    settings = workspace.corpus
    assert settings.lexical is not None
    hybrid = open_hybrid(corpus, settings.index, settings.lexical, workspace.store)
    looks = hybrid.look(queries, floor=workspace.fusion.floor)
    fused = hybrid.fuse(queries, looks, [settings.fusion.prior] * len(looks), None, _DEPTH)

    def run(found: Sequence[Hits]) -> Run:
        return {
            query: {corpus.ids[row]: float(score) for row, score in zip(*hits, strict=True)}
            for query, hits in zip(query_ids, found, strict=True)
        }

    return {
        BM25: run([look.lexical for look in looks]),
        HYBRID: run([Hits(each.rows, each.scores) for each in fused]),
    }
