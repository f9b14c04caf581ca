"""What every room shares: names, shapes, and what a text is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

BASE = "base"
"""Name under which the bare base encoder appears beside the experts."""


ROUTED_MODEL = "router"
"""In the service's API, the model that stands for routing."""


DOCUMENT_MODEL = "documents"
"""In the service's API, the model that embeds documents: the base, with its prompt and length for them."""

Vectors = NDArray[np.float32]
"""Rows of float32 numbers, as vectors [B, d] or weights [B, T]."""

Scores = NDArray[np.float32]
"""How near documents are to queries, [C] or [B, C]."""

Rows = NDArray[np.int64]
"""Places of documents in their corpus."""

Values = NDArray[np.float64]
"""Measures and other figures, as nDCG@10 of each query [Q]."""

Mode = Literal["hybrid", "dense", "lexical"]
"""What a search compares: words and vectors, vectors alone, words alone."""

Fusion = Literal["convex", "rrf"]
"""How words and vectors become one score: a weighted sum of both scores, or reciprocal ranks."""

Language = Literal[
    "none", "code", "arabic", "armenian", "basque", "catalan", "danish", "dutch", "english", "finnish",
    "french", "german", "greek", "hindi", "hungarian", "indonesian", "irish", "italian", "lithuanian",
    "nepali", "norwegian", "portuguese", "romanian", "russian", "serbian", "spanish", "swedish", "tamil",
    "turkish", "yiddish",
]  # fmt: skip
"""Whose words a lexical index can stem."""


def is_encodable(text: str) -> bool:
    """Whether a text has no lone half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_list(texts: Iterable[str]) -> list[str]:
    """Texts in a list. A text that stands alone is one of them, not its letters."""
    return [texts] if isinstance(texts, str) else list(texts)
