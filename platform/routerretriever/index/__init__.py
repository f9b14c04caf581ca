"""Searching documents: static and live."""
