"""The cluster: joining it, shards of work on it, progress bars, counters."""
