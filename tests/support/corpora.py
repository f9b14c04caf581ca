"""Tiny corpora of random words and vectors, and what searches of them must find, by plain loops."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pyarrow.parquet as parquet
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.corpus.artifact import documents_file, documents_table, embeddings_file
from routerretriever.datasets.collection import Document
from routerretriever.index.settings import LexicalSettings

CORPUS, CHANGES = "corpora/tiny", "changes/tiny"
WORDS = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"]
PLAIN = LexicalSettings(language="none")


def make_document(seed, number):
    random = np.random.default_rng((seed, number))
    text = " ".join(random.choice(WORDS, size=random.integers(0, 9)))
    metadata = {"year": int(random.integers(2000, 2005)), "tags": list(random.choice(WORDS[:3], size=2))}
    vector = random.normal(size=4).astype(np.float32)
    return Document(f"d{number}", "", text, metadata if number % 3 else None), vector / np.linalg.norm(vector)


def make_corpus(folder, shards=(4, 5, 3), key=CORPUS, seed=0):
    """A corpus artifact; gives the store, and the documents with their vectors by id."""
    numbers = iter(range(sum(shards)))
    rows = [[make_document(seed, next(numbers)) for _ in range(size)] for size in shards]
    store = write_corpus(folder, rows, key)
    return store, {document.id: (document, vector) for shard in rows for document, vector in shard}


def write_corpus(folder, shards, key=CORPUS):
    """A corpus artifact of documents with their vectors, by shard; gives the store."""
    store = ArtifactStore.open(str(folder))
    for shard, rows in enumerate(shards):
        table = documents_table([document for document, _ in rows])
        store.put(key, documents_file(shard), lambda path, table=table: parquet.write_table(table, path))
        vectors = np.stack([vector for _, vector in rows])
        store.put(key, embeddings_file(shard), lambda path, vectors=vectors: save(path, vectors))
    store.commit(key, {"shards": [len(rows) for rows in shards], "dimension": vectors.shape[1]})
    return store


def save(path, vectors):
    with path.open("wb") as file:
        np.save(file, vectors)


def plain_bm25(held, text, k1=0.9, b=0.4):
    """BM25 as the papers write it, by loops."""
    words = {key: document.content.split() for key, (document, _) in held.items()}
    mean = sum(map(len, words.values())) / max(len(words), 1)
    scores = dict.fromkeys(held, 0.0)
    for word, repeated in Counter(text.split()).items():
        df = sum(word in each for each in words.values())
        idf = math.log(1 + (len(held) - df + 0.5) / (df + 0.5))
        for key, each in words.items():
            if tf := each.count(word):
                scores[key] += repeated * idf * tf / (tf + k1 * (1 - b + b * len(each) / mean))
    return scores


def passes(document):
    """The filter of the test, in plain Python."""
    metadata = document.metadata or {}
    return not (metadata.get("year", 0) >= 2003) or "ant" in metadata.get("tags", [])


FILTER = {"or": [{"not": {"field": "year", "gte": 2003}}, {"field": "tags", "equals": "ant"}]}


def expected_scores(collections, text, query, weight, filtered, floor=-1.0):
    """BM25, cosines and fused scores by collection and document id.

    Each collection counts its own words; the maxima are those of all documents that may be found.
    """
    bm25, cosines, may = {}, {}, []
    for name, held in collections.items():
        words = plain_bm25(held, text)
        for key, (document, vector) in held.items():
            bm25[name, key], cosines[name, key] = words[key], float(vector @ query)
            if not filtered or passes(document):
                may.append((name, key))
    most = max([bm25[key] for key in may], default=0)
    nearest = max([cosines[key] for key in may], default=0)
    least = floor if nearest > floor else -1.0
    fused = {
        key: weight * (bm25[key] / most if most else 0)
        + (1 - weight) * (cosines[key] - least) / (nearest - least)
        for key in may
    }
    return bm25, cosines, fused
