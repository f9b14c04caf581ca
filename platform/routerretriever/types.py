"""Names and shapes that every room shares."""

from __future__ import annotations

BASE = "base"
"""Name under which the bare base encoder appears beside the experts."""


ROUTED_MODEL = "router"
"""In the service's API, the model that stands for routing."""


DOCUMENT_MODEL = "documents"
"""In the service's API, the model that embeds documents: the base, with its prompt and length for them."""
