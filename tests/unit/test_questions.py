"""A service whose storage is slow, or away."""

import asyncio
import threading
from functools import partial

import pytest
from routerretriever.artifacts.store import ArtifactStore
from routerretriever.datasets.collection import Document
from routerretriever.errors import StorageError
from routerretriever.index.changes import write_change
from routerretriever.index.live import LiveCollection, Wanted
from routerretriever.index.settings import IndexSettings
from routerretriever.serving.deployments import index as deployed
from routerretriever.serving.deployments.index import Index
from routerretriever.serving.ports import CollectionRef
from routerretriever.serving.questions import Questions
from support.corpora import CHANGES, CORPUS, make_corpus
from support.waiting import wait_until


def test_a_question_that_storage_does_not_answer_holds_nobody_up(caplog):
    asked, answer = [], threading.Event()

    def question():
        asked.append(1)
        assert answer.wait(30)
        return True

    questions = Questions(patience=0.01)
    assert not questions.ask("a", question)
    assert not questions.ask("a", question)
    assert questions.ask("b", lambda: True)
    answer.set()
    wait_until(lambda: questions.ask("a", question))
    assert len(asked) == 1
    assert caplog.text.count("storage does not answer") == 1


def test_a_question_that_fails_is_answered_by_no_and_said(caplog):
    def question():
        raise StorageError("s3://bucket: no such host")

    assert not Questions().ask("a", question)
    assert "no such host" in caplog.text
    with pytest.raises(ZeroDivisionError):
        Questions().ask("a", lambda: bool(1 / 0))


def test_searches_go_on_while_storage_is_away_and_find_what_changed_when_it_is_back(tmp_path, monkeypatch):
    store, held = make_corpus(tmp_path)
    monkeypatch.setattr(deployed, "Questions", partial(Questions, patience=0.01))
    index = Index.func_or_class(IndexSettings(), store, 0.0, 0, 1)
    collection = CollectionRef(CORPUS, CHANGES)
    vector = held["d3"][1]

    def found():
        hits = asyncio.run(index.find(collection, "dense", [Wanted("", vector, 3)]))[0]
        return [hit.document.id for hit in hits]

    before = found()
    back, names = threading.Event(), ArtifactStore.names

    def late(*asked):
        assert back.wait(30)
        return names(*asked)

    monkeypatch.setattr(ArtifactStore, "names", late)
    write_change(store, CHANGES, 1, [Document("new", "", "a text")], vector[None])
    assert found() == before
    back.set()
    wait_until(lambda: found() != before)
    assert "new" in found()


def test_a_collection_in_use_is_kept_up_to_date_beside_its_searches(tmp_path, monkeypatch):
    store, held = make_corpus(tmp_path)
    asked_in, has_news = [], LiveCollection.has_news

    def noted(live):
        asked_in.append(threading.current_thread().name)
        return has_news(live)

    monkeypatch.setattr(LiveCollection, "has_news", noted)
    collection = CollectionRef(CORPUS, CHANGES)

    async def main():
        index = Index.func_or_class(IndexSettings(), store, 0.05, 0, 1)
        await index.find(collection, "dense", [Wanted("", held["d3"][1], 3)])
        write_change(store, CHANGES, 1, [Document("new", "", "a text")], held["d3"][1][None])
        asked_in.clear()
        async with asyncio.timeout(30):
            # No search looks for it: what is asked here is what was kept up to date.
            while index.opened[collection].change == 0:
                await asyncio.sleep(0.01)

    asyncio.run(main())
    assert [name for name in asked_in if name.startswith("asyncio")]  # not the thread that searches wait for
