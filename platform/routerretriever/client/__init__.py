"""A client of the service; needs httpx and pydantic only."""

from routerretriever.client.client import AsyncClient, Client, ServiceError

__all__ = ["AsyncClient", "Client", "ServiceError"]
