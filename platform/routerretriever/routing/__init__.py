"""Routing features of a query to weights over experts."""
