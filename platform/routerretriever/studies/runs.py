"""Studies of a run: each gathers what it needs, computes, and writes its figures and its page.

They are about the experts and their routers, whichever method is deployed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from pydantic import ValidationError

from routerretriever.adapters.check import check_encoder
from routerretriever.config.recipe import Recipe
from routerretriever.config.tuning import Values, describe
from routerretriever.datasets.collection import Collection
from routerretriever.datasets.judgements import Judgements
from routerretriever.errors import BadInput, RecipeError, TrainingFailed, WriterError
from routerretriever.generation.grading import Estimate, Judge
from routerretriever.hashing import content_hash
from routerretriever.methods.experts import PAPERS, Experts
from routerretriever.pipeline.pipeline import Pipeline, require_trained
from routerretriever.reports.plots import Section, write_sections
from routerretriever.runtime.progress import log
from routerretriever.scoring.table import ScoredModel, ScoreTable
from routerretriever.studies.analyses import (
    Analyses,
    NoiseFloor,
    WeightFloor,
    analyse,
    analyses_sections,
    noise_floor,
    noise_floor_sections,
    weight_floor,
)
from routerretriever.studies.judging import Judging, Pool, judged_set, make_pool, summarise
from routerretriever.studies.judging_tables import judging_sections
from routerretriever.studies.learning_curve import LearningCurve, learning_curve, learning_curve_section
from routerretriever.studies.offline import OfflineEvaluator
from routerretriever.studies.training_search import Ranking, Search, TrialPlan, rank, ranking_sections
from routerretriever.studies.tuning import Trial, tune
from routerretriever.training.expert import TrainAdapter, expert_key, expert_step, open_expert
from routerretriever.training.schedule import run_length
from routerretriever.training.settings import TrainingSettings


def tune_router(pipeline: Pipeline, unseen_share: float) -> list[Trial]:
    """Try routers on dev, write what was tried beside the reports; the best comes first.

    Raises:
        BadInput: routers would learn from the dev queries that they are measured on.
    """
    if pipeline.recipe.scoring.source == "dev":
        raise BadInput("scoring.source: routers learn from dev; tuning needs 'train' or 'held_out'")
    bench = offline_evaluator(pipeline, pipeline.expert_collections, "dev")
    layers = pipeline.workspace.base.layers
    # The input embeddings, and the middle, where a query's domain is plainest.
    middle = sorted({0, layers // 2, 2 * layers // 3})
    trials = tune(bench, middle, unseen_share, pipeline.recipe.routing.merge)
    _write_json(pipeline, "router-tuning.json", [trial.as_dict() for trial in trials])
    return trials


def tune_training(pipeline: Pipeline, domains: Sequence[str] | None = None, seeds: int = 1) -> Ranking:
    """Try training settings on dev, and write what was tried beside the reports; results are kept.

    Args:
        pipeline: the run; its ``tuning`` says what is tried.
        domains: whose experts; by default all.
        seeds: experts of each domain in a trial; the first has the recipe's seed.

    Raises:
        RecipeError: a domain has no expert, or a trial's settings do not fit the recipe.
        EncoderError: a trial's adapter does not fit the encoder.
        TrainingFailed: one or more trials could not be run, the others are kept; or none came to an end.
    """
    search = plan_training_search(pipeline, domains, seeds)
    names = dict.fromkeys(job.name for job in search.plans[0].jobs)
    shared = [_trial_step(pipeline, name, pipeline.recipe.training, 0) for name in names]
    pipeline.workspace.build(each for step in shared for each in step.inputs)
    from routerretriever.studies.trials import run_search  # takes Ray's seconds to import

    trials = run_search(search, pipeline.store)
    ranking = rank(trials)
    if ranking.best.failed is not None:
        raise TrainingFailed(f"tuning.space: all {len(trials)} trials failed, the first: {trials[0].failed}")
    _write_json(pipeline, "training-tuning.json", ranking.as_dict())
    _write_page(pipeline, "training-tuning", ranking_sections(ranking))
    return ranking


def plan_training_search(pipeline: Pipeline, domains: Sequence[str] | None = None, seeds: int = 1) -> Search:
    """The trials of ``tune_training``; raises what it raises before it starts Ray."""
    recipe, known = pipeline.recipe, pipeline.recipe.expert_domains
    for name in domains or ():
        if name not in known:
            raise RecipeError(f"domain: no expert {name!r}; there are {', '.join(known)}")
    if seeds < 1:
        raise RecipeError(f"seeds: {seeds} is too few; give 1 or more")
    chosen = [name for name in known if name in (domains or known)]
    for name in chosen:
        pipeline.collections[name].require("dev")
    drawn = recipe.tuning.draw(recipe.training)
    for values, training in drawn:
        try:
            Recipe.model_validate({**dict(recipe), "training": training})
        except ValidationError as error:
            raise RecipeError(f"tuning.space: {error.errors()[0]['msg']} ({describe(values)})") from None
    check_encoder(recipe.encoder, tuple(dict.fromkeys(training.adapter for _, training in drawn)))
    plans = [_trial_plan(pipeline, values, training, chosen, seeds) for values, training in drawn]
    return Search(tuple(plans), recipe.tuning)


def _trial_plan(
    pipeline: Pipeline, values: Values, training: TrainingSettings, domains: Sequence[str], seeds: int
) -> TrialPlan:
    jobs, lengths = [], []
    for name in domains:
        queries = Judgements.of(
            pipeline.collections[name], "train", held_out_fraction=training.held_out_fraction
        ).queries
        for number in range(seeds):
            jobs.append(_trial_step(pipeline, name, training, number).job)
            lengths.append(run_length(training, training.steps_per_epoch(len(queries))))
    return TrialPlan(values, training, tuple(jobs), max(lengths), sum(lengths))


def _trial_step(pipeline: Pipeline, name: str, training: TrainingSettings, number: int) -> TrainAdapter:
    """The step of one run: a single training and its best step on dev, without a cross-validation."""
    plain = _with_seed(training, number).model_copy(update={"selection": "best_step"})
    return expert_step(pipeline.workspace.source(name), pipeline.workspace.encoder, plain)


def analyse_run(pipeline: Pipeline, order: list[str] | None, clusters: list[int]) -> Analyses:
    """The paper's analyses on the test sets, written beside the reports.

    Raises:
        RecipeError: the order does not name each expert once, or a number of centroids is not positive.
    """
    known, order = pipeline.recipe.expert_domains, order or pipeline.recipe.expert_domains
    if sorted(order) != sorted(known):
        raise RecipeError(f"order: found {', '.join(order)}; name each once of {', '.join(known)}")
    if not clusters or min(clusters) < 1:
        raise RecipeError(f"clusters: found {clusters}; give one or more numbers from 1 up")
    bench = _portable(pipeline, offline_evaluator(pipeline, pipeline.workspace.tested, "test"))
    analyses = analyse(bench, pipeline.method(Experts).routing, order, clusters, pipeline.store)
    _write_json(pipeline, "analyses.json", asdict(analyses))
    _write_page(pipeline, "analyses", analyses_sections(analyses))
    return analyses


def measure_noise_floor(pipeline: Pipeline, domain: str, copies: int) -> NoiseFloor:
    """Train one expert with several seeds, and see what an oracle gains by choosing among the copies.

    Where words are searched, see too what choosing their weight gains if they are another query's.

    Raises:
        RecipeError: the domain has no expert or no test split, or fewer than two copies are asked for.
    """
    _studied(pipeline, domain)
    if copies < 2:
        raise RecipeError(f"copies: {copies} is too few; an oracle needs 2 or more to choose from")
    workspace, training = pipeline.workspace, pipeline.recipe.training
    steps = []
    for number in range(copies):
        own = _with_seed(training, number)
        name = f"{domain}-seed-{own.seed}"
        steps.append(expert_step(workspace.source(domain), workspace.encoder, own, name))
    floor = noise_floor(
        _test_scores(pipeline, domain, steps)[domain],
        pipeline.method(Experts).split_scores("test", [domain])[domain],
        _weight_floor(pipeline, domain),
    )
    _write_json(pipeline, f"noise-floor-{domain}.json", asdict(floor))
    _write_page(pipeline, f"noise-floor-{domain}", noise_floor_sections(floor))
    return floor


def _weight_floor(pipeline: Pipeline, domain: str) -> WeightFloor | None:
    hybrid = pipeline.method(Experts).hybrid
    if domain not in hybrid.searched:
        return None
    prior = pipeline.workspace.corpus.fusion.prior
    return weight_floor(hybrid.routed_scores[domain], hybrid.with_others_words(domain), prior)


def draw_learning_curve(
    pipeline: Pipeline, domain: str, sizes: list[int] | None, seeds: int = 1
) -> LearningCurve:
    """Train a domain's expert on nested samples of its train queries, and on all; measure all on test.

    A sample is of the split: ``held_out_fraction``, if set, is taken out of each.

    Args:
        pipeline: the run.
        domain: whose expert.
        sizes: numbers of queries; by default an eighth, a quarter and a half.
        seeds: experts of each size; the first has the recipe's seed.

    Raises:
        RecipeError: the domain has no expert or no test split, or there are no samples of these sizes.
    """
    queries = len(_studied(pipeline, domain).qrels("train"))
    sizes = sizes or [queries // 8, queries // 4, queries // 2]
    if min(sizes) < 1 or max(sizes) >= queries:
        raise RecipeError(
            f"sizes: found {sizes}; {domain} has {queries} train queries, and all of them are always "
            f"tried; give numbers from 1 to {queries - 1}"
        )
    if seeds < 1:
        raise RecipeError(f"seeds: {seeds} is too few; give 1 or more")
    steps = {
        size: [_sample_step(pipeline, domain, size, number) for number in range(seeds)]
        for size in (*sorted(set(sizes)), None)
    }
    every = [step for own in steps.values() for step in own]
    scores = _test_scores(pipeline, domain, every)[domain]
    deployed = {
        step.name: bool(open_expert(pipeline.store, step.key).card.get("deployed", True)) for step in every
    }
    names = {size or queries: [step.name for step in own] for size, own in steps.items()}
    curve = learning_curve(scores, names, deployed)
    _write_json(pipeline, f"learning-curve-{domain}.json", asdict(curve))
    _write_page(pipeline, f"learning-curve-{domain}", [learning_curve_section(curve)])
    return curve


def judge_run(pipeline: Pipeline) -> Judging:
    """Have a language model grade what the evaluation's systems find; written beside the reports.

    Raises:
        WriterError: the model cannot answer, or nothing that it answers is a grade. What it has graded is
            kept, and the same call goes on there.
        DatasetError: no domain has a test split.
    """
    judge, evaluation, sets = open_judge(pipeline), pipeline.evaluation, []
    for collection, pool in _pools(pipeline):
        grades = judge.grade(collection.name, pool.asked)
        if not any(pair.key in grades.by_pair for pair in pool.pairs.values()):
            told = ", ".join(f"{reason}: {count}" for reason, count in grades.dropped.items())
            raise WriterError(
                f"{judge.field}: none of {len(pool.pairs)} pairs of {collection.name} has a grade ({told}); "
                "it must answer with a digit from 0 to 3: name a better model, or raise judging.max_tokens"
            )
        tokens = judge.tokens(collection.name)
        sets.append(judged_set(pool, grades, tokens, evaluation, collection.uncut.qrels("test")))
    judging = summarise(judge.identity(), sets, evaluation)
    _write_json(pipeline, "judging.json", judging.as_dict())
    _write_page(pipeline, "judging", judging_sections(judging))
    return judging


def estimate_judging(pipeline: Pipeline) -> dict[str, Estimate]:
    """What ``judge_run`` would ask for each test set; nothing is asked.

    Raises:
        RecipeError: an expert is not trained, so that nobody knows what it finds.
    """
    judge = open_judge(pipeline)
    require_trained(pipeline)
    return {
        collection.name: judge.estimate(collection.name, pool.asked) for collection, pool in _pools(pipeline)
    }


def open_judge(pipeline: Pipeline) -> Judge:
    """The recipe's judge.

    Raises:
        WriterError: it cannot grade; the message says what to do.
    """
    recipe = pipeline.recipe
    field = "judging.writer" if recipe.judging.writer else "generation.writer"
    writer = recipe.judging.writer or recipe.generation.writer
    judge = Judge(pipeline.store, writer, recipe.judging.max_tokens, field)
    judge.check()
    return judge


def _pools(pipeline: Pipeline) -> Iterator[tuple[Collection, Pool]]:
    for collection in pipeline.workspace.tested:
        yield collection, make_pool(pipeline.evaluation, collection, pipeline.recipe.judging)


def _sample_step(pipeline: Pipeline, domain: str, size: int | None, number: int) -> TrainAdapter:
    """The step that trains a domain's expert on a sample, or on all queries, with another seed each."""
    workspace = pipeline.workspace
    training = _with_seed(pipeline.recipe.training, number)
    name = domain if size is None else f"{domain}-{size}-queries"
    key = ""
    if size is not None:
        own = workspace.source(domain)
        own_key = expert_key(own.collection, workspace.encoder, training, own.lexical)
        key = f"experts/{name}-{content_hash(own_key, size)}"
    if number:
        name = f"{name}-seed-{training.seed}"
    sample = workspace.source(domain, train_limit=size)
    return expert_step(sample, workspace.encoder, training, name, key)


def _with_seed(training: TrainingSettings, number: int) -> TrainingSettings:
    return training.model_copy(update={"seed": training.seed + number})


def offline_evaluator(pipeline: Pipeline, collections: Sequence[Collection], split: str) -> OfflineEvaluator:
    """Routers can be fitted and measured on a split by this, without running an expert."""
    experts, workspace, recipe = pipeline.method(Experts), pipeline.workspace, pipeline.recipe
    scores = experts.split_scores(split, [each.name for each in collections])
    return OfflineEvaluator(
        **vars(experts.mixed_vectors(scores, split)),
        fit_data=experts.routing_data,
        features=lambda settings: workspace.features(scores, split, settings.features),
        identity=content_hash(
            {name: expert.version for name, expert in experts.experts.items()},
            {name: workspace.corpus_step(name).key for name in scores},
            [each.split_hash(split) for each in collections],
            [each.split_hash(experts.source_split) for each in pipeline.expert_collections],
            recipe.scoring.source,
            recipe.corpus.index.model_dump(),
        ),
    )


def _portable(pipeline: Pipeline, bench: OfflineEvaluator) -> OfflineEvaluator:
    """The same for workers, with the features of the recipe's router and the paper's alone."""
    kinds = (pipeline.recipe.routing, PAPERS)
    experts = pipeline.method(Experts)
    data = {
        (one.features, one.include_base): replace(experts.routing_data(one), answered=None) for one in kinds
    }
    features = {one.features: bench.features(one) for one in kinds}
    return replace(
        bench,
        fit_data=lambda settings: data[settings.features, settings.include_base],
        features=lambda settings: features[settings.features],
    )


def _test_scores(pipeline: Pipeline, domain: str, steps: Sequence[TrainAdapter]) -> ScoreTable:
    workspace = pipeline.workspace
    models = [ScoredModel.base(workspace.encoder), *(ScoredModel.expert(step.name, step) for step in steps)]
    return workspace.scores(workspace.score_steps("test", models, [domain]))


def _studied(pipeline: Pipeline, domain: str) -> Collection:
    known = pipeline.recipe.expert_domains
    if domain not in known:
        raise RecipeError(f"domain: no expert {domain!r}; there are {', '.join(known)}")
    collection = pipeline.collections[domain]
    if "test" not in collection.splits():
        raise RecipeError(f"domain: {collection.folder} has no test split to measure on; choose another")
    return collection


def _write_page(pipeline: Pipeline, name: str, sections: list[Section]) -> None:
    path = pipeline.report_folder / f"{name}.html"
    log.info("wrote %s", write_sections(f"{pipeline.recipe.name}: {name}", sections, path))


def _write_json(pipeline: Pipeline, name: str, content: Any) -> None:
    pipeline.report_folder.mkdir(parents=True, exist_ok=True)
    path = pipeline.report_folder / name
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")
    log.info("wrote %s", path)
