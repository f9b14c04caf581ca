"""One of the two clients; see ``routerretriever.client``."""
