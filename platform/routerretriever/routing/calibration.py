"""Choosing the out-of-domain fallback by leaving domains out, one at a time.

A domain whose expert and queries are taken away stands for domains that nobody has foreseen: its queries,
routed by what is left, show what a fallback would have saved. What it costs is seen on the domains that stay,
by queries that their experts have not learned from: on others an expert looks better than it is.
Queries are answered at a few blends of router and fallback; what lies between is interpolated, so that any
number of settings can be compared without another search.

Shapes: C candidates, D domains, F blends, Q queries, T experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from routerretriever.errors import BadInput
from routerretriever.routing.data import Answered, RoutingData
from routerretriever.routing.fallback import (
    ReferenceQueries,
    base_share,
    blend,
    fallback_weights,
    familiarity_of,
    spread,
    with_answer,
    worth_answering,
)
from routerretriever.routing.familiarity import Likeness
from routerretriever.routing.protocol import Router, worth_running
from routerretriever.routing.settings import FallbackSettings, RoutingSettings
from routerretriever.runtime.progress import log, track
from routerretriever.types import Rows, Values, Vectors

LEFT_OUT_LIMIT = 0.003
"""nDCG@10 that a left-out domain may lose to the base."""
IN_DOMAIN_LIMIT = 0.002
"""nDCG@10 that the domains, on average, may lose to routing without a fallback."""
FEWEST_DOMAINS = 3
"""With fewer, a domain that is left out leaves nothing to route by."""
MOST_EXPERTS = 32
"""With more, unfamiliar queries are not left to all experts: each of these queries would run them all."""
_ANSWERS: tuple[Literal["base", "both", "uniform"], ...] = ("base", "both", "uniform")
_TOLD = {
    "base": "the base", "both": "the base and all experts alike, half each", "uniform": "all experts alike",
}  # fmt: skip
CANDIDATES = tuple(
    FallbackSettings(answer=answer, unfamiliar_quantile=low, familiar_quantile=high, slack=slack)
    for answer in _ANSWERS
    for low, high in ((0.01, 0.05), (0.01, 0.2), (0.01, 0.5), (0.05, 0.5), (0.2, 0.5), (0.2, 0.8), (0.5, 0.9))
    for slack in (0.0, 1.0)
)
CALIBRATION_VERSION = 5
"""Raise it when what is chosen changes."""
_BLENDS = (0.0, 0.25, 0.5, 0.75, 1.0)


def choose_fallback(
    data: RoutingData, settings: RoutingSettings, inner: Router, fit_others: Callable[[RoutingData], Router]
) -> FallbackSettings:
    """The fallback that loses least on domains left out and on those that are known, within the limits.

    With fewer than three domains nothing can be left out. Of the fallbacks within the limit for known domains
    it is then the one that leaves most to the base; of the background's queries, if there are any.

    Args:
        data: scored queries, with the means to measure mixtures.
        settings: of the router.
        inner: the router over all experts, without a fallback.
        fit_others: fits the same router on less data.
    """
    assert settings.fallback is not None
    known = ReferenceQueries.of(data, settings, settings.fallback)
    names = data.own_datasets
    in_domain = [
        _known(data, settings, inner, known, name) for name in track(names, "fallback: known", len(names))
    ]
    left_out = []
    if len(names) >= FEWEST_DOMAINS and settings.router != "fixed":
        for name in track(names, "fallback: left out", len(names)):
            try:
                left_out.append(_left_out(data, settings, fit_others, name))
            except BadInput as error:
                log.warning("routing.fallback: %s could not be left out: %s", name, error)
    # Nothing but domains left out can say that experts help queries of others.
    all_may_answer = left_out and len(names) <= MOST_EXPERTS
    candidates = [one for one in CANDIDATES if all_may_answer or one.answer == "base"]
    in_domain_CD = _losses(candidates, in_domain, lambda domain: domain.routed_Q)
    left_out_CD = _losses(candidates, left_out, lambda domain: domain.base_Q)
    compared = [(domain.like, domain.known) for domain in left_out or in_domain]
    if known.foreign is not None and not left_out:
        compared = [(known.foreign, known)]
    base_C = np.array([np.mean([_base_share(*each, one) for each in compared]) for one in candidates])
    best = choose(in_domain_CD, left_out_CD, base_C)
    _tell(candidates[best], in_domain_CD[best], left_out_CD[best])
    kept = settings.fallback.model_dump(include={"familiarity", "neighbours"})
    return candidates[best].model_copy(update=kept)


def choose(in_domain_CD: Values, left_out_CD: Values, base_C: Values) -> int:
    """The candidate to take.

    Of those within both limits the one with the least loss, left-out domains counting as much as known ones.
    If none is within both, known domains come first, and the worst left-out domain next. Of two alike, it is
    the one that leaves more to the base.

    Args:
        in_domain_CD: loss on each known domain to routing without a fallback.
        left_out_CD: loss on each left-out domain to the base; without any, the share of the base decides.
        base_C: share of the base.
    """
    in_domain_C = in_domain_CD.mean(axis=1)
    kept = in_domain_C <= max(IN_DOMAIN_LIMIT, float(in_domain_C.min())) + 1e-12
    if not left_out_CD.shape[1]:
        return int(np.where(kept, base_C, -np.inf).argmax())
    worst_C = left_out_CD.max(axis=1)
    loss_C = in_domain_C + left_out_CD.mean(axis=1)
    within = (in_domain_C <= IN_DOMAIN_LIMIT) & (worst_C <= LEFT_OUT_LIMIT)
    if within.any():
        kept = within
    else:
        loss_C = worst_C
    best = loss_C[kept].min()
    return int(np.where(kept & (loss_C <= best + 1e-9), base_C, -np.inf).argmax())


@dataclass(frozen=True)
class _Domain:
    """How queries of one domain are answered at every blend, and how familiar they are."""

    ndcg: dict[str, Values]
    """By the fallback's answer: [F, Q]."""
    like: Likeness
    known: ReferenceQueries

    @property
    def routed_Q(self) -> Values:
        """Without a fallback."""
        return self.ndcg["base"][-1]

    @property
    def base_Q(self) -> Values:
        """By the base alone."""
        return self.ndcg["base"][0]

    def familiarity(self, fallback: FallbackSettings) -> Vectors:
        """How familiar the queries are to a fallback [Q]."""
        return familiarity_of(self.like, *self.known.bounds(fallback))

    def answered(self, fallback: FallbackSettings) -> Values:
        """nDCG@10 of the queries with a fallback [Q]."""
        return interpolate(self.ndcg[fallback.answer], self.familiarity(fallback))


def interpolate(ndcg_FQ: Values, familiarity_Q: Vectors) -> Values:
    """Values at a blend for each query; F values are known, evenly spaced from 0 to 1."""
    place_Q = familiarity_Q * (len(ndcg_FQ) - 1)
    below_Q = np.minimum(place_Q.astype(np.int64), len(ndcg_FQ) - 2)
    part_Q, queries = place_Q - below_Q, np.arange(len(place_Q))
    return np.asarray((1 - part_Q) * ndcg_FQ[below_Q, queries] + part_Q * ndcg_FQ[below_Q + 1, queries])


def _known(
    data: RoutingData, settings: RoutingSettings, inner: Router, known: ReferenceQueries, name: str
) -> _Domain:
    """A domain as it is."""
    if data.held_out is not None and name in data.held_out.features:
        rows = spread(np.arange(len(data.held_out.features[name])))
        features_Bd, answered = data.held_out.features[name][rows], data.held_out.answered
        like = known.measure.of(features_Bd)
    else:
        rows, answered = _some_rows(data, settings, name), _answered(data)
        features_Bd, like = data.features[name][rows], known.own[known.datasets.index(name)]
    ndcg = _blended(features_Bd, partial(answered, name, rows), settings, inner)
    return _Domain(ndcg, like, known)


def _left_out(
    data: RoutingData, settings: RoutingSettings, fit_others: Callable[[RoutingData], Router], name: str
) -> _Domain:
    """A domain as if its expert and queries had never been there; no other expert has learned from them."""
    assert settings.fallback is not None
    others = data.only([other for other in data.own_datasets if other != name])
    known = ReferenceQueries.of(others, settings, settings.fallback)
    rows = _some_rows(data, settings, name)
    features_Bd = data.features[name][rows]
    ndcg = _blended(features_Bd, partial(_answered(data), name, rows), settings, fit_others(others))
    return _Domain(ndcg, known.measure.of(features_Bd), known)


def _some_rows(data: RoutingData, settings: RoutingSettings, name: str) -> Rows:
    """Rows in the whole data of the reference queries that are compared with the others."""
    return spread(data.sample_rows(settings.references, settings.seed)[name])


def _answered(data: RoutingData) -> Answered:
    assert data.answered is not None, "mixtures cannot be measured on this data"
    return data.answered


def _blended(
    features_Bd: Vectors,
    answered: Callable[[list[str], Vectors], Values],
    settings: RoutingSettings,
    inner: Router,
) -> dict[str, Values]:
    """nDCG@10 [F, B] at every blend of a router and each answer."""
    own_BT = inner.mixture(features_Bd)
    routed_B = answered(inner.experts, worth_running(own_BT, settings.min_share))
    made: dict[str, Values] = {}
    for answer in _ANSWERS:
        experts = with_answer(inner.experts, answer)
        fallback_T = fallback_weights(experts, answer)
        values = []
        for share in _BLENDS[:-1]:
            mixed_BT = blend(own_BT, fallback_T, np.full(len(features_Bd), share, dtype=np.float32))
            weights_BT = worth_answering(mixed_BT, settings.min_share, experts, answer)
            values.append(answered(experts, weights_BT))
        made[answer] = np.stack([*values, routed_B])
    return made


def _losses(
    candidates: Sequence[FallbackSettings],
    domains: Sequence[_Domain],
    reference: Callable[[_Domain], Values],
) -> Values:
    """Mean loss of every candidate on every domain [C, D]."""
    losses = [
        [float((reference(domain) - domain.answered(one)).mean()) for domain in domains] for one in candidates
    ]
    return np.array(losses).reshape(len(candidates), len(domains))


def _base_share(like: Likeness, known: ReferenceQueries, fallback: FallbackSettings) -> float:
    """The base's mean share; that of all experts alike counts for nothing."""
    familiarity_Q = familiarity_of(like, *known.bounds(fallback))
    return base_share(fallback.answer) * float((1 - familiarity_Q).mean())


def _tell(chosen: FallbackSettings, in_domain_D: Values, left_out_D: Values) -> None:
    told = f"known domains {_change(float(in_domain_D.mean()))} by it"
    if len(left_out_D):
        told += f"; the worst domain, left out in turn, {_change(float(left_out_D.max()))} against the base"
    log.info(
        "queries unlike those of all domains go to %s (nDCG@10 x 100 on dev: %s)", _TOLD[chosen.answer], told
    )
    log.debug(
        "routing.fallback: unfamiliar below quantile %g less %g times the distance to quantile %g",
        chosen.unfamiliar_quantile, chosen.slack, chosen.familiar_quantile,
    )  # fmt: skip


def _change(loss: float) -> str:
    return f"{'lose' if loss > 0 else 'gain'} {abs(100 * loss):.2f}"
