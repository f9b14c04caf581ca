"""The HTTP service on Ray Serve: a router, one deployment per expert, an index deployment.

The only room that knows Serve.
"""

from __future__ import annotations

from routerretriever.serving.run import ask_once, deploy, serve_forever, served

__all__ = ["ask_once", "deploy", "serve_forever", "served"]
