"""Systems compared by a language model's grades, for test sets whose judgements are missing or thin.

What the systems find first is pooled, as in TREC, and a judge grades each query and document of the pool
once (see ``generation.grading``). Some queries are graded twice, by another prompt: what differs is the
judge's own noise. Where people have judged, too, it is said how far the judge agrees with them.

Shapes: Q queries, S systems, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from routerretriever.datasets.collection import Collection, Qrels
from routerretriever.datasets.splitting import first_by_hash
from routerretriever.evaluation.evaluation import Evaluation
from routerretriever.evaluation.significance import Interval, mean_interval
from routerretriever.generation.grading import HIGHEST, Grades, Pair
from routerretriever.generation.prompts import shorten
from routerretriever.generation.settings import JudgingSettings
from routerretriever.measures import Run, measure
from routerretriever.types import Values

_RELEVANT = 2
"""From this grade on a document answers the query, in the judge's scale."""

QueryAndDocument = tuple[str, str]
"""Their ids."""


@dataclass(frozen=True)
class Pool:
    """What is graded of a test set."""

    dataset: str
    query_ids: list[str]
    runs: Mapping[str, Run]
    """System -> what it finds first."""
    pairs: Mapping[QueryAndDocument, Pair]
    repeated: frozenset[str]
    """Queries whose pairs are graded twice."""

    @cached_property
    def again(self) -> dict[QueryAndDocument, Pair]:
        """The pairs that are graded a second time, by the other prompt."""
        return {
            ids: Pair(pair.query, pair.document, swapped=True)
            for ids, pair in self.pairs.items()
            if ids[0] in self.repeated
        }

    @property
    def asked(self) -> list[Pair]:
        """Everything that the judge is asked."""
        return [*self.pairs.values(), *self.again.values()]


@dataclass(frozen=True)
class Noise:
    """What changes when the judge is asked again, by another prompt."""

    pairs: int
    equal: float
    """Share of pairs with the same grade."""
    kappa: float | None
    """Cohen's kappa with quadratic weights (Cohen 1968); None if all grades are the same."""
    distance: float
    """Mean absolute difference of grades."""
    query_shift: float
    """Mean absolute change of a query's nDCG@10."""
    system_shift: float
    """Largest change of a system's mean nDCG@10: a smaller difference of systems is noise."""


@dataclass(frozen=True)
class Agreement:
    """The judge beside people, on the queries for which people found something relevant."""

    queries: int
    tau: float | None
    """Kendall's tau of the order of systems by mean nDCG@10; None, here and below, where nothing varies."""
    pearson: float | None
    """Of nDCG@10 over all queries and systems."""
    spearman: float | None
    relevant: int
    """Pairs that people call relevant."""
    relevant_graded: float | None
    """Share of them that the judge grades 2 or 3."""
    irrelevant: int
    """Pairs that people call irrelevant."""
    irrelevant_graded: float | None
    """Share of them that the judge grades 2 or 3."""
    unjudged: int
    """Pairs that people did not judge, which their measures count as irrelevant."""
    unjudged_graded: float | None
    """Share of them that the judge grades 2 or 3."""


@dataclass(frozen=True)
class JudgedSet:
    """A test set by the judge."""

    dataset: str
    queries: int
    """With at least one grade."""
    pairs: int
    dropped: Mapping[str, int]
    """Reason -> pairs without a grade; they are taken out of all results."""
    tokens: int
    ndcg_at_10: Mapping[str, Values]
    """System -> nDCG@10 [Q] by the judge's grades."""
    noise: Noise | None
    agreement: Agreement | None

    @property
    def intervals(self) -> dict[str, Interval]:
        """System -> mean nDCG@10."""
        return {name: mean_interval([values]) for name, values in self.ndcg_at_10.items()}


@dataclass(frozen=True)
class Judging:
    """An evaluation by a language model."""

    judge: Mapping[str, Any]
    """Which model it was."""
    sets: Sequence[JudgedSet]
    means: Mapping[str, Interval]
    """System -> mean nDCG@10 over the sets whose domain has an expert, if it answered all of them."""
    left_out: Sequence[str]
    """Headline systems that cannot search again, as oracles."""

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON holds it."""
        return {
            "judge": dict(self.judge),
            "mean_ndcg_at_10": {name: asdict(one) for name, one in self.means.items()},
            "left_out": list(self.left_out),
            "sets": [
                {
                    "dataset": one.dataset,
                    "queries": one.queries,
                    "pairs": one.pairs,
                    "dropped": dict(one.dropped),
                    "tokens": one.tokens,
                    "ndcg_at_10": {name: asdict(interval) for name, interval in one.intervals.items()},
                    "noise": asdict(one.noise) if one.noise else None,
                    "agreement": asdict(one.agreement) if one.agreement else None,
                }
                for one in self.sets
            ],
        }


def summarise(judge: Mapping[str, Any], sets: Sequence[JudgedSet], evaluation: Evaluation) -> Judging:
    """All judged sets together."""
    own = [one for one in sets if one.dataset in evaluation.with_expert]
    names = list(dict.fromkeys(name for one in sets for name in one.ndcg_at_10))
    means = {
        name: mean_interval([one.ndcg_at_10[name] for one in own])
        for name in names
        if own and all(name in one.ndcg_at_10 for one in own)
    }
    left_out = [system.name for system in evaluation.headline if system.rank is None]
    return Judging(judge, sets, means, left_out)


def make_pool(evaluation: Evaluation, collection: Collection, settings: JudgingSettings) -> Pool:
    """Pool what the headline systems find first for a sample of a set's test queries.

    Args:
        evaluation: of the systems; those that cannot search again, as oracles, are left out.
        collection: the test set.
        settings: how many queries and documents.
    """
    name = collection.name
    query_ids = first_by_hash(evaluation.query_ids[name], settings.queries, f"judging {settings.seed}")
    runs = {
        system.name: system.rank(name, query_ids, settings.depth)
        for system in evaluation.headline
        if system.rank is not None and name in system.measured
    }
    found = {
        query: dict.fromkeys(document for run in runs.values() for document in run[query])
        for query in query_ids
    }
    wanted = {document for own in found.values() for document in own}
    texts = {
        document.id: shorten(document.title, document.text, settings.document_words)
        for document in collection.uncut.documents()
        if document.id in wanted
    }
    asked = collection.queries("test")
    pairs = {
        (query, document): Pair(asked[query], texts[document])
        for query, own in found.items()
        for document in own
    }
    return Pool(name, query_ids, runs, pairs, frozenset(query_ids[: settings.repeated_queries]))


def judged_set(pool: Pool, grades: Grades, tokens: int, evaluation: Evaluation, qrels: Qrels) -> JudgedSet:
    """What the grades of a pool say.

    Args:
        pool: what was graded.
        grades: the judge's.
        tokens: that it took.
        evaluation: measures by people's judgements.
        qrels: people's judgements of the test set.
    """
    graded = _graded(pool.pairs, grades)
    query_ids = [query for query in pool.query_ids if query in graded]
    ndcg = ndcg_by_grades(pool.runs, graded, query_ids)
    return JudgedSet(
        pool.dataset,
        len(query_ids),
        len(pool.pairs),
        grades.dropped,
        tokens,
        ndcg,
        noise(pool, grades),
        agreement(graded, ndcg, query_ids, evaluation, pool.dataset, qrels),
    )


def ndcg_by_grades(runs: Mapping[str, Run], graded: Qrels, query_ids: Sequence[str]) -> dict[str, Values]:
    """System -> nDCG@10 [Q] by grades; documents without one are taken out of the results.

    Such condensed lists (Sakai, "Alternatives to Bpref", 2007) count a missing grade neither way.
    """
    ndcg = {}
    for name, run in runs.items():
        condensed = {
            query: {document: score for document, score in run[query].items() if document in graded[query]}
            for query in query_ids
        }
        ndcg[name] = measure(graded, condensed, query_ids).ndcg_at_10
    return ndcg


def noise(pool: Pool, grades: Grades) -> Noise | None:
    """How far the judge agrees with itself; None where nothing was graded twice."""
    first, second = _graded(pool.again, grades, pool.pairs), _graded(pool.again, grades)
    both = [
        (query, document)
        for query, own in first.items()
        for document in own
        if document in second.get(query, {})
    ]
    if not both:
        return None
    a, b = (np.array([side[query][document] for query, document in both]) for side in (first, second))
    query_ids = list(dict.fromkeys(query for query, _ in both))
    before, after = (
        _rows(ndcg_by_grades(pool.runs, _only(side, both), query_ids)) for side in (first, second)
    )
    return Noise(
        len(both),
        float((a == b).mean()),
        _kappa(a, b),
        float(np.abs(a - b).mean()),
        float(np.abs(before - after).mean()),
        float(np.abs(before.mean(axis=1) - after.mean(axis=1)).max()),
    )


def agreement(
    graded: Qrels,
    ndcg: Mapping[str, Values],
    query_ids: Sequence[str],
    evaluation: Evaluation,
    dataset: str,
    qrels: Qrels,
) -> Agreement | None:
    """How far the judge agrees with people; None where they found nothing relevant."""
    from scipy.stats import kendalltau, pearsonr, spearmanr

    columns = [n for n, query in enumerate(query_ids) if max(qrels.get(query, {}).values(), default=0) > 0]
    if not columns:
        return None
    rows = {query: row for row, query in enumerate(evaluation.query_ids[dataset])}
    asked = [query_ids[column] for column in columns]
    places = [rows[query] for query in asked]
    ours = _rows({name: values[columns] for name, values in ndcg.items()})
    theirs = _rows({name: evaluation.measured[name][dataset].ndcg_at_10[places] for name in ndcg})
    relevant, irrelevant, unjudged = list[int](), list[int](), list[int]()
    for query in asked:
        for document, grade in graded[query].items():
            known = qrels[query].get(document)
            side = unjudged if known is None else relevant if known > 0 else irrelevant
            side.append(grade)
    return Agreement(
        len(asked),
        _statistic(kendalltau, ours.mean(axis=1), theirs.mean(axis=1)),
        _statistic(pearsonr, ours.ravel(), theirs.ravel()),
        _statistic(spearmanr, ours.ravel(), theirs.ravel()),
        len(relevant),
        _share_relevant(relevant),
        len(irrelevant),
        _share_relevant(irrelevant),
        len(unjudged),
        _share_relevant(unjudged),
    )


def _graded(
    pairs: Mapping[QueryAndDocument, Pair], grades: Grades, by: Mapping[QueryAndDocument, Pair] | None = None
) -> Qrels:
    """Grades by query and document, those without left out; ``by`` says as which pairs they were asked."""
    graded: Qrels = {}
    for query, document in pairs:
        grade = grades.of((by or pairs)[query, document])
        if grade is not None:
            graded.setdefault(query, {})[document] = grade
    return graded


def _only(graded: Qrels, kept: Iterable[QueryAndDocument]) -> Qrels:
    only: Qrels = {}
    for query, document in kept:
        only.setdefault(query, {})[document] = graded[query][document]
    return only


def _rows(ndcg: Mapping[str, Values]) -> Values:
    """nDCG@10 [S, Q]."""
    return np.stack(list(ndcg.values()))


def _kappa(a: np.ndarray, b: np.ndarray) -> float | None:
    from sklearn.metrics import cohen_kappa_score

    if len({*a.tolist(), *b.tolist()}) < 2:
        return None
    return float(cohen_kappa_score(a, b, labels=range(HIGHEST + 1), weights="quadratic"))


def _statistic(function: Callable[..., Any], a: Values, b: Values) -> float | None:
    if np.ptp(a) < 1e-12 or np.ptp(b) < 1e-12:
        return None
    return float(function(a, b).statistic)


def _share_relevant(grades: Sequence[int]) -> float | None:
    return float(np.mean([grade >= _RELEVANT for grade in grades])) if grades else None
