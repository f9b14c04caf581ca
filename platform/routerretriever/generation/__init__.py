"""From documents to queries: writers, filters, and the collection that they make."""
