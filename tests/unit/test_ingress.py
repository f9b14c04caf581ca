"""An ingress replica beside a release controller, without Ray."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from routerretriever.serving.deployments import ingress
from routerretriever.serving.deployments.ingress import Ingress
from routerretriever.serving.ports import DesiredState, Release

FIRST, SECOND, THIRD = (Release(version, "", {}, {}) for version in (1, 2, 3))


class SlowEngine:
    """Has requests that it has not answered yet."""

    idle = False

    def take_routed(self):
        return {}


class LoneIngress(Ingress.func_or_class):
    """One that Ray does not construct; it loads nothing until it may."""

    @classmethod
    def beside(cls, controller, old):
        self = object.__new__(cls)
        self._controller, self._authenticator = controller, SimpleNamespace(replicas=0)
        desired = DesiredState(FIRST, None, 1)
        self._replica = SimpleNamespace(engines={1: old}, desired=desired, refresh=self.refreshed)
        self.may_load, self.may_refresh = asyncio.Event(), asyncio.Event()
        self.broken, self.refreshes = (), 0
        return self

    async def follow(self):
        await asyncio.gather(self._follow(), self._refresh())

    @property
    def desired(self):
        return self._replica.desired

    def __del__(self):
        """Ray's own is a coroutine."""

    async def refreshed(self):
        await self.may_refresh.wait()
        self.refreshes += 1

    async def _load(self, release):
        await self.may_load.wait()
        if release in self.broken:
            raise MemoryError("no room for it")
        return SlowEngine()


class Controller:
    """Says what is desired, and notes what it is told."""

    def __init__(self):
        self.desired = SimpleNamespace(remote=self.told)
        self.release, self.challenger = FIRST, None
        self.heard = []

    async def told(self, heartbeat):
        self.heard.append(heartbeat.versions)
        return DesiredState(self.release, self.challenger, 1)

    async def hears(self, versions, times=3):
        """Wait until a replica has said several times in a row that these are loaded."""
        await until(lambda: self.heard[-times:] == [versions] * times)


async def until(holds):
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def following(controller, old):
    """A replica that follows its controller for as long as a block runs."""
    replica = LoneIngress.beside(controller, old)
    follower = asyncio.create_task(replica.follow())
    yield replica
    follower.cancel()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(ingress, "_HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(ingress, "replica_id", lambda: "a")


def test_a_replica_tells_what_is_loaded_while_it_loads_and_drains():
    async def main():
        controller, old = Controller(), SlowEngine()
        async with following(controller, old) as replica:
            await controller.hears((1,))  # while the writer does not answer
            replica.may_refresh.set()
            controller.release = SECOND
            await controller.hears((1,), times=len(controller.heard) + 5)
            assert replica.desired.current == FIRST
            replica.may_load.set()
            await controller.hears((1, 2))
            assert replica.desired.current == SECOND
            old.idle = True
            await controller.hears((2,))

    asyncio.run(main())


def test_a_roll_back_does_not_wait_for_the_last_query_of_what_was_before():
    async def main():
        controller = Controller()
        async with following(controller, SlowEngine()) as replica:
            replica.may_load.set()
            controller.release = SECOND
            await controller.hears((1, 2))
            controller.release = FIRST  # the first has not answered all of its queries yet
            await until(lambda: replica.desired.current == FIRST)

    asyncio.run(main())


def test_a_release_does_not_wait_for_a_challenger_that_cannot_be_loaded():
    async def main():
        controller = Controller()
        async with following(controller, SlowEngine()) as replica:
            replica.broken = (THIRD,)
            replica.may_load.set()
            controller.release, controller.challenger = SECOND, THIRD
            await controller.hears((1, 2))
            assert replica.desired == DesiredState(SECOND, None, 1)
            replica.broken = ()
            await controller.hears((1, 2, 3))
            assert replica.desired == DesiredState(SECOND, THIRD, 1)

    asyncio.run(main())


def test_collections_are_asked_for_while_a_bundle_is_loaded():
    async def main():
        controller = Controller()
        async with following(controller, SlowEngine()) as replica:
            controller.release = SECOND  # it may not be loaded yet
            replica.may_refresh.set()
            await until(lambda: replica.refreshes >= 5)
            assert replica.desired.current == FIRST

    asyncio.run(main())
