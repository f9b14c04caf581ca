"""Which queries are held out: pure functions of the query ids.

A query's place depends on the hash of its id and on nothing else, so it is the same on every machine and
in every file order, and a query that is added later moves few others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from routerretriever.errors import BadInput


def hold_out(
    query_ids: Iterable[str], fraction: float, salt: str, groups: Mapping[str, str] | None = None
) -> set[str]:
    """Choose the queries to hold out: those with the smallest hashes.

    Args:
        query_ids: the queries to choose from.
        fraction: share to hold out, above 0 and below 1. Exactly ``round(n * fraction)`` ids are chosen,
            but at least one, and at least one is left.
        salt: what it is for; choices under different salts are independent.
        groups: query -> its group. Queries of one group stay together, so a few more may be chosen. A group
            of more than are to be chosen is left, unless all groups are: then the smallest is chosen.
            Without groups of two or more the choice is the same as without this argument.

    Raises:
        BadInput: the fraction is out of range, or there are fewer than two ids, or two groups.
    """
    ids = set(query_ids)
    if not 0 < fraction < 1:
        raise BadInput(f"fraction: {fraction} is not above 0 and below 1")
    if len(ids) < 2:
        raise BadInput(f"query_ids: holding some out and keeping some needs 2 or more, found {len(ids)}")
    members: dict[str, list[str]] = {}
    for query in first_by_hash(ids, len(ids), salt):  # a group's place is that of its first query
        members.setdefault(groups[query] if groups else query, []).append(query)
    if len(members) < 2:
        raise BadInput(
            f"query_ids: all {len(ids)} ask the same, or about one document, so none can be held out; add "
            "others"
        )
    size = min(max(round(len(ids) * fraction), 1), len(ids) - 1)
    # The largest group has the smallest hash more often than not, and would leave little to keep.
    fitting = [queries for queries in members.values() if len(queries) <= size]
    if not fitting:
        smallest = min(members.values(), key=len)
        return set(smallest)
    held: set[str] = set()
    for queries in fitting[: len(members) - 1]:
        if len(held) >= size:
            break
        held.update(queries)
    return held


def first_by_hash(query_ids: Iterable[str], count: int, salt: str) -> list[str]:
    """The queries with the smallest hashes; of two counts, the larger choice holds the smaller one."""
    return sorted(query_ids, key=lambda query: (_hash(query, salt), query))[:count]


def split_train(
    query_ids: Iterable[str], fraction: float, groups: Mapping[str, str] | None = None
) -> tuple[list[str], list[str]]:
    """Divide train queries into those that experts train on and those that none of them sees.

    Args:
        query_ids: train queries; both lists keep their order.
        fraction: share to hold out; 0 holds nothing out.
        groups: query -> its group, which stays together; see ``hold_out``.

    Returns:
        The kept and the held-out queries.

    Raises:
        BadInput: the fraction is not in [0, 1), or above 0 with fewer than two ids, or groups.
    """
    ids = list(query_ids)
    held = hold_out(ids, fraction, "held_out", groups) if fraction else set()
    return [query for query in ids if query not in held], [query for query in ids if query in held]


def _hash(query_id: str, salt: str) -> bytes:
    return hashlib.sha256(f"{salt}\0{query_id}".encode()).digest()
