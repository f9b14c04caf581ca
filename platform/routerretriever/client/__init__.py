"""A client of the service; needs httpx and pydantic only."""
