"""Batches that form by themselves: fair, bounded, and nobody pays for another."""

import asyncio
from contextvars import ContextVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routerretriever.errors import Overloaded, Unavailable
from routerretriever.serving.batching import Batcher


@settings(deadline=None, max_examples=60)
@given(
    calls=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    max_batch=st.integers(1, 7),
    passes=st.integers(1, 3),
)
def test_every_call_gets_its_own_results_in_order_and_no_pass_is_too_large(calls, max_batch, passes):
    sizes = []

    async def double(items):
        sizes.append(len(items))
        await asyncio.sleep(0 if len(sizes) % 2 else 0.001)
        return [2 * item for item in items]

    async def main():
        batcher = Batcher(double, max_batch, max_waiting=1000, passes=passes)
        items = [list(range(100 * number, 100 * number + size)) for number, size in enumerate(calls)]
        results = await asyncio.gather(*(batcher.submit(own) for own in items))
        assert results == [[2 * item for item in own] for own in items]
        assert batcher.idle
        assert batcher.waiting == 0

    asyncio.run(main())
    assert max(sizes) <= max_batch
    assert sum(sizes) == sum(calls)


def test_a_batcher_refuses_by_what_comes_first_and_forgets_who_left():
    async def main():
        started, go_on, ran = asyncio.Event(), asyncio.Event(), []

        async def work(items):
            started.set()
            await go_on.wait()
            ran.extend(items)
            return items

        batcher = Batcher(work, max_batch=2, max_waiting=3)
        first = asyncio.create_task(batcher.submit(["a", "b"]))
        await started.wait()
        leaver = asyncio.create_task(batcher.submit(["c"] * 4))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="4 items come first; the bound is 3"):
            await batcher.submit(["e"] * 5)
        small = asyncio.create_task(batcher.submit(["f"] * 3))  # a fair share of theirs is within the bound
        await asyncio.sleep(0)
        assert (batcher.waiting, batcher.waiting_cost) == (7, 7)
        for task in (leaver, small):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert batcher.waiting == 0
        last = asyncio.create_task(batcher.submit(["g"] * 5))  # its own size is no reason
        go_on.set()
        assert await first == ["a", "b"]
        assert await last == ["g"] * 5
        assert ran == ["a", "b", *["g"] * 5]
        assert batcher.idle

    asyncio.run(main())


def passes_of(calls, max_batch=4, max_cost=100, max_waiting=1000):
    """The passes in which (client, items, costs) are run that all arrive during a first pass.

    A fourth entry of a call is its client's weight.
    """
    passes = []

    async def main():
        go_on = asyncio.Event()

        async def work(items):
            await go_on.wait()
            passes.append(list(items))
            return items

        batcher = Batcher(work, max_batch, max_waiting, max_cost=max_cost)
        first = asyncio.create_task(batcher.submit(["first"]))
        await asyncio.sleep(0)
        waiting = [
            asyncio.create_task(batcher.submit(items, costs, client, *weight))
            for client, items, costs, *weight in calls
        ]
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(first, *waiting)

    asyncio.run(main())
    return passes[1:]


def test_nobody_is_refused_or_delayed_by_one_big_request():
    """Whether the others come as other clients, or all are one behind a proxy."""
    for client in ("big", "small"):
        big = ("big", ["big"] * 2048, [20] * 2048)
        made = passes_of([big, (client, ["small"], [20])], max_batch=32, max_cost=640, max_waiting=100)
        assert "small" in made[0]


def test_a_big_request_gets_in_beside_many_small_ones():
    small = [(f"client {number}", ["small"], [10]) for number in range(40)]
    made = passes_of([*small, ("big", ["big"] * 600, [10] * 600)], max_waiting=500)
    assert sum(items.count("big") for items in made) == 600


def test_passes_are_bounded_by_cost_and_clients_share_them_by_cost():
    long, short = ("long", ["long"] * 8, [50] * 8), ("short", ["short"] * 40, [5] * 40)
    made = passes_of([long, short], max_batch=40, max_cost=100)
    assert all(items.count("long") * 50 + items.count("short") * 5 <= 100 for items in made)
    assert (made[0].count("long"), made[0].count("short")) == (1, 10)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([0.25, 1, 2, 3, 7.5]), st.lists(st.integers(1, 20), min_size=5, max_size=9))
def test_busy_clients_share_passes_in_proportion_to_their_weights(weight, costs):
    items = costs * 100
    of_a, of_b = ([(client, cost) for cost in items] for client in "ab")
    made = passes_of([("a", of_a, items, weight), ("b", of_b, items)], max_cost=60, max_waiting=10**6)
    both = made[: len(made) // 4]  # of both there is something left
    given_to = {name: sum(cost for one in both for who, cost in one if who == name) for name in "ab"}
    assert given_to["a"] / weight == pytest.approx(given_to["b"], abs=20 / min(weight, 1) + 1e-6)


def test_a_client_of_three_times_the_weight_gets_three_of_four_places():
    heavy, light = ("heavy", ["heavy"] * 400, [5] * 400, 3.0), ("light", ["light"] * 400, [5] * 400, 1.0)
    made = passes_of([light, heavy], max_batch=8)
    assert {(items.count("heavy"), items.count("light")) for items in made[:40]} == {(6, 2)}


def test_who_has_much_weight_is_not_refused_for_what_comes_after_it():
    big = ("big", ["big"] * 200, [1] * 200)
    made = passes_of([big, ("heavy", ["heavy"] * 30, [1] * 30, 3.0)], max_waiting=10)
    assert sum(items.count("heavy") for items in made) == 30
    with pytest.raises(Overloaded, match="30 tokens come first; the bound is 10"):
        passes_of([big, ("plain", ["plain"] * 30, [1] * 30)], max_waiting=10)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.lists(st.integers(1, 9), min_size=1, max_size=9)), max_size=9
    )
)
def test_no_pass_costs_more_than_it_may_unless_it_is_one_item(calls):
    made = passes_of([(client, costs, costs) for client, costs in calls], max_cost=6)
    run = sorted(cost for items in made for cost in items)
    assert run == sorted(cost for _, costs in calls for cost in costs)
    assert all(sum(items) <= 6 or len(items) == 1 for items in made)


def test_a_failing_pass_fails_its_callers_and_nobody_else():
    async def main():
        async def work(items):
            if "bad" in items:
                raise RuntimeError("broken")
            return items

        batcher = Batcher(work, max_batch=1, max_waiting=10)
        results = await asyncio.gather(
            *(batcher.submit(own) for own in (["one"], ["bad", "two"], ["three"])), return_exceptions=True
        )
        assert results[0] == ["one"]
        assert str(results[1]) == "broken"
        assert results[2] == ["three"]
        assert batcher.waiting == 0
        assert batcher.idle

    asyncio.run(main())


def test_a_short_call_does_not_wait_for_all_of_a_long_one():
    async def main():
        order = []

        async def work(items):
            order.append(list(items))
            await asyncio.sleep(0)
            return items

        batcher = Batcher(work, max_batch=4, max_waiting=1000)
        await asyncio.gather(batcher.submit(["long"] * 40), batcher.submit(["short"]))
        assert "short" in [*order[0], *order[1]]

    asyncio.run(main())


def test_one_item_without_a_result_fails_its_own_call_alone():
    async def main():
        async def work(items):
            return [RuntimeError(item) if item == "bad" else item for item in items]

        batcher = Batcher(work, max_batch=8, max_waiting=10)
        return await asyncio.gather(
            *(batcher.submit(own) for own in (["one"], ["bad", "two"], ["three"])), return_exceptions=True
        )

    one, bad, three = asyncio.run(main())
    assert (one, str(bad), three) == (["one"], "bad", ["three"])


def test_who_leaves_takes_no_pass_with_them():
    asked_by = ContextVar("asked_by", default=None)

    async def main():
        seen = []

        async def work(items):
            seen.append(asked_by.get())
            if "stopped" in items:  # as Ray does with calls in the context of a client that hung up
                raise asyncio.CancelledError
            return items

        async def ask(item):
            asked_by.set(item)
            return await batcher.submit([item])

        batcher = Batcher(work, max_batch=2, max_waiting=10)
        answers = await asyncio.gather(*map(ask, ["one", "stopped", "two", "three"]), return_exceptions=True)
        assert batcher.idle
        return seen, answers

    seen, answers = asyncio.run(main())
    assert seen == [None] * len(seen)
    assert [type(answer) for answer in answers] == [list, Unavailable, Unavailable, list]


def beside_bulk(small_clients, bulk_seconds, item_seconds=0.01, cost=20, rounds=30):
    """Clients that ask again and again beside one big call: their waits in seconds, and all passes."""
    now, waits, passes = 0.0, [], []

    async def main():
        async def work(items):
            nonlocal now
            now += item_seconds * len(items)
            passes.append(list(items))
            await asyncio.sleep(0)
            return items

        batcher = Batcher(
            work, max_batch=32, max_waiting=10**6, max_cost=640, bulk_seconds=bulk_seconds, clock=lambda: now
        )

        async def ask(name):
            for _ in range(rounds):
                asked_at = now
                await batcher.submit(["small"], [cost], name)
                waits.append(now - asked_at)

        await batcher.submit(["warm up"], [cost])
        bulk = asyncio.create_task(batcher.submit(["big"] * 2000, [cost] * 2000, "bulk"))
        await asyncio.sleep(0)
        await asyncio.gather(*(ask(f"client {number}") for number in range(small_clients)))
        await bulk

    asyncio.run(main())
    return waits, passes[1:]


def test_a_lone_query_waits_for_no_full_pass_of_a_big_request():
    waits, passes = beside_bulk(1, bulk_seconds=0.04)
    # One full pass ran when it first came. Since then: four texts of the big request, and its own.
    assert max(waits[1:]) == pytest.approx(0.05)
    assert not any({"big", "small"} <= set(items) for items in passes)
    assert all(len(items) == 32 for items in passes[-10:-1]), "nobody else asks any more"
    assert max(beside_bulk(1, bulk_seconds=None)[0]) > 0.5


def test_a_big_request_gets_on_however_many_small_ones_come():
    waits, passes = beside_bulk(20, bulk_seconds=0.04)
    during = passes[: max(at for at, items in enumerate(passes) if "small" in items)]
    assert sum("big" in items for items in during) >= len(during) // 2 - 1
    assert max(waits[20:]) <= 0.04 + 2 * 0.2 + 1e-9


def test_long_texts_one_by_one_are_passed_even_if_each_takes_longer_than_a_bulk_pass_should():
    waits, passes = beside_bulk(1, bulk_seconds=0.001)
    assert sum(items.count("big") for items in passes) == 2000
    assert max(waits[1:]) == pytest.approx(0.02)


def test_texts_without_a_token_get_their_results():
    async def work(items):
        return items

    async def main():
        assert await Batcher(work, max_batch=2, max_waiting=3).submit(["", " "], [0, 0]) == ["", " "]

    asyncio.run(main())
