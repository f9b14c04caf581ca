"""An ingress replica beside a release controller, without Ray."""

import asyncio
from types import SimpleNamespace

from routerretriever.serving.deployments import ingress
from routerretriever.serving.deployments.ingress import Ingress
from routerretriever.serving.ports import DesiredState, Release

FIRST, SECOND = (Release(version, "", {}, {}) for version in (1, 2))


class SlowEngine:
    """Has requests that it has not answered yet."""

    def __init__(self):
        self.is_drained = asyncio.Event()

    def take_routed(self):
        return {}

    async def drained(self):
        await self.is_drained.wait()


class LoneIngress(Ingress.func_or_class):
    """One that Ray does not construct; it loads nothing until it may."""

    @classmethod
    def beside(cls, controller, old):
        self = object.__new__(cls)
        self._controller, self._authenticator = controller, SimpleNamespace(replicas=0)
        desired = DesiredState(FIRST, None, 1)
        self._replica = SimpleNamespace(engines={1: old}, desired=desired, refresh=self.refreshed)
        self.may_load, self.may_refresh = asyncio.Event(), asyncio.Event()
        return self

    async def follow(self):
        await self._follow()

    @property
    def desired(self):
        return self._replica.desired

    def __del__(self):
        """Ray's own is a coroutine."""

    async def refreshed(self):
        await self.may_refresh.wait()

    async def _load(self, release):
        await self.may_load.wait()
        return SlowEngine()


class Controller:
    """Says what is desired, and notes what it is told."""

    def __init__(self):
        self.desired = SimpleNamespace(remote=self.told)
        self.release = FIRST
        self.heard = []

    async def told(self, heartbeat):
        self.heard.append(heartbeat.versions)
        return DesiredState(self.release, None, 1)

    async def hears(self, versions, times=3):
        """Wait until a replica has said several times in a row that these are loaded."""
        async with asyncio.timeout(10):
            while self.heard[-times:] != [versions] * times:
                await asyncio.sleep(0.01)


def test_a_replica_tells_what_is_loaded_while_it_loads_and_drains(monkeypatch):
    monkeypatch.setattr(ingress, "_HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(ingress, "replica_id", lambda: "a")

    async def main():
        controller, old = Controller(), SlowEngine()
        replica = LoneIngress.beside(controller, old)
        follower = asyncio.create_task(replica.follow())
        await controller.hears((1,))  # while the writer does not answer
        replica.may_refresh.set()
        controller.release = SECOND
        await controller.hears((1,), times=len(controller.heard) + 5)
        assert replica.desired.current == FIRST
        replica.may_load.set()
        await controller.hears((1, 2))
        assert replica.desired.current == SECOND
        old.is_drained.set()
        await controller.hears((2,))
        follower.cancel()

    asyncio.run(main())
