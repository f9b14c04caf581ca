"""What several tests need: small collections, recipes, servers and stand-ins. Tests import from here only."""
