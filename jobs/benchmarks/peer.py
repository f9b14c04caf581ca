"""sentence-transformers' ``encode`` in a process of its own, as a replica of the service has one."""

from __future__ import annotations

import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from routerretriever.config.recipe import Recipe
from routerretriever.encoder.settings import EncoderSettings

from jobs.benchmarks.load import Load


@contextmanager
def encoding_peer(recipe: Recipe, batches: Sequence[list[str]]) -> Iterator[Callable[[float], Load]]:
    """The recipe's base encoder, with the precision and the threads of a router replica.

    Gives what encodes the batches, in turns, for so many seconds; a batch counts as an answer.
    """
    serving = recipe.serving
    threads = max(1, int(serving.router.cpus))  # as Ray gives a replica
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    arguments = (there, recipe.encoder, serving.engine.precision, threads, batches)
    process = context.Process(target=_child, args=arguments, daemon=True)
    process.start()
    there.close()  # so that a child that ends is noticed, where it would be waited for
    here.recv()

    def encode(seconds: float) -> Load:
        here.send(seconds)
        took, milliseconds = here.recv()
        return Load(took, milliseconds, [], max(milliseconds) / 1000)

    try:
        yield encode
    finally:
        here.send(None)
        process.join()


def _child(
    connection: Connection,
    encoder: EncoderSettings,
    precision: str,
    threads: int,
    batches: Sequence[list[str]],
) -> None:
    import torch
    from routerretriever.adapters.tower import load_tower
    from routerretriever.encoder.export import save_sentence_transformer
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        save_sentence_transformer(load_tower(encoder), Path(folder))
        model = SentenceTransformer(folder, device="cpu")
    if precision == "bf16":
        model.bfloat16()
    turns = itertools.cycle(batches)
    connection.send("ready")
    while (seconds := connection.recv()) is not None:
        milliseconds: list[float] = []
        start = time.perf_counter()
        while (begun := time.perf_counter()) - start < seconds:
            model.encode(next(turns), prompt_name="query", show_progress_bar=False)
            milliseconds.append((time.perf_counter() - begun) * 1000)
        connection.send((time.perf_counter() - start, milliseconds))
