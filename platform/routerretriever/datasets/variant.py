"""A collection with the documents of another, byte for byte, and queries of its own.

Its judgement files have the names by which the other's settings look for them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from routerretriever.datasets.collection import Collection, Qrels
from routerretriever.datasets.files import require_file

PROVENANCE = "provenance.json"


def write_variant(
    collection: Collection,
    folder: Path,
    queries: Iterable[Mapping[str, Any]],
    qrels: Mapping[str, Qrels],
    provenance: Mapping[str, Any],
    beside: Mapping[str, Iterable[Mapping[str, Any]]] | None = None,
) -> None:
    """Write a new BEIR folder; it appears whole or not at all. Its corpus hash is the other's.

    Args:
        collection: whose documents.
        folder: the new folder.
        queries: records of ``queries.jsonl``, with ``_id`` and ``text``.
        qrels: judgements by split; a split without any has no file.
        provenance: where it came from.
        beside: further JSONL files by name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        made = Path(scratch) / folder.name
        (made / "qrels").mkdir(parents=True)
        corpus = require_file(collection.folder, "corpus.jsonl")
        shutil.copyfile(corpus, made / corpus.name)
        for name, records in {"queries.jsonl": queries, **(beside or {})}.items():
            with (made / name).open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        for split, judged in qrels.items():
            name = collection.settings.test_split if split == "test" else split
            rows = [
                f"{query}\t{doc}\t{grade}\n" for query, own in judged.items() for doc, grade in own.items()
            ]
            if rows:
                text = "query-id\tcorpus-id\tscore\n" + "".join(rows)
                (made / "qrels" / f"{name}.tsv").write_text(text, encoding="utf-8")
        text = json.dumps(provenance, indent=2, ensure_ascii=False)
        (made / PROVENANCE).write_text(text + "\n", encoding="utf-8")
        made.rename(folder)


def read_provenance(folder: Path) -> dict[str, Any]:
    """Where a folder came from; nothing if it does not say."""
    try:
        facts = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}
