"""Retrieval collections: BEIR folders, read, checked, split and downloaded."""
