"""The corpus artifact: a collection's documents and their embeddings by the base encoder, made once.

No expert ever encodes a document; all of them search the same vectors.
"""

from __future__ import annotations

from routerretriever.corpus.artifact import Corpus, corpus_key, open_corpus
from routerretriever.corpus.build import build_corpora
from routerretriever.corpus.changes import (
    Found,
    LiveCollection,
    changes_key,
    fold,
    last_change,
    write_change,
    write_deletion,
)
from routerretriever.corpus.index import SearchIndex, open_index

__all__ = [
    "Corpus", "Found", "LiveCollection", "SearchIndex", "build_corpora", "changes_key", "corpus_key",
    "fold", "last_change", "open_corpus", "open_index", "write_change", "write_deletion",
]  # fmt: skip
