"""The corpus artifact: a collection's documents and their embeddings by the base encoder, made once.

No expert ever encodes a document; all of them search the same vectors.
"""

from __future__ import annotations

from routerretriever.corpus.artifact import Corpus, corpus_key, open_corpus
from routerretriever.corpus.build import build_corpora
from routerretriever.corpus.index import SearchIndex, open_index

__all__ = ["Corpus", "SearchIndex", "build_corpora", "corpus_key", "open_corpus", "open_index"]
