"""A first recipe for collections that are there: what can be found out is written, nothing is asked."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from routerretriever.config.loading import parse_recipe
from routerretriever.datasets.collection import Collection, open_collection
from routerretriever.datasets.contents import split_files
from routerretriever.datasets.files import find_files
from routerretriever.errors import DatasetError, Refused
from routerretriever.types import BASE, DOCUMENT_MODEL, ROUTED_MODEL

_FEW = 50
"""Fewer training queries than these are remarked upon."""
_TEMPLATE = """\
# Written by `routerretriever init`. `routerretriever schema` describes every setting.
#   routerretriever run {file} --dry-run      what would be done
#   routerretriever run {file}                do it
name: {name}
# Everything that a run makes: a folder, or s3://... or gs://...
storage: {storage}
# Where the paths of collections start.
data_root: {data_root}
domains:
{domains}
# The base that all experts share: a Hugging Face id, or a folder. This one comes with the package.
encoder:
  name: all-MiniLM-L6-v2
{resources}# Where experts and bundles are registered; without a server, in a file in storage.
# registry:
#   tracking_uri: http://mlflow.example.org:5000
# The service of `routerretriever serve`.
# serving:
#   port: 8000
# What `run` asks the service at the end.
question: {question}
"""
_GPU = "# This machine has a GPU: every worker gets it whole; 0.5 lets two share it.\n" + "".join(
    f"{section}:\n  gpus_per_worker: 1\n" for section in ("corpus", "training", "scoring")
)


@dataclass(frozen=True)
class _Found:
    name: str
    path: str
    collection: Collection

    @property
    def has_train(self) -> bool:
        return "train" in self.collection.splits()

    def line(self) -> str:
        """Its line of the recipe, with what was found as a comment."""
        expert = "" if self.has_train else ", expert: false"
        settings = f"{{path: {_quoted(self.path)}{expert}}}"
        return f"  {_as_name(self.name)}: {settings}  # {'; '.join(self._remarks())}"

    def _remarks(self) -> list[str]:
        splits = self.collection.splits()
        counts = {split: len(self.collection.qrels(split)) for split in splits}
        there = split_files(self.collection.folder, self.collection.settings)
        queries = ", ".join(
            f"{count} {split}{'' if split in there else ' (held out of train)'}"
            for split, count in counts.items()
        )
        documents = self.collection.require(None).survey.documents
        remarks = [f"{documents} documents; queries: {queries or 'none'}"]
        if not self.has_train:
            remarks.append("no train split, so no expert")
        elif counts["train"] < _FEW:
            remarks.append("few training queries: an expert may not beat the base")
        if "test" not in splits:
            remarks.append("no test split, so it is not evaluated")
        return remarks


def write_recipe(
    folders: Sequence[str | Path], to: Path, name: str | None = None, has_gpu: bool = False
) -> Path:
    """Write a commented recipe for collections.

    Args:
        folders: BEIR folders, folders of such, or ``sample:<domain>``.
        to: the new file.
        name: the run's name; by default the file's.
        has_gpu: whether workers are to be given a GPU.

    Raises:
        Refused: the file is there already.
        DatasetError: a collection is flawed, or none has a train split; the message says what to do.
    """
    if to.exists():
        raise Refused(f"{to}: is there already; name another with --to")
    root, found = _find(folders)
    if not any(one.has_train for one in found):
        raise DatasetError(
            f"{', '.join(one.path for one in found)}: no collection has a train split, so no expert can be "
            "trained; add qrels/train.tsv to one"
        )
    run_name = name or _domain_name(to.stem)
    text = _TEMPLATE.format(
        file=shlex.quote(str(to)),
        name=_as_name(run_name),
        storage=_as_name(f"runs/{run_name}"),
        data_root=_quoted(root),
        domains="\n".join(one.line() for one in found),
        resources=_GPU if has_gpu else "",
        question=_quoted(_question(found)),
    )
    parse_recipe(YAML(typ="safe", pure=True).load(text), str(to))
    to.write_text(text, encoding="utf-8")
    return to


def _find(folders: Sequence[str | Path]) -> tuple[str, list[_Found]]:
    """The folder that all collections lie below, and the collections."""
    places = [place for folder in folders for place in _collections_in(str(folder))]
    places = list(dict.fromkeys(places))
    inner = [place for place in places if not place.startswith("sample:")]
    root = os.path.commonpath([Path(place).parent for place in inner]) if inner else "."
    found: list[_Found] = []
    taken = {BASE, ROUTED_MODEL, DOCUMENT_MODEL}
    for place in places:
        is_sample = place.startswith("sample:")
        base = _domain_name(place.removeprefix("sample:") if is_sample else Path(place).name)
        name = next(n for number in range(1, 1000) if (n := _numbered(base, number)) not in taken)
        taken.add(name)
        path = place if is_sample else os.path.relpath(place, root)
        found.append(_Found(name, path, open_collection(name, place)))
    return root, found


def _collections_in(folder: str) -> list[str]:
    """The folder itself, or the collections right below it."""
    if folder.startswith("sample:"):
        return [folder]
    path = Path(folder).expanduser().absolute()
    if path.is_dir() and not find_files(path, "corpus.jsonl"):
        inner = sorted({str(file.parent) for file in path.glob("*/corpus.jsonl*")})
        if inner:
            return inner
    return [str(path)]


def _question(found: Sequence[_Found]) -> str:
    asked = next(one for one in found if one.has_train).collection
    question = next(iter(asked.queries("test" if "test" in asked.splits() else "dev").values()))
    return " ".join(question.split())


def _domain_name(text: str) -> str:
    plain = re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")
    return plain[:50] or "domain"


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def _as_name(text: str) -> str:
    """A name as YAML reads it back: in quotes if it would be a number, a date, or anything else without."""
    try:
        is_plain = YAML(typ="safe", pure=True).load(text) == text
    except YAMLError:
        is_plain = False
    return text if is_plain else _quoted(text)


def _quoted(text: str) -> str:
    # JSON's strings are YAML's.
    return json.dumps(text, ensure_ascii=False)
