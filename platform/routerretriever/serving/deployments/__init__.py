"""Everything that knows Ray Serve."""
