"""From files without a query to an expert that its own held-out queries have judged."""

from __future__ import annotations

import json
import sys

import pytest
from routerretriever.cli.main import main
from routerretriever.config.loading import load_recipe
from routerretriever.datasets.collection import open_collection
from support.collections import WORDS
from support.recipes import save_recipe
from support.runs import finished_recipe, run_recipe
from support.writers import endpoint

pytestmark = pytest.mark.integration


def typed(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["routerretriever", *map(str, arguments)])
    try:
        main()
    except SystemExit as stopped:
        assert not stopped.code


def test_files_become_an_expert_and_the_recipe_knows_it(cluster, artifacts, monkeypatch, capsys):
    run_recipe(finished_recipe(artifacts, methods={}), artifacts)
    files = artifacts / "files"
    files.mkdir()
    words = WORDS["sport"]
    for number, (one, other) in enumerate((a, b) for a in words for b in words if a < b):
        (files / f"{number}.md").write_text(f"# {one}\n\n{other} is played here, at number {number}.")
    with endpoint() as server:
        server.fails = lambda number: number % 3 == 0
        writer = {"kind": "endpoint", "url": server.url, "model": "m", "concurrency": 2}
        generation = {"writer": writer, "min_document_words": 2, "shard_size": 10, "types": ["question"],
                      "filters": {"similarity": 1.0}}  # fmt: skip
        recipe = save_recipe(
            finished_recipe(artifacts, methods={}, generation=generation), artifacts / "recipe.yaml"
        )
        add = ("add-expert", recipe, "--name", "clubs", "--documents", files, "--quiet")
        typed(monkeypatch, *add, "--dry-run")
        assert "28 calls" in capsys.readouterr().out
        assert load_recipe(recipe).expert_domains == ["fruit", "metal"]
        typed(monkeypatch, *add)
    told = capsys.readouterr().out
    assert "bundle" in told
    changed = load_recipe(recipe)
    assert changed.expert_domains == ["fruit", "metal", "clubs"]
    made = open_collection("clubs", changed.domain_path("clubs"), changed.domains["clubs"])
    facts = json.loads((made.folder / "provenance.json").read_text())
    assert facts["counts"]["calls"] == 28
    assert len(made.queries("train")) + len(made.queries("dev")) == facts["counts"]["kept"] > 5

    # The experts that exist are compared on the same documents, as if they were new.
    imported = made.folder.with_name("clubs.documents")
    typed(
        monkeypatch, "assess", recipe, "--name", "others", "--documents", imported, "--quiet",
        "--set", "generation.writer={kind: extract}",
    )  # fmt: skip
    told = capsys.readouterr().out
    for system in ("base", "fruit", "metal", "clubs", "BM25", "base with BM25"):
        assert f"{system} " in told

    # Another set of filters is another collection, for which nothing is asked again.
    with endpoint() as nobody:
        nobody.status = 500
        typed(
            monkeypatch, "datasets", "generate", recipe, "--domain", "clubs", "--to", artifacts / "again",
            "--set", "generation.filters.round_trip=base", "--set", f"generation.writer.url={nobody.url}",
            "--set", "domains.clubs.path=generated/clubs.documents",
        )  # fmt: skip
        assert not nobody.requests
    assert (artifacts / "again" / "corpus.jsonl").is_file()
