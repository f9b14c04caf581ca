"""Training one expert with looked-up documents, against sentence-transformers with the same LoRA.

    python -m jobs.benchmarks.training_step jobs/recipes/collections.yaml --domain scifact

The peer is what one would write without this project: SentenceTransformerTrainer, in-batch negatives, PEFT's
LoRA with the recipe's settings, documents encoded in every step. Both train the same number of queries per
step, in fp32, on as many threads as the recipe gives a worker. The peer then trains for as long as ours took,
and both are measured on dev; the peer with documents encoded by its own tower, which its time leaves out.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from routerretriever.adapters.lora import ALL_LINEAR, LoraSettings
from routerretriever.config.loading import load_recipe
from routerretriever.config.recipe import Recipe
from routerretriever.datasets.collection import Collection
from routerretriever.encoder.card import read_card
from routerretriever.encoder.settings import EncoderSettings
from routerretriever.encoder.source import encoder_folder
from routerretriever.measures import mean_ndcg
from routerretriever.methods.experts import Experts
from routerretriever.pipeline.pipeline import Pipeline
from routerretriever.reports.tables import percent
from routerretriever.runtime.progress import log, set_up
from routerretriever.training.settings import TrainingSettings

from jobs.benchmarks.measure import report


def main(
    recipe: Path,
    domain: Annotated[str, typer.Option(help="The domain to train.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps of ours.")] = 100,
    measure_peer: Annotated[
        bool, typer.Option(help="Encode the corpus with the peer's tower to measure its dev nDCG@10.")
    ] = True,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
) -> None:
    """Train both, show seconds per step and dev nDCG@10 after the same time."""
    set_up(quiet=True)
    settings = load_recipe(recipe, overrides)
    training = settings.training.model_copy(
        # As one adapter alone: folds of a cross-validation would be trained beside it, and slow it down.
        update={
            "max_steps": steps,
            "evaluate_every": steps,
            "precision": "fp32",
            "selection": "best_step",
        }
    )
    settings = settings.model_copy(
        update={"domains": {domain: settings.domains[domain]}, "training": training}
    )
    pipeline = Pipeline(settings)
    ours = pipeline.method(Experts).experts[domain].card
    look = _dev_look_seconds(settings, pipeline, domain)
    step_seconds = (ours["seconds"] - look) / ours["steps"]
    log.info("ours: %.2f s a step, dev %.4f", step_seconds, ours["dev_ndcg_at_10"])

    resolved = read_card(settings.encoder).settings
    peer = Peer(resolved, training)
    peer_seconds = peer.train(pipeline.collections[domain], budget_seconds=steps * step_seconds)
    log.info("peer: %.2f s a step, %d steps", peer_seconds / peer.steps, peer.steps)
    peer_dev = peer.dev_ndcg(pipeline.collections[domain]) if measure_peer else None
    ratio = (peer_seconds / peer.steps) / step_seconds
    rows = [
        ["ours", f"{step_seconds:.2f}", str(ours["steps"]), percent(ours["dev_ndcg_at_10"])],
        ["sentence-transformers", f"{peer_seconds / peer.steps:.2f}", str(peer.steps), percent(peer_dev)],
        ["base, untrained", "", "0", percent(ours["base_dev_ndcg_at_10"])],
        ["ratio", f"{ratio:.1f}", "", ""],
    ]
    report(
        f"training-step-{domain}",
        f"{domain}: batches of {training.batch_size} queries, documents up to "
        f"{resolved.document_max_length} tokens",
        ["trainer", "seconds a step", "steps", "dev nDCG@10 x 100"],
        rows,
        {
            "domain": domain,
            "recipe": settings.model_dump(mode="json"),
            "ours": {"seconds_per_step": step_seconds, "steps": ours["steps"], "dev": ours["dev_ndcg_at_10"]},
            "peer": {"seconds_per_step": peer_seconds / peer.steps, "steps": peer.steps, "dev": peer_dev},
            "ratio": ratio,
        },
    )


def _dev_look_seconds(recipe: Recipe, pipeline: Pipeline, domain: str) -> float:
    """What the single look at dev cost that our time includes: encoding the dev queries."""
    from routerretriever.adapters.tower import load_tower

    torch.set_num_threads(_threads(recipe.training))
    encoder = load_tower(recipe.encoder)
    encoder.add_adapter("expert", recipe.training.adapter)
    queries = list(pipeline.collections[domain].queries("dev").values())[: recipe.training.dev_queries]
    start = time.monotonic()
    encoder.encode_queries(queries, "expert")
    return time.monotonic() - start


def _threads(training: TrainingSettings) -> int:
    # Ray gives a worker as many OpenMP threads as it has CPUs.
    return max(1, int(training.cpus_per_worker))


class Peer:
    """sentence-transformers and PEFT, used plainly."""

    def __init__(self, encoder: EncoderSettings, training: TrainingSettings) -> None:
        from peft import LoraConfig, TaskType
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Normalize, Pooling, Transformer

        torch.set_num_threads(_threads(training))
        transformer = Transformer(str(encoder_folder(encoder)), max_seq_length=encoder.document_max_length)
        modules = [transformer, Pooling(transformer.get_word_embedding_dimension(), encoder.pooling)]
        if encoder.similarity == "cosine":
            modules.append(Normalize())
        self._model = SentenceTransformer(modules=modules)
        lora = training.adapter
        assert isinstance(lora, LoraSettings), "the peer trains LoRAs"
        targets = list(lora.target_modules)
        self._model.add_adapter(
            LoraConfig(
                task_type=TaskType.FEATURE_EXTRACTION,
                r=lora.rank,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=ALL_LINEAR if targets == [ALL_LINEAR] else targets,
            )
        )
        self._training = training
        self.steps = 0

    def train(self, collection: Collection, budget_seconds: float) -> float:
        """Train until the time is spent, at least three steps; returns the seconds, without set-up."""
        from datasets import Dataset
        from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
        from sentence_transformers.losses import MultipleNegativesRankingLoss
        from transformers import TrainerCallback

        texts = {document.id: document.content for document in collection.documents()}
        queries, qrels = collection.queries("train"), collection.qrels("train")
        pairs = [
            {"anchor": queries[query], "positive": texts[document]}
            for query, judged in qrels.items()
            for document, grade in judged.items()
            if grade > 0
        ]
        outer = self

        class Clock(TrainerCallback):
            started = 0.0

            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                self.started = time.monotonic()

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                outer.steps = state.global_step
                control.should_training_stop = (
                    state.global_step >= 3 and time.monotonic() - self.started >= budget_seconds
                )

        clock = Clock()
        with tempfile.TemporaryDirectory() as scratch:
            trainer = SentenceTransformerTrainer(
                model=self._model,
                args=SentenceTransformerTrainingArguments(
                    output_dir=scratch,
                    max_steps=self._training.max_steps or 100,
                    per_device_train_batch_size=self._training.batch_size,
                    learning_rate=self._training.learning_rate,
                    weight_decay=self._training.weight_decay,
                    warmup_steps=0,
                    seed=self._training.seed,
                    save_strategy="no",
                    logging_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                    dataloader_pin_memory=False,
                ),
                train_dataset=Dataset.from_list(pairs),
                loss=MultipleNegativesRankingLoss(self._model, scale=1 / self._training.temperature),
                callbacks=[clock],
            )
            trainer.train()
        return time.monotonic() - clock.started

    def dev_ndcg(self, collection: Collection) -> float:
        """Dev nDCG@10 with queries and documents both encoded by the trained tower."""
        ids, texts = zip(*((d.id, d.content) for d in collection.documents()), strict=True)
        queries = collection.queries("dev")
        documents_Nd = self._model.encode(list(texts), batch_size=64, show_progress_bar=False)
        queries_Bd = self._model.encode(list(queries.values()), batch_size=64, show_progress_bar=False)
        scores_BN = np.asarray(queries_Bd) @ np.asarray(documents_Nd).T
        run = {}
        for query, scores in zip(queries, scores_BN, strict=True):
            best = np.argsort(-scores)[:10]
            run[query] = {ids[row]: float(scores[row]) for row in best}
        return mean_ndcg(collection.qrels("dev"), run)


if __name__ == "__main__":
    typer.run(main)
