"""Adapters on the query tower of the base encoder: what an expert is made of."""
