"""A client of the service, for programs: ``Client``, and ``AsyncClient`` with the same methods to await.

    with Client("http://localhost:8000", token="...") as client:
        hits = client.search("undo my last commit", collection="shell").results

A request that is refused for load, or meets a replica or a proxy that is being replaced, is sent again for a
while; only creating and deleting a collection is not. It needs httpx, numpy and pydantic only.
"""

from routerretriever.client.asynchronous.client import AsyncClient
from routerretriever.client.requests import ServiceError
from routerretriever.client.synchronous.client import Client

__all__ = ["AsyncClient", "Client", "ServiceError"]
