"""The classes for LangChain, LlamaIndex and Haystack; skipped where a package is not there."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest

FILTER = {"field": "year", "gte": 2001}


class Recording:
    """Answers every search alike, and keeps what it was asked and on which thread."""

    def __init__(self):
        self.asked, self.threads = [], []

    def search(self, query, collection, top_k, **options):
        self.asked.append((query, collection, top_k, options))
        self.threads.append(threading.current_thread())
        hit = SimpleNamespace(id="d1", text="A fig.", title="Figs", score=0.5, metadata={"year": 2002})
        plain = SimpleNamespace(id="d2", text="A pear.", title="", score=0.25, metadata={"title": "Pears"})
        return SimpleNamespace(expert="fruit", results=[hit, plain])

    def embed(self, texts, model):
        self.threads.append(threading.current_thread())
        return np.ones((len(texts), 2), np.float32)


ASKED = [("fig", "fruit", 2, {"filter": FILTER, "mode": "dense"})]


def test_langchain_passes_filter_and_mode_on_and_metadata_back():
    from routerretriever.client.langchain import RoutedRetriever

    client = Recording()
    retriever = RoutedRetriever(client=client, collection="fruit", top_k=2, filter=FILTER, mode="dense")
    found = retriever.invoke("fig")
    assert client.asked == ASKED
    told = {"year": 2002, "id": "d1", "title": "Figs", "score": 0.5, "expert": "fruit"}
    assert [one.metadata for one in found] == [
        told,
        {"id": "d2", "title": "Pears", "score": 0.25, "expert": "fruit"},
    ]
    asyncio.run(retriever.ainvoke("fig"))
    assert client.threads[-1] is not threading.main_thread()


def test_haystack_passes_filter_and_mode_on_and_metadata_back():
    pytest.importorskip("haystack")
    from routerretriever.client.haystack import RoutedRetriever

    client = Recording()
    retriever = RoutedRetriever(client, "fruit", 2, FILTER, "dense")
    found = retriever.run("fig")["documents"]
    assert client.asked == ASKED
    assert found[0].meta == {"year": 2002, "title": "Figs", "expert": "fruit"}
    other = {"field": "year", "lt": 1990}
    retriever.run("fig", filter=other)
    assert client.asked[-1][-1] == {"filter": other, "mode": "dense"}


def test_llama_index_passes_filter_and_mode_on_and_metadata_back():
    pytest.importorskip("llama_index.core")
    from routerretriever.client.llama_index import RoutedRetriever

    client = Recording()
    found = RoutedRetriever(client, "fruit", 2, FILTER, "dense").retrieve("fig")
    assert client.asked == ASKED
    assert found[0].node.metadata == {"year": 2002, "title": "Figs", "expert": "fruit"}


def test_llama_index_waits_for_the_service_on_another_thread():
    pytest.importorskip("llama_index.core")
    from routerretriever.client.llama_index import RoutedEmbedding, RoutedRetriever

    client = Recording()

    async def use():
        embedding = RoutedEmbedding(client=client)
        await embedding.aget_query_embedding("fig")
        await embedding.aget_text_embedding("fig")
        await embedding.aget_text_embedding_batch(["fig"] * 3)
        await RoutedRetriever(client).aretrieve("fig")

    asyncio.run(use())
    assert len(client.threads) == 4
    assert threading.main_thread() not in client.threads
