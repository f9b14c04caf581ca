"""One collection of a recipe."""

from __future__ import annotations

from routerretriever.settings import Settings


class DomainSettings(Settings):
    """One collection: a BEIR folder (relative paths start at ``data_root``) or ``sample:<name>``.

    ``expert: false`` makes the collection evaluation-only (zero-shot): only its test split is used.
    """

    path: str
    """A BEIR folder, or ``sample:<name>``."""
    expert: bool = True
    """Whether an expert is trained for it."""
