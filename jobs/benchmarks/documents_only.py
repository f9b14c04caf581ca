"""What an expert from documents only gains on a domain's real test queries, and what its queries cost.

    python -m jobs.benchmarks.documents_only jobs/recipes/sample.yaml --domains shell,tenancy
    python -m jobs.benchmarks.documents_only RECIPE --domains scifact --examples 0

The labelled train and dev queries of a domain are put aside, but for a few that are the writer's examples.
The recipe's writer writes queries about documents that no test query is judged for; train and dev are made of
them. The expert, as held-out generated queries deploy it, and the base answer the domain's own test queries.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from routerretriever.artifacts.step import build_missing
from routerretriever.config.loading import load_recipe
from routerretriever.config.recipe import Recipe
from routerretriever.corpus.build import corpus_step
from routerretriever.datasets.collection import Collection, open_collection
from routerretriever.datasets.splitting import first_by_hash
from routerretriever.datasets.variant import write_variant
from routerretriever.evaluation.significance import Difference, compare
from routerretriever.generation.folder import Generated
from routerretriever.generation.prompts import shorten
from routerretriever.generation.settings import Example
from routerretriever.pipeline.documents import generation_for
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.runtime.progress import log, set_up
from routerretriever.scoring.table import ScoredModel
from routerretriever.training.expert import expert_step
from routerretriever.types import BASE, Values

from jobs.benchmarks.measure import Cost, measured, report

_EXAMPLE_WORDS = 60
"""Of an example's document: small models read about 2,000 tokens, and eight examples stand in each prompt."""


@dataclass(frozen=True)
class Outcome:
    """What came of one domain's documents."""

    domain: str
    test_queries: int
    base: float
    """nDCG@10."""
    expert: float
    """nDCG@10 of the expert, whether it is deployed or not."""
    deployed: bool
    """Whether generated held-out queries found it better than the base; else the base answers."""
    gain: Difference
    """Of what is deployed over the base."""
    calls: int
    kept: int
    """Generated queries that no filter dropped."""
    seconds: float
    """To write and filter them; documents were encoded and Ray was started before."""
    worker_mib: float
    """Peak memory of the largest of Ray's workers meanwhile."""

    @property
    def kept_per_second(self) -> float:
        """Generated queries that are kept, a second."""
        return self.kept / self.seconds

    def figures(self) -> dict[str, Any]:
        """All of them, for JSON."""
        return asdict(self) | {"kept_per_second": self.kept_per_second}

    def row(self) -> list[str]:
        """A line of the table."""
        gain = self.gain
        return [
            self.domain, str(self.test_queries), f"{100 * self.base:.1f}", f"{100 * self.expert:.1f}",
            "yes" if self.deployed else "no",
            f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]",
            f"{self.kept} of {self.calls}", f"{self.kept_per_second:.2f}", f"{self.worker_mib:.0f}",
        ]  # fmt: skip


def outcome(
    domain: str, base_Q: Values, expert_Q: Values, deployed: bool, made: Generated, cost: Cost
) -> Outcome:
    """Sum up one domain.

    Args:
        domain: its name.
        base_Q: the base's nDCG@10 on each test query [Q].
        expert_Q: the expert's [Q].
        deployed: whether the expert is.
        made: the collection with generated queries.
        cost: of its generation.
    """
    return Outcome(
        domain,
        len(base_Q),
        float(base_Q.mean()),
        float(expert_Q.mean()),
        deployed,
        compare(expert_Q if deployed else base_Q, base_Q),
        int(made.facts["counts"]["calls"]),
        made.kept,
        cost.seconds,
        cost.worker_mib,
    )


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The mean gain over all domains, and the domains below the base."""
    return {
        "mean_gain": float(np.mean([one.gain.mean for one in outcomes])),
        "below_base": [one.domain for one in outcomes if one.gain.mean < 0],
    }


def without_labels(collection: Collection, folder: Path) -> Collection:
    """The same documents with test queries alone."""
    whole = collection.uncut
    texts = whole.queries("test")
    records = [{"_id": query, "text": text} for query, text in texts.items()]
    write_variant(whole, folder, records, {"test": whole.qrels("test")}, {"source": str(whole.folder)})
    settings = collection.settings.model_copy(update={"test_split": "test"})
    return open_collection(collection.name, folder, settings)


def examples_of(collection: Collection, count: int) -> tuple[Example, ...]:
    """Some labelled train queries, or dev queries where there are none, each with a relevant document.

    Args:
        collection: that has them.
        count: how many; fewer if there are not so many.
    """
    whole = collection.uncut
    split = next((one for one in ("train", "dev") if one in whole.splits()), None)
    if split is None or not count:
        return ()
    texts = whole.queries(split)
    chosen = first_by_hash(texts, count, "examples")
    relevant = {
        query: next((one for one, grade in whole.qrels(split)[query].items() if grade > 0), "")
        for query in chosen
    }
    wanted = set(relevant.values())
    documents = {
        one.id: shorten(one.title, one.text, _EXAMPLE_WORDS) for one in whole.documents() if one.id in wanted
    }
    return tuple(Example(query=texts[query], document=documents.get(relevant[query], "")) for query in chosen)


def measure_domain(recipe: Recipe, name: str, examples: int, root: Path) -> Outcome:
    """Generate queries, train an expert on them, and measure it and the base on test; all below a folder."""
    domain = recipe.domains[name]
    labelled = open_collection(name, recipe.domain_path(name), domain)
    bare = without_labels(labelled, root / "unlabelled" / name)
    shown = recipe.generation.model_copy(update={"examples": examples_of(labelled, examples)})
    own = recipe.model_copy(update={"generation": shown, "storage": str(root / "storage")})
    generation = generation_for(own, bare)
    build_missing([corpus_step(bare, own.encoder, own.searched(name))], generation.store)
    with measured("generate") as cost:
        made = generation.run(root / "generated" / name)
    alone = domain.model_copy(update={"path": str(made.folder), "expert": True, "test_split": "test"})
    workspace = Pipeline(own.model_copy(update={"domains": {name: alone}})).workspace
    step = expert_step(workspace.source(name), workspace.encoder, workspace.training)
    deployed = bool(workspace.train({name: step})[name].card.get("deployed", True))
    models = [ScoredModel.base(workspace.encoder), ScoredModel.expert(name, step)]
    scores = workspace.scores(workspace.score_steps("test", models, [name]))[name]
    base_Q, expert_Q = scores.utilities([BASE, name]).T
    return outcome(name, base_Q, expert_Q, deployed, made, cost)


def main(
    recipe: Path,
    domains: Annotated[str, typer.Option(help="Domains with a test split, with commas between.")],
    examples: Annotated[int, typer.Option(help="Labelled queries that the writer sees.", min=0, max=8)] = 8,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
) -> None:
    """Measure one domain after the other, each from nothing."""
    set_up(quiet=True)
    settings = load_recipe(recipe, overrides)
    names = list(dict.fromkeys(domains.split(",")))
    for name in names:
        if name not in settings.domains:
            there = ", ".join(settings.domains)
            raise typer.BadParameter(f"no domain {name!r} in {recipe}; there are {there}")
        if "test" not in open_collection(name, settings.domain_path(name), settings.domains[name]).splits():
            raise typer.BadParameter(f"{name} has no test split to measure on; leave it out")
    outcomes = []
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            outcomes.append(measure_domain(settings, name, examples, Path(scratch)))
        log.info("%s", outcomes[-1])
    told = summary(outcomes)
    log.info("mean gain %+.1f nDCG@10 x 100; below the base: %s", 100 * told["mean_gain"], told["below_base"])
    report(
        f"documents-only-{settings.name}-{examples}",
        f"recipe {settings.name}: experts from documents only, {examples} examples; nDCG@10 x 100 on test",
        ["domain", "queries", "base", "expert", "deployed", "gain", "kept", "kept a second", "worker MiB"],
        [one.row() for one in outcomes],
        {
            "recipe": settings.model_dump(mode="json"),
            "examples": examples,
            "domains": [one.figures() for one in outcomes],
            **told,
        },
    )


if __name__ == "__main__":
    typer.run(main)
