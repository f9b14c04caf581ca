"""A few documents that the examples store, and where the service is."""

from __future__ import annotations

import os

URL = os.environ.get("ROUTERRETRIEVER_URL", "http://localhost:8000")
QUERY = "my thumb tingles at night"
DOCUMENTS = [
    {"id": "d1", "title": "Numb fingers", "text": "A thumb that tingles at night is often a pinched nerve."},
    {"id": "d2", "title": "Bread", "text": "Knead the dough for ten minutes and let it rise."},
    {"id": "d3", "title": "Undo a commit", "text": "git reset --soft HEAD~1 takes the last commit back."},
]
