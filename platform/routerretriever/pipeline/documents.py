"""From files to a validated expert: import, passages, queries, collection, expert.

Everything between is kept: the documents and the collection as folders below ``<data_root>/generated``, the
queries in storage. The same command goes on where it was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from routerretriever.config.loading import load_recipe, parse_recipe, parse_settings
from routerretriever.config.recipe import Recipe
from routerretriever.datasets.archives import unpacked
from routerretriever.datasets.collection import Collection, open_collection
from routerretriever.datasets.files import read_lines
from routerretriever.datasets.importing import import_data
from routerretriever.datasets.issues import raise_error
from routerretriever.datasets.reading import mend
from routerretriever.datasets.sources import find_sources
from routerretriever.datasets.variant import read_provenance
from routerretriever.errors import DatasetError, RecipeError
from routerretriever.generation.folder import Generated
from routerretriever.generation.generate import Estimate, Generation
from routerretriever.generation.settings import Example
from routerretriever.hashing import file_hash
from routerretriever.pipeline.domains import add_domain, require_editable
from routerretriever.pipeline.pipeline import Pipeline, Registered, require_trained
from routerretriever.pipeline.places import open_storage, require_lasting_data
from routerretriever.runtime.progress import log
from routerretriever.training.rerankers import TRIAL, Candidates, Reranker, open_reranker
from routerretriever.training.teacher_settings import AnyTeacherSettings
from routerretriever.types import Scores

PASSAGE_TOKENS = 180
"""Longest passage that a file is cut into, in words and punctuation marks."""
_MOST_EXAMPLES = 8
_FOLDER = "generated"


@dataclass(frozen=True)
class RerankingReader:
    """The teacher of a recipe's experts, as generation asks it about queries."""

    settings: AnyTeacherSettings

    @property
    def depth(self) -> int:
        """As many documents as it scores in training."""
        return self.settings.depth

    def check(self) -> None:
        """Have it score a trial pair.

        Raises:
            TeacherError: it cannot.
        """
        self._reranker.score([TRIAL])

    def identity(self) -> dict[str, Any]:
        """What its scores depend on."""
        return self.settings.identity()

    def score(self, queries: Sequence[str], documents: Sequence[Sequence[str]]) -> list[Scores]:
        """Each query's scores of its own documents [D].

        Raises:
            TeacherError: they cannot be had.
        """
        return self._reranker.score([Candidates(*one) for one in zip(queries, documents, strict=True)])

    @cached_property
    def _reranker(self) -> Reranker:
        return open_reranker(self.settings)


def generation(recipe: Recipe, name: str) -> Generation:
    """The generation of queries about a domain's documents.

    Raises:
        RecipeError: the recipe has no such domain.
        DatasetError: its folder is missing, or its train or dev plays test.
    """
    if name not in recipe.domains:
        raise RecipeError(f"domains: no domain {name!r}; there are {', '.join(sorted(recipe.domains))}")
    return generation_for(recipe, open_collection(name, recipe.domain_path(name), recipe.domains[name]))


def generation_for(recipe: Recipe, collection: Collection) -> Generation:
    """The same for a collection that need not be in the recipe.

    Raises:
        DatasetError: its train or dev plays test, so that there is no place for what is generated.
    """
    if (split := collection.settings.test_split) in ("train", "dev"):
        raise DatasetError(
            f"domains.{collection.name}.test_split: {split} is test here, and generated queries become train "
            f"and dev; rename {collection.folder / 'qrels' / split}.tsv to test.tsv and leave test_split out"
        )
    teacher = recipe.training.teacher
    return Generation(
        collection,
        open_storage(recipe),
        recipe.encoder,
        recipe.searched(collection.name),
        recipe.generation,
        None if teacher is None else RerankingReader(teacher),
    )


def generated_folder(recipe: Recipe, name: str) -> Path:
    """Where a generated collection is written, if nothing else is said.

    Raises:
        RecipeError: ``data_root`` is relative, in a submitted job.
    """
    require_lasting_data(recipe)
    return Path(recipe.data_root).expanduser() / _FOLDER / name


def with_examples(recipe: Recipe, path: Path | None) -> Recipe:
    """The recipe with a file's examples: one JSON object a line, with ``query`` and perhaps ``document``.

    Raises:
        DatasetError: the file is missing.
        RecipeError: a line is no example, or there are too many.
    """
    if path is None:
        return recipe
    if not path.is_file():
        raise DatasetError(f"--examples {path}: no such file")
    examples = []
    for line, raw in read_lines(path, raise_error):
        place = f"{path}:{line}"
        try:
            row = json.loads(raw)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise RecipeError(f'{place}: not a JSON object; write {{"query": "...", "document": "..."}}')
        examples.append(parse_settings(Example, row, place))
    if not 1 <= len(examples) <= _MOST_EXAMPLES:
        raise RecipeError(f"{path}: {len(examples)} examples; give 1 to {_MOST_EXAMPLES}")
    changed = recipe.generation.model_copy(update={"examples": tuple(examples)})
    return recipe.model_copy(update={"generation": changed})


def import_documents(source: Path, folder: Path) -> Path:
    """Files as a folder of passages; one that was made from the same files is kept.

    Raises:
        DatasetError: there are no documents, a file cannot be read, or the folder holds something else.
    """
    if not source.exists():
        raise DatasetError(f"--documents {source}: no such file or folder")
    if (source / "corpus.jsonl").is_file():
        return source  # it has been imported already
    if folder.exists():
        if _files_of(folder) != _files_now(source, folder.parent):
            raise DatasetError(
                f"{folder}: imported from other files than {source} now holds; remove it to import anew"
            )
        log.info("%s: there already", folder)
        return folder
    log.info(import_data(source, folder, passage_tokens=PASSAGE_TOKENS).told())
    return folder


def estimate_documents(recipe_path: Path, name: str, source: Path, examples: Path | None) -> Estimate:
    """What ``add_from_documents`` would have written; changes nothing."""
    recipe = _recipe_without_expert(recipe_path, name, examples)
    with TemporaryDirectory() as scratch:
        imported = import_documents(source, Path(scratch) / name)
        return generation_for(recipe, open_collection(name, imported)).estimate()


def generate_from(recipe: Recipe, name: str, source: Path) -> Generated:
    """Import files and generate queries about them.

    Raises:
        RecipeError: the name cannot be a domain's.
        DatasetError: there is nothing to ask about, or a folder holds something else.
        WriterError: the writer cannot write.
        TeacherError: the experts' teacher cannot score.
    """
    require_domain_name(recipe, name)
    folder = generated_folder(recipe, name)
    imported = import_documents(source, folder.with_name(f"{name}.documents"))
    return generation_for(recipe, open_collection(name, imported)).run(folder)


def add_from_documents(
    recipe_path: Path, name: str, source: Path, examples: Path | None = None, release: bool = True
) -> tuple[Generated, Registered]:
    """Make an expert of documents; its held-out queries decide whether it is deployed.

    Raises:
        RecipeError: the domain has an expert already, other experts would have to be trained anew, or the
            recipe is no file that can be changed.
        DatasetError: there is nothing to ask about, or a folder holds something else.
        WriterError: the writer cannot write.
        TeacherError: the experts' teacher cannot score.
    """
    require_editable(recipe_path)
    recipe = _recipe_without_expert(recipe_path, name, examples)
    require_lasting_data(recipe)
    require_trained(Pipeline(recipe))  # `add_domain` asks too, but after hours of generation
    generated = generate_from(recipe, name, source)
    return generated, add_domain(recipe_path, name, f"{_FOLDER}/{name}", release)


def _recipe_without_expert(recipe_path: Path, name: str, examples: Path | None) -> Recipe:
    recipe = with_examples(load_recipe(recipe_path), examples)
    if name in recipe.expert_domains:
        raise RecipeError(f"{recipe_path}: domains.{name}: has an expert already")
    require_domain_name(recipe, name)
    return recipe


def require_domain_name(recipe: Recipe, name: str) -> None:
    """Refuse a name that the recipe could not hold, before anything is written under it.

    Raises:
        RecipeError: it is no domain's name, or stands for another model.
    """
    values = recipe.model_dump(mode="json")
    values["domains"].setdefault(name, {"path": ".", "expert": False})
    parse_recipe(values, f"name {name!r}")


def _files_of(folder: Path) -> dict[str, str]:
    files = read_provenance(folder).get("files", {})
    return {name: facts.get("sha256", "") for name, facts in files.items()}


def _files_now(source: Path, beside: Path) -> dict[str, str]:
    with unpacked(source, beside) as content:
        root = content if content.is_dir() else content.parent
        found = [each.path for each in find_sources(content).sources]
        return {mend(path.relative_to(root).as_posix()): file_hash(path) for path in found}
