"""Text to vectors: the frozen base encoder. It knows nothing of collections, indexes or adapters."""
