"""The pilot embedding library: which queries, by the base encoder's vectors, each expert answers best."""

from __future__ import annotations

from routerretriever.pilots.library import PilotLibrary, best_expert, build_library

__all__ = ["PilotLibrary", "best_expert", "build_library"]
