"""Rows of whole documents, cut or not, and of those that are queries themselves."""

from __future__ import annotations

from itertools import takewhile

import numpy as np

from routerretriever.corpus.artifact import Corpus
from routerretriever.datasets.judgements import Judgements
from routerretriever.datasets.passages import passage_ids
from routerretriever.types import Rows


def document_rows(document: str, passages: bool, corpus: Corpus) -> Rows:
    """Rows of a document, or of its passages; none if the corpus lacks it."""
    ids = passage_ids(document, len(corpus)) if passages else [document]
    return np.array([corpus.rows[one] for one in takewhile(corpus.rows.__contains__, ids)], dtype=np.int64)


def own_rows(query_id: str, judgements: Judgements, corpus: Corpus) -> Rows:
    """Rows of the document of a query's own id, if its results leave that out; see ``SearchIndex.run``."""
    if query_id in judgements.own_kept:
        return np.array([], dtype=np.int64)
    return document_rows(query_id, judgements.passages, corpus)
