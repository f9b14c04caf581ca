"""Choosing the router and its settings, on queries that neither routers nor test sets have seen.

Routers are fitted on the scored queries and measured on dev. Two figures count: dev nDCG@10 of the domains
as they are, and of each domain as if its expert and its queries had never been there, which is what queries
of an unforeseen domain will meet. All are measured as if vectors were mixed; see ``offline``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from rich.table import Table

from routerretriever.errors import BadInput
from routerretriever.routing.settings import FallbackSettings, RoutingSettings
from routerretriever.runtime.progress import figures_table, log, track
from routerretriever.studies.offline import OfflineEvaluator

_SOFT_TEMPERATURES = {
    "posterior": (1.0, 2.0, 4.0),
    "neighbours": (0.02, 0.05, 0.1),
    "utility": (0.02, 0.05, 0.1),
    "centroids": (0.03, 0.05, 0.1),
    "pilots": (0.01, 0.03),
}
_HARD_ONLY = ("dataset", "expert_classifier", "classification_head")
_FALLBACKS = tuple(
    FallbackSettings(answer=answer, familiar_quantile=familiar_quantile, slack=slack)
    for answer in ("uniform", "both", "base")
    for familiar_quantile in (0.05, 0.2, 0.5)
    for slack in (0.0, 1.0)
)
_WITH_FALLBACK = 3
"""How many of the best routers are tried with a fallback."""


@dataclass(frozen=True)
class Trial:
    """One router that was tried: dev nDCG@10 by domain."""

    settings: RoutingSettings
    in_domain: dict[str, float]
    unseen: dict[str, float]
    """Each domain as if its expert and queries had never been there."""
    score: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values; of the settings only those that differ from the defaults."""
        return {
            "score": self.score,
            "settings": {"router": self.settings.router, **self.settings.changed()},
            "in_domain": self.in_domain,
            "unseen": self.unseen,
        }


def tune(
    bench: OfflineEvaluator,
    layers: Sequence[int],
    unseen_share: float,
    merge: Literal["weights", "embeddings"] = "weights",
    seed: int = 0,
) -> list[Trial]:
    """Try routers, features and mixings, then fallbacks on the best of them.

    Args:
        bench: the scored queries, and dev to measure on.
        layers: layers of the base encoder whose input is tried as routing features.
        unseen_share: weight of unseen domains in the score, 0 to 1; the rest is for the domains as they are.
        merge: what the chosen router is to mix; no choice of this function's.
        seed: of the routers that sample.

    Returns:
        All trials, the best first.

    Raises:
        BadInput: the share is out of range.
    """
    if not 0 <= unseen_share <= 1:
        raise BadInput(f"unseen_share: {unseen_share} is not between 0 and 1")
    candidates = list(_without_fallback(layers, {"merge": merge, "seed": seed, "fallback": None}))
    trials = []
    for settings in track(candidates, "routers", len(candidates)):
        try:
            trials.append(_run(bench, settings, unseen_share))
        except BadInput as error:
            log.warning("%s is left out: %s", settings.router, error)
    best = sorted(trials, key=lambda trial: -trial.score)[:_WITH_FALLBACK]
    with_fallback = [
        trial.settings.model_copy(update={"fallback": fallback}) for trial in best for fallback in _FALLBACKS
    ]
    trials += [
        _run(bench, settings, unseen_share)
        for settings in track(with_fallback, "fallbacks", len(with_fallback))
    ]
    # Stable: of two alike, the one that was tried first has the cheaper features and no fallback.
    return sorted(trials, key=lambda trial: -trial.score)


def _without_fallback(layers: Sequence[int], fixed: dict[str, Any]) -> Iterator[RoutingSettings]:
    yield RoutingSettings.model_validate({**fixed, "router": "uniform"})
    for features in (*layers, "embedding"):
        common = {**fixed, "features": features}
        for router, temperatures in _SOFT_TEMPERATURES.items():
            yield RoutingSettings.model_validate({**common, "router": router, "mixing": "hard"})
            for temperature in temperatures:
                soft = {**common, "router": router, "mixing": "soft", "temperature": temperature}
                yield RoutingSettings.model_validate(soft)
        for router in _HARD_ONLY:
            yield RoutingSettings.model_validate({**common, "router": router, "mixing": "hard"})


def _run(bench: OfflineEvaluator, settings: RoutingSettings, unseen_share: float) -> Trial:
    in_domain, unseen = {}, {}
    whole = bench.router(settings, bench.experts)
    for domain in bench.datasets:
        in_domain[domain] = float(bench.ndcg(whole, settings, domain).mean())
        others = [name for name in bench.experts if name != domain]
        if others:
            router = bench.router(settings, others)
            unseen[domain] = float(bench.ndcg(router, settings, domain).mean())
    score = (1 - unseen_share) * _mean(in_domain) + unseen_share * _mean(unseen or in_domain)
    return Trial(settings, in_domain, unseen, score)


def _mean(values: Mapping[str, float]) -> float:
    return float(np.mean(list(values.values())))


def describe(settings: RoutingSettings) -> str:
    """A router in a few words."""
    words = [settings.router, f"features {settings.features}", settings.mixing]
    if settings.mixing == "soft" and settings.router != "uniform":
        words.append(f"temperature {settings.temperature:g}")
    if settings.fallback is not None:
        fallback = settings.fallback
        words += [f"fallback {fallback.answer}", f"familiar from {fallback.familiar_quantile:g}"]
        words.append(f"slack {fallback.slack:g}")
    return ", ".join(words)


def trials_table(trials: Sequence[Trial], rows: int) -> Table:
    """The best trials, for the terminal."""
    table = figures_table("router", "score", "in domain", "unseen", title="dev nDCG@10 x 100")
    for trial in trials[:rows]:
        means = [trial.score, _mean(trial.in_domain), _mean(trial.unseen or trial.in_domain)]
        table.add_row(describe(trial.settings), *(f"{100 * mean:.2f}" for mean in means))
    return table
