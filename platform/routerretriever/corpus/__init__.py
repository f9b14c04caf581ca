"""A collection's documents and their vectors, made once and shared by all experts."""
