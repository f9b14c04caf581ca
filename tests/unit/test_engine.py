"""One bundle at work: passes, the cache, what is counted, and experts in processes of their own."""

import asyncio
from types import SimpleNamespace

import numpy as np
from routerretriever.config.serving import ReplicaSettings
from routerretriever.errors import Overloaded, Unavailable
from routerretriever.serving.access import Access
from routerretriever.serving.deployments.metrics import Metrics
from routerretriever.serving.engine import Engine
from routerretriever.serving.executor import SerialExecutor
from routerretriever.types import BASE, ROUTED_MODEL
from support.metrics import Counted


class HalfBundle:
    """Routes every query half to "a" and half to the base, without an encoder."""

    router = SimpleNamespace(experts=["a", "b", BASE])
    experts = ("a", "b")
    fusion = None

    class encoder:
        dimension = 2

        @staticmethod
        def limit(documents):
            return 12 if documents else 8

        @staticmethod
        def tokenize_queries(texts):
            return [[1] * min(8, len(text)) for text in texts]

        @staticmethod
        def tokenize_documents(texts):
            return [[2] * min(12, len(text)) for text in texts]

        @classmethod
        def are_cut(cls, texts, rows, documents):
            return [len(text) > cls.limit(documents) for text in texts]

        @staticmethod
        def embed_tokens(rows):
            return np.array([[len(row), 9] for row in rows], np.float32)

    def route(self, rows):
        return np.tile(np.array([0.5, 0, 0.5], np.float32), (len(rows), 1))

    def embed(self, rows, weights, experts):
        assert all(token == 1 for row in rows for token in row)  # documents never get here
        return np.array([[len(row), 0] for row in rows], np.float32)


def test_an_engine_tells_once_who_was_asked_by_the_router_and_by_name():
    metrics = Metrics()  # Ray's own refuse what is no plain number
    metrics.expert_weight, metrics.expert_queries = Counted(), Counted()
    entropies = []
    observe = metrics.routing_entropy.observe
    metrics.routing_entropy.observe = lambda bits: (observe(bits), entropies.append(bits))
    engine = Engine(HalfBundle(), SerialExecutor(), None, ReplicaSettings(), metrics)

    async def ask():
        await engine.embed(["one", "two"], ROUTED_MODEL)
        return await engine.embed(["three"], "b")

    (named,) = asyncio.run(ask())
    assert named.weights == {"b": 1.0}
    assert named.tokens == 5
    assert engine.take_routed() == {"a": 1.0, "b": 0.0, BASE: 1.0}
    assert engine.take_routed() == {"a": 0.0, "b": 0.0, BASE: 0.0}
    assert metrics.expert_weight.by_tag == {"a": 1, BASE: 1}
    assert metrics.expert_queries.by_tag == {"a": 2, BASE: 2, "b": 1}
    assert entropies == [1.0, 1.0]


def test_each_stage_of_a_pass_is_timed_by_itself():
    metrics = Metrics()
    metrics.stage_seconds = Counted()
    asyncio.run(engine_of(metrics).embed(["one", "two"], ROUTED_MODEL))
    assert metrics.stage_seconds.by_tag == {"tokenizer": 1, "routing": 1, "experts": 1}


def engine_of(metrics=None, cached_vectors=0):
    return Engine(
        HalfBundle(), SerialExecutor(), None, ReplicaSettings(), metrics or Metrics(), cached_vectors
    )


def test_a_big_request_gets_short_passes_beside_a_single_query():
    passes = []

    class Noting(HalfBundle):
        def embed(self, rows, weights, experts):
            passes.append(len(rows))
            return super().embed(rows, weights, experts)

    async def main(seconds):
        passes.clear()
        sizes = ReplicaSettings(bulk_pass_seconds=seconds)
        engine = Engine(Noting(), SerialExecutor(), None, sizes, Metrics())
        await engine.embed(["warm up"], ROUTED_MODEL)
        await asyncio.gather(
            engine.embed(["big"] * 100, ROUTED_MODEL), engine.embed(["single"], ROUTED_MODEL)
        )
        return passes[1:]

    assert max(asyncio.run(main(1e-9))[1:]) == 1
    assert max(asyncio.run(main(1e9))) == 32


def test_queries_and_documents_share_a_pass_and_cut_texts_are_marked():
    async def main():
        engine = engine_of()
        return await asyncio.gather(
            engine.embed(["x"], ROUTED_MODEL),  # runs alone; the others wait for it together
            engine.embed(["12345678", "123456789"], ROUTED_MODEL),
            engine.embed_documents(["123456789012", "1234567890123"]),
        )

    _, queries, documents = asyncio.run(main())
    assert [one.truncated for one in (*queries, *documents)] == [False, True, False, True]
    assert [one.vector.tolist() for one in (*queries, *documents)] == [[8, 0], [8, 0], [12, 9], [12, 9]]
    assert documents[0].weights == {BASE: 1.0}


def test_the_cache_answers_what_was_asked_by_the_same_model_and_stays_small():
    async def main():
        metrics = Metrics()
        metrics.cache_lookups = Counted()
        engine = engine_of(metrics, cached_vectors=2)
        first = await engine.embed(["one", "three", "one"], ROUTED_MODEL)
        again = await engine.embed(["three", "one"], ROUTED_MODEL)
        await engine.embed(["one"], "a")
        await engine.embed_documents(["one", "two"])
        await engine.embed_documents(["one"])
        assert len(engine.cache) == 2
        return first, again, metrics.cache_lookups.by_tag

    first, again, lookups = asyncio.run(main())
    assert [one.vector.tolist() for one in again] == [[5, 0], [3, 0]]
    assert all(one.vector.base is None for one in again)  # nothing else of its pass is kept
    assert [one.vector.tolist() for one in first] == [[3, 0], [5, 0], [3, 0]]
    assert lookups == {"hit": 2, "miss": 7}


class Expert:
    """An expert in a process of its own; may never answer, or be overloaded."""

    def __init__(self, error=None, hangs=False):
        self.error, self.hangs = error, hangs

    async def embed(self, rows):
        if self.hangs:
            await asyncio.Event().wait()
        if self.error:
            raise self.error
        return np.array([[len(row), 1] for row in rows], np.float32)


async def drained(engine):
    async with asyncio.timeout(10):
        while not engine.idle:
            await asyncio.sleep(0.01)


def dedicated(seconds=0.2, **experts):
    return Engine(
        HalfBundle(), SerialExecutor(), experts, ReplicaSettings(max_batch_size=2), Metrics(), seconds=seconds
    )


def test_vectors_of_experts_elsewhere_are_mixed_with_the_bases():
    async def main():
        engine = dedicated(a=Expert(), b=Expert())
        routed, named, documents, none = await asyncio.gather(
            engine.embed(["one", "three", "seventy"], ROUTED_MODEL),
            engine.embed(["one"], "b"),
            engine.embed_documents(["three"]),
            engine.embed([], ROUTED_MODEL),
        )
        await drained(engine)
        return routed, named, documents, none

    routed, named, documents, none = asyncio.run(main())
    assert [one.vector.tolist() for one in routed] == [[3, 5], [5, 5], [7, 5]]
    assert [one.weights for one in routed] == [{"a": 0.5, BASE: 0.5}] * 3
    assert (named[0].vector.tolist(), documents[0].vector.tolist(), none) == ([3, 1], [5, 9], [])


def test_an_expert_that_does_not_answer_keeps_nobody_else_waiting():
    async def main():
        engine = dedicated(a=Expert(hangs=True), b=Expert())
        stuck = [asyncio.create_task(engine.embed([f"query {n}"], "a")) for n in range(8)]
        await asyncio.sleep(0)
        async with asyncio.timeout(0.15):
            answered = await engine.embed(["one"], "b")
            await engine.embed_documents(["one"])
        failed = await asyncio.gather(*stuck, return_exceptions=True)
        await drained(engine)
        return answered, failed

    answered, failed = asyncio.run(main())
    assert answered[0].vector.tolist() == [3, 1]
    assert {type(error) for error in failed} == {Unavailable}


def test_nothing_is_said_to_wait_when_all_who_waited_have_left():
    async def main():
        metrics = Metrics()
        metrics.waiting = metrics.waiting_tokens = SimpleNamespace(set=told.append)
        engine = Engine(HalfBundle(), SerialExecutor(), None, ReplicaSettings(max_batch_size=1), metrics)
        big = asyncio.create_task(engine.embed(["big"] * 100, ROUTED_MODEL, Access("one")))
        await asyncio.sleep(0)
        await engine.embed(["small"], ROUTED_MODEL, Access("two"))
        assert told[-1] > 0
        big.cancel()
        await asyncio.gather(big, return_exceptions=True)

    told = []
    asyncio.run(main())
    assert told[-2:] == [0, 0]


def test_an_expert_that_is_overloaded_fails_its_own_queries_alone():
    async def main():
        engine = dedicated(a=Expert(Overloaded("full")), b=Expert())
        return await asyncio.gather(
            *(engine.embed(["one"], "ab"[n % 2]) for n in range(8)), return_exceptions=True
        )

    answers = asyncio.run(main())
    assert [type(answer) for answer in answers] == [Overloaded, list] * 4


def test_explanations_of_many_queries_leave_room_for_a_single_one():
    class Slow(HalfBundle):
        def tokenize(self, texts):
            passes.append(len(texts))
            return self.encoder.tokenize_queries(texts)

        def features(self, rows):
            return rows

        router = SimpleNamespace(
            experts=["a"],
            weights=lambda rows: np.ones((len(rows), 1)),
            explain=lambda rows: ["why"] * len(rows),
        )

    async def main():
        engine = Engine(Slow(), SerialExecutor(), None, ReplicaSettings(max_batch_size=4), Metrics())
        many = asyncio.create_task(engine.explain(["query"] * 400, Access("one")))
        await asyncio.sleep(0)
        explained = await engine.explain(["query"], Access("two"))
        before = len(passes)
        many.cancel()
        await drained(engine)
        return explained, before

    passes = []
    explained, before = asyncio.run(main())
    assert explained == [({"a": 1.0}, "why")]
    assert before <= 3
    assert len(passes) <= before + 1
    assert max(passes) <= 4


def test_a_client_of_more_weight_gets_more_of_every_pass():
    class Noting(HalfBundle):
        def route(self, rows):
            passes.append([len(row) for row in rows])
            return super().route(rows)

    async def main():
        sizes = ReplicaSettings(max_batch_size=8)
        engine = Engine(Noting(), SerialExecutor(), None, sizes, Metrics())
        heavy, light = Access("heavy", weight=3.0), Access("light")
        await asyncio.gather(
            engine.embed(["x"], ROUTED_MODEL),  # runs alone; the others wait for it together
            engine.embed(["1234567"] * 60, ROUTED_MODEL, heavy),
            engine.embed(["7654"] * 60, ROUTED_MODEL, light),
        )

    passes = []
    asyncio.run(main())
    assert [(rows.count(7), rows.count(4)) for rows in passes[1:6]] == [(6, 2)] * 5
