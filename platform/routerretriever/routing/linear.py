"""Routers that score by one matrix product, and the ways to fit the matrix.

``posterior``, ``centroids``: which domain does the query come from? ``utility``: how well will each expert
do? ``expert_classifier`` and ``classification_head`` are the paper's baselines (arXiv 2409.02685, A.1).
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from routerretriever.errors import BadInput
from routerretriever.routing.data import RoutingData
from routerretriever.routing.pilot_library import best_expert
from routerretriever.routing.protocol import MixingRouter, State
from routerretriever.routing.settings import RoutingSettings
from routerretriever.types import Vectors

_STRENGTH = 10.0
"""Inverse of the regularisation of every logistic regression here."""


class LinearRouter(MixingRouter):
    """Scores are features [B, d] times coefficients [d, T] plus a bias [T]."""

    kind = "linear"

    def __init__(
        self, experts: list[str], coef_Td: Vectors, bias_T: Vectors, mixing: str, temperature: float
    ) -> None:
        super().__init__(experts, mixing, temperature)
        self._coef_Td = coef_Td
        self._bias_T = bias_T

    def scores(self, features_Bd: Vectors) -> NDArray[np.float64]:
        """One matrix product."""
        return (features_Bd @ self._coef_Td.T + self._bias_T).astype(np.float64)

    def state(self) -> State:
        """Settings and arrays."""
        settings = {"mixing": self.mixing, "temperature": self.temperature}
        return settings, {"coef_Td": self._coef_Td, "bias_T": self._bias_T}


def fit_posterior(data: RoutingData, settings: RoutingSettings) -> LinearRouter:
    """Multinomial logistic regression on the query's domain; scores are log-probabilities up to a constant.

    Raises:
        BadInput: fewer than two domains have an expert.
    """
    datasets = _own_datasets(data, settings)
    features, _, labels = data.stacked(datasets)
    # Balanced: a domain is not likelier because more of its queries were collected.
    return _classifier(data, settings, features, _columns(data, datasets)[labels], balanced=True)


def fit_centroids(data: RoutingData, settings: RoutingSettings) -> LinearRouter:
    """Similarity to the mean query of each domain.

    Raises:
        BadInput: fewer than two domains have an expert.
    """
    datasets = _own_datasets(data, settings)
    means = np.stack([data.features[name].mean(axis=0) for name in datasets])
    return _router(data, settings, _columns(data, datasets), means, np.zeros(len(datasets)))


def fit_utility(data: RoutingData, settings: RoutingSettings) -> LinearRouter:
    """Ridge regression of every expert's nDCG@10 above the query's mean; each dataset weighs the same."""
    from sklearn.linear_model import Ridge

    features, utilities, labels = data.stacked(list(data.features))
    gains = utilities - utilities.mean(axis=1, keepdims=True)
    weight = (1 / np.bincount(labels))[labels]
    fitted = Ridge(alpha=1.0).fit(features, gains, sample_weight=weight / weight.mean())
    return _router(data, settings, np.arange(len(data.experts)), fitted.coef_, fitted.intercept_)


def fit_expert_classifier(data: RoutingData, settings: RoutingSettings) -> LinearRouter:
    """ExpertClassifierRouter: one binary classifier per expert, classes balanced; the likeliest wins.

    Trained on the queries with a single best expert.

    Raises:
        BadInput: no expert is the single best of any query.
    """
    from sklearn.linear_model import LogisticRegression

    features, labels = _single_best(data)
    random = np.random.default_rng(settings.seed)
    columns, coefs, biases = [], [], []
    for column in np.unique(labels):
        positive, negative = np.flatnonzero(labels == column), np.flatnonzero(labels != column)
        size = min(len(positive), len(negative))
        if size == 0:
            continue
        rows = np.concatenate([random.permutation(positive)[:size], random.permutation(negative)[:size]])
        fitted = LogisticRegression(C=_STRENGTH, max_iter=2000).fit(features[rows], labels[rows] == column)
        columns.append(column)
        coefs.append(fitted.coef_[0])
        biases.append(fitted.intercept_[0])
    if len(columns) < 2:
        raise BadInput("routing.router 'expert_classifier': one expert alone is best wherever one is best")
    return _router(data, settings, np.array(columns), np.stack(coefs), np.array(biases))


def fit_classification_head(data: RoutingData, settings: RoutingSettings) -> LinearRouter:
    """ClassificationHeadRouter: one classifier over experts, queries per label equalised to the smallest.

    Raises:
        BadInput: fewer than two experts are the single best of any query.
    """
    features, labels = _single_best(data)
    random = np.random.default_rng(settings.seed)
    found, counts = np.unique(labels, return_counts=True)
    if len(found) < 2:
        raise BadInput("routing.router 'classification_head': one expert alone is best wherever one is best")
    rows = np.concatenate(
        [random.permutation(np.flatnonzero(labels == column))[: counts.min()] for column in found]
    )
    return _classifier(data, settings, features[rows], labels[rows], balanced=False)


def _classifier(
    data: RoutingData, settings: RoutingSettings, features: Vectors, labels: NDArray[np.int64], balanced: bool
) -> LinearRouter:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # Routing needs the order of the scores, not the last digit of the optimum.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(
            C=_STRENGTH, max_iter=500, class_weight="balanced" if balanced else None
        ).fit(features, labels)
    coef, bias = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:  # scikit-learn keeps one row for two classes
        coef, bias = np.concatenate([-coef, coef]) / 2, np.concatenate([-bias, bias]) / 2
    return _router(data, settings, fitted.classes_, coef, bias)


def _router(
    data: RoutingData,
    settings: RoutingSettings,
    columns: NDArray[np.int64],
    coef: NDArray[np.float64],
    bias: NDArray[np.float64],
) -> LinearRouter:
    """Rows of the matrix put at their experts' places; an expert without a row is never chosen."""
    coef_Td = np.zeros((len(data.experts), coef.shape[1]), dtype=np.float32)
    bias_T = np.full(len(data.experts), -np.inf, dtype=np.float32)
    coef_Td[columns], bias_T[columns] = coef, bias
    return LinearRouter(data.experts, coef_Td, bias_T, settings.mixing, settings.temperature)


def _own_datasets(data: RoutingData, settings: RoutingSettings) -> list[str]:
    if len(data.own_datasets) < 2:
        raise BadInput(f"routing.router '{settings.router}' needs two or more domains with experts")
    return data.own_datasets


def _columns(data: RoutingData, datasets: list[str]) -> NDArray[np.int64]:
    return np.array([data.experts.index(name) for name in datasets])


def _single_best(data: RoutingData) -> tuple[Vectors, NDArray[np.int64]]:
    features, utilities, _ = data.stacked(list(data.features))
    best = best_expert(utilities, None, "drop")
    chosen = best.any(axis=1)
    return features[chosen], best[chosen].argmax(axis=1)
