"""Benchmarks, run as commands; each compares with a peer in the same run and writes its figures as JSON."""
