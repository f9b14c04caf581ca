"""The command ``routerretriever``."""
