"""Collections of 28 documents, on which the fake encoder can learn something."""

from __future__ import annotations

import json
from pathlib import Path

from routerretriever.datasets.collection import Collection, open_collection

WORDS = {
    "fruit": ["apple", "banana", "cherry", "damson", "elder", "fig", "grape", "hazel"],
    "metal": ["iron", "copper", "zinc", "tin", "lead", "silver", "gold", "nickel"],
    "sport": ["tennis", "rugby", "cricket", "hockey", "judo", "rowing", "chess", "golf"],
}


def write_collection(
    folder: Path, words: list[str], splits: tuple[str, ...] = ("train", "dev", "test")
) -> Path:
    """A collection whose queries ask for the document that holds both of their words."""
    (folder / "qrels").mkdir(parents=True)
    pairs = [(a, b) for i, a in enumerate(words) for b in words[i + 1 :]]
    with (folder / "corpus.jsonl").open("w") as corpus, (folder / "queries.jsonl").open("w") as queries:
        for number, (a, b) in enumerate(pairs):
            corpus.write(json.dumps({"_id": f"d{number}", "title": a, "text": f"{b} text {number}"}) + "\n")
            queries.write(json.dumps({"_id": f"q{number}", "text": f"where is {b} with {a}"}) + "\n")
    for split in splits:
        lines = [
            f"q{number}\td{number}\t1\n"
            for number in range(len(pairs))
            if ("train", "train", "dev", "test")[number % 4] == split
        ]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


def write_collections(root: Path) -> Path:
    """The three collections under ``root/data``, where `tiny_recipe` looks for them. Gives ``root``."""
    for name, words in WORDS.items():
        write_collection(root / "data" / name, words)
    return root


def documents_alone(folder: Path) -> Collection:
    """A collection about fruit without queries."""
    write_collection(folder, WORDS["fruit"], splits=())
    (folder / "queries.jsonl").write_text("")
    return open_collection("fruit", folder)
