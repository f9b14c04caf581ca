"""The HTTP API. It knows nothing of Ray."""
