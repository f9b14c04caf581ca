"""The paper's analyses (arXiv 2409.02685) on any collections.

``growing`` is Table 3 and Figures 4 and 5, ``with_and_without`` Tables 1 and 2, ``centroids`` the k-means
ablation, ``projections`` Figure 2; Figure 3 is in ``learning_curve``, Figure 6 in the evaluation's report.
All are read from the score table: no expert is run for them, and routers mix vectors (see ``offline``).
Every router that is fitted, and every projection, is a Ray task and is kept in storage, so that another
order of experts, or one more number of centroids, costs only what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from routerretriever.artifacts.step import Step, build_missing
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.hashing import content_hash
from routerretriever.methods.experts import DATASET_ORACLE, INSTANCE_ORACLE, PAPERS, ROUTED
from routerretriever.methods.hybrid import ROUTED_FIXED, WEIGHT_ORACLE
from routerretriever.reports.plots import Lines, Scatter, Section
from routerretriever.reports.tables import percent
from routerretriever.routing.settings import RoutingSettings
from routerretriever.runtime.cluster import connect
from routerretriever.scoring.fusion import FusedScores
from routerretriever.scoring.table import SplitScores
from routerretriever.studies.offline import OfflineEvaluator
from routerretriever.types import BASE, Values, Vectors

_PROJECTED = 200
"""Queries of each test set that are projected at most: more would hide one another."""
_PRINCIPAL_COMPONENTS = 50
"""What t-SNE is given; it is slow, and no better, on all dimensions."""

Case = tuple[RoutingSettings, tuple[str, ...]]
"""A router's settings, and the experts that there are."""


@dataclass(frozen=True)
class Growth:
    """nDCG@10 with the first experts only: means over sets whose expert is among them, and elsewhere."""

    experts: list[str]
    router: float | None
    """None, here and below, where there is no such set."""
    dataset_oracle: float | None
    instance_oracle: float | None
    router_elsewhere: float | None
    base_elsewhere: float | None


@dataclass(frozen=True)
class Presence:
    """What a domain's own expert is worth to it."""

    dataset: str
    base: float
    without: float
    """The router as if this expert and its queries had never been there."""
    with_it: float


@dataclass(frozen=True)
class Centroids:
    """The pilot library with k centroids per group: mean nDCG@10 over sets with an expert, and without."""

    clusters: int
    in_domain: float | None
    zero_shot: float | None


@dataclass(frozen=True)
class NoiseFloor:
    """How much of InstanceOracle's gain is luck: the oracle over re-seeded copies of one expert."""

    dataset: str
    copies: int
    single: float
    """Mean nDCG@10 over the copies, each alone."""
    best_copy: float
    copies_oracle: float
    """The best copy for each query: they differ by their seeds only."""
    experts_oracle: float
    """InstanceOracle over the recipe's experts, of which there may be another number."""
    weights: WeightFloor | None
    """None if the domain's words are not searched."""


@dataclass(frozen=True)
class WeightFloor:
    """How much of what the best weight of BM25 for each query gains is luck, with the router's vectors."""

    routed: float
    """Mean nDCG@10 without BM25."""
    fixed: float
    """With the weight where nothing is known, for all queries."""
    oracle: float
    """With the best weight for each query."""
    oracle_of_others_words: float
    """The same, but words are those of another query, which tell nothing: all that it gains is luck."""


@dataclass(frozen=True)
class Projection:
    """Test queries by test set in two dimensions [Q, 2]; what is near there is near here."""

    features: str | int
    points: dict[str, list[list[float]]]
    among_their_own: dict[str, float]
    """Test set -> share of these queries whose nearest other query, in all dimensions, is of the same set."""


@dataclass(frozen=True)
class Analyses:
    """All of them."""

    growing: list[Growth]
    with_and_without: list[Presence]
    centroids: list[Centroids]
    projections: list[Projection]


def analyse(
    bench: OfflineEvaluator,
    settings: RoutingSettings,
    order: Sequence[str],
    clusters: Sequence[int],
    store: ArtifactStore,
) -> Analyses:
    """Run the analyses on the test split.

    Args:
        bench: scored queries, and the test split to measure on.
        settings: the deployed router's.
        order: in which experts are added; each once.
        clusters: numbers of centroids to try.
        store: where figures are kept.
    """
    whole: Case = settings, tuple(bench.experts)
    growing = [tuple(order[:count]) for count in range(1, len(order) + 1)]
    others = {
        name: tuple(other for other in bench.experts if other != name)
        for name in bench.experts
        if name in bench.datasets
    }
    pilots = [PAPERS.model_copy(update={"router": "pilots", "clusters": count}) for count in clusters]
    cases = [whole, *((settings, some) for some in (*growing, *others.values()) if some)]
    routed = _routed(bench, [*cases, *((one, whole[1]) for one in pilots)], store)
    kinds = dict.fromkeys((PAPERS.features, settings.features))
    return Analyses(
        [_growth(bench, list(some), routed[_sorted(bench, (settings, some))]) for some in growing],
        [
            _presence(bench, name, routed[whole], routed[settings, some] if some else None)
            for name, some in others.items()
        ],
        [_centroids(bench, one.clusters, routed[one, whole[1]]) for one in pilots],
        _projections(bench, [settings.model_copy(update={"features": kind}) for kind in kinds], store),
    )


def _sorted(bench: OfflineEvaluator, case: Case) -> Case:
    """The same case, whatever the order of its experts, which changes nothing."""
    return case[0], tuple(name for name in bench.experts if name in case[1])


def _routed(
    bench: OfflineEvaluator, cases: Iterable[Case], store: ArtifactStore
) -> dict[Case, dict[str, float]]:
    """Mean nDCG@10 by test set of every router."""
    keys = {
        case: f"analyses/routed-{content_hash(bench.identity, case[0].model_dump(mode='json'), case[1])}"
        for case in (_sorted(bench, case) for case in cases)
    }
    made = _run_missing(bench, {key: (_routed_means, case) for case, key in keys.items()}, store)
    return {case: made[key] for case, key in keys.items()}


def _routed_means(bench: OfflineEvaluator, case: Case) -> dict[str, float]:
    settings, experts = case
    router = bench.router(settings, experts)
    return {name: _mean_of(bench.ndcg(router, settings, name)) for name in bench.datasets}


def _projections(
    bench: OfflineEvaluator, settings: Sequence[RoutingSettings], store: ArtifactStore
) -> list[Projection]:
    """What routers of these settings read of the test queries."""
    keys = [f"analyses/projection-{content_hash(bench.identity, one.features)}" for one in settings]
    tasks = {key: (_project, one) for key, one in zip(keys, settings, strict=True)}
    made = _run_missing(bench, tasks, store)
    return [
        Projection(
            one.features,
            {name: made[key]["points"][name] for name in bench.datasets},
            {name: made[key]["among_their_own"][name] for name in bench.datasets},
        )
        for key, one in zip(keys, settings, strict=True)
    ]


def _project(bench: OfflineEvaluator, settings: RoutingSettings) -> dict[str, Any]:
    return asdict(project(settings.features, bench.features(settings)))


def project(features: str | int, vectors: Mapping[str, Vectors], seed: int = 0) -> Projection:
    """Query vectors by test set, or a sample of them, in two dimensions: principal components, then t-SNE."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.neighbors import NearestNeighbors

    random = np.random.default_rng(seed)
    samples = {
        name: group[np.sort(random.permutation(len(group))[:_PROJECTED])] for name, group in vectors.items()
    }
    every = np.concatenate(list(samples.values()))
    plane_N2, same_N = np.zeros((len(every), 2)), np.zeros(len(every), dtype=bool)
    if np.ptp(every, axis=0).any():  # scikit-learn's t-SNE of one point, many times or once, ends the process
        reduced = PCA(min(_PRINCIPAL_COMPONENTS, *every.shape), random_state=seed).fit_transform(every)
        # Its default perplexity, which a handful of queries is too few for.
        tsne = TSNE(perplexity=min(30.0, (len(every) - 1) / 3), init="pca", random_state=seed)
        plane_N2 = np.round(tsne.fit_transform(reduced), 2)
    if len(every) > 1:
        group_N = np.repeat(np.arange(len(samples)), [len(group) for group in samples.values()])
        nearest_N = NearestNeighbors(n_neighbors=1).fit(every).kneighbors(return_distance=False)[:, 0]
        same_N = group_N[nearest_N] == group_N
    ends = np.cumsum([len(group) for group in samples.values()])[:-1]
    parts, same = np.split(plane_N2, ends), np.split(same_N, ends)
    return Projection(
        features,
        {name: part.tolist() for name, part in zip(samples, parts, strict=True)},
        {name: float(part.mean()) for name, part in zip(samples, same, strict=True)},
    )


def _run_missing(
    bench: OfflineEvaluator,
    tasks: Mapping[str, tuple[Callable[[OfflineEvaluator, Any], dict[str, Any]], Any]],
    store: ArtifactStore,
) -> dict[str, Any]:
    """Make what storage lacks, and read all results, each under its key."""
    steps = [
        Analyse(name=function.__name__.strip("_"), key=key, bench=bench, function=function, argument=argument)
        for key, (function, argument) in tasks.items()
    ]
    build_missing(steps, store)
    return {key: store.manifest(key)["result"] for key in tasks}


@dataclass(frozen=True, kw_only=True, eq=False)
class Analyse(Step):
    """One result of an analysis."""

    stage: ClassVar[str] = "analyse"

    bench: OfflineEvaluator
    function: Callable[[OfflineEvaluator, Any], dict[str, Any]]
    argument: Any

    @classmethod
    def build_all(cls, steps: Sequence[Analyse], store: ArtifactStore) -> None:
        """Run each as a Ray task."""
        import ray

        connect()
        task, shared = ray.remote(num_cpus=1)(_run_and_keep), ray.put(steps[0].bench)
        ray.get([task.remote(store, step.key, shared, step.function, step.argument) for step in steps])


def _run_and_keep(
    store: ArtifactStore,
    key: str,
    bench: OfflineEvaluator,
    function: Callable[[OfflineEvaluator, Any], dict[str, Any]],
    argument: Any,
) -> None:
    store.commit(key, {"kind": "analysis", "result": function(bench, argument)})


def _growth(bench: OfflineEvaluator, experts: list[str], routed: Mapping[str, float]) -> Growth:
    inside = [name for name in experts if name in bench.datasets]
    outside = [name for name in bench.datasets if name not in experts]
    tables = {name: bench.scores[name].utilities(experts) for name in bench.datasets}
    return Growth(
        experts=experts,
        router=_mean(routed[name] for name in inside),
        dataset_oracle=_mean(tables[name].mean(axis=0).max() for name in inside),
        instance_oracle=_mean(tables[name].max(axis=1).mean() for name in inside),
        router_elsewhere=_mean(routed[name] for name in outside),
        base_elsewhere=_mean(bench.scores[name].utilities([BASE]).mean() for name in outside),
    )


def _presence(
    bench: OfflineEvaluator, dataset: str, routed: Mapping[str, float], without: Mapping[str, float] | None
) -> Presence:
    base = _mean_of(bench.scores[dataset].utilities([BASE]))
    return Presence(dataset, base, base if without is None else without[dataset], routed[dataset])


def _centroids(bench: OfflineEvaluator, clusters: int, routed: Mapping[str, float]) -> Centroids:
    return Centroids(
        clusters,
        _mean(value for name, value in routed.items() if name in bench.experts),
        _mean(value for name, value in routed.items() if name not in bench.experts),
    )


def _mean_of(values: Values) -> float:
    return float(values.mean())


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return float(np.mean(listed)) if listed else None


def weight_floor(fused: FusedScores, others: FusedScores, fixed: float) -> WeightFloor:
    """Compare the oracle over weights of BM25 with the same oracle over the words of other queries.

    Args:
        fused: a test set's queries at every weight.
        others: the same, with the words of other queries.
        fixed: a weight for all queries.
    """
    ndcg = [one.ndcg_at_10 for one in (fused.at(0.0), fused.at(fixed), fused.best(), others.best())]
    return WeightFloor(*map(_mean_of, ndcg))


def noise_floor(copies: SplitScores, experts: SplitScores, weights: WeightFloor | None) -> NoiseFloor:
    """Compare the oracle over copies of one expert with the oracle over the experts, on one test set."""
    of_copies_QC = copies.utilities([name for name in copies.experts if name != BASE])
    of_experts_QT = experts.utilities([name for name in experts.experts if name != BASE])
    return NoiseFloor(
        dataset=copies.dataset,
        copies=of_copies_QC.shape[1],
        single=_mean_of(of_copies_QC),
        best_copy=float(of_copies_QC.mean(axis=0).max()),
        copies_oracle=_mean_of(of_copies_QC.max(axis=1)),
        experts_oracle=_mean_of(of_experts_QT.max(axis=1)),
        weights=weights,
    )


def noise_floor_sections(floor: NoiseFloor) -> list[Section]:
    """A noise floor in words and figures."""
    sections = [_copies_section(floor)]
    if floor.weights is not None:
        sections.append(_weights_section(floor.dataset, floor.weights))
    return sections


def _copies_section(floor: NoiseFloor) -> Section:
    return Section(
        f"{floor.dataset}: luck and choice",
        "The copies differ by their seeds only: what choosing among them for each query gains is luck.",
        ["", "nDCG@10 x 100"],
        [
            [f"one of {floor.copies} copies, mean", percent(floor.single)],
            ["best copy on this test set", percent(floor.best_copy)],
            ["best copy for each query", percent(floor.copies_oracle)],
            [f"best expert for each query ({INSTANCE_ORACLE})", percent(floor.experts_oracle)],
        ],
    )


def _weights_section(dataset: str, floor: WeightFloor) -> Section:
    return Section(
        f"{dataset}: luck and the weight of words",
        "The words of another query say nothing of this one: what the best weight of each query gains by "
        "them is luck.",
        ["", "nDCG@10 x 100"],
        [
            [ROUTED, percent(floor.routed)],
            [ROUTED_FIXED, percent(floor.fixed)],
            ["best weight for each query, words of another", percent(floor.oracle_of_others_words)],
            [f"best weight for each query ({WEIGHT_ORACLE})", percent(floor.oracle)],
        ],
    )


def analyses_sections(analyses: Analyses) -> list[Section]:
    """All of them as tables and plots."""
    return [
        _growing_section(analyses.growing),
        _presence_section(analyses.with_and_without),
        _centroids_section(analyses.centroids),
        _projections_section(analyses.projections),
    ]


def _growing_section(growing: Sequence[Growth]) -> Section:
    inside = {
        ROUTED: [row.router for row in growing],
        DATASET_ORACLE: [row.dataset_oracle for row in growing],
        INSTANCE_ORACLE: [row.instance_oracle for row in growing],
    }
    outside = {
        ROUTED: [row.router_elsewhere for row in growing],
        BASE: [row.base_elsewhere for row in growing],
    }
    steps = [str(len(row.experts)) for row in growing]
    plots = [
        Lines(title, steps, "experts", {name: _hundredfold(values) for name, values in series.items()})
        for title, series in (("Sets whose expert is there", inside), ("All other sets", outside))
        if any(value is not None for values in series.values() for value in values)
    ]
    return Section(
        "A growing number of experts",
        "nDCG@10 x 100. The router is fitted anew with each expert. Means are over the sets whose expert is "
        "among them, and over the sets elsewhere: both change as experts are added.",
        ["experts, added in turn", "router", DATASET_ORACLE, INSTANCE_ORACLE, "router elsewhere",
         "base elsewhere"],
        [
            [f"{step}: + {row.experts[-1]}", percent(row.router), percent(row.dataset_oracle),
             percent(row.instance_oracle), percent(row.router_elsewhere), percent(row.base_elsewhere)]
            for step, row in zip(steps, growing, strict=True)
        ],
        plots,
    )  # fmt: skip


def _presence_section(presence: Sequence[Presence]) -> Section:
    return Section(
        "With and without the own expert",
        "nDCG@10 x 100: what an expert is worth to its own domain. Without it, the router is fitted as if it "
        "and its queries had never been there.",
        ["test set", BASE, "router without its expert", "router with it"],
        [[one.dataset, percent(one.base), percent(one.without), percent(one.with_it)] for one in presence],
    )


def _centroids_section(centroids: Sequence[Centroids]) -> Section:
    return Section(
        "Centroids of the pilot library",
        "nDCG@10 x 100 of the paper's router with so many k-means centroids a group of queries; it has one.",
        ["centroids per group", "in domain", "zero-shot"],
        [[str(one.clusters), percent(one.in_domain), percent(one.zero_shot)] for one in centroids],
    )


def _projections_section(projections: Sequence[Projection]) -> Section:
    titles = [
        "base embedding" if one.features == PAPERS.features else f"routing features, layer {one.features}"
        for one in projections
    ]
    return Section(
        "Queries in two dimensions",
        f"Up to {_PROJECTED} test queries of each set, by t-SNE: a set that lies apart is easy to route to; "
        "distances between far groups mean nothing. The table has the share, in percent, of these queries "
        "whose nearest other one, in all dimensions, is of the same set.",
        ["test set", "queries", *titles],
        [
            [name, str(len(points)), *(percent(one.among_their_own[name]) for one in projections)]
            for name, points in projections[0].points.items()
        ],
        [Scatter(title, one.points) for title, one in zip(titles, projections, strict=True)],
    )


def _hundredfold(values: Iterable[float | None]) -> list[float | None]:
    return [None if value is None else 100 * value for value in values]
