"""Texts to token ids: prompts, lengths, what is cut, and which texts are run together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from routerretriever.encoder.settings import EncoderSettings

CHARACTERS_PER_TOKEN = 1000
"""More than any text has on average, runs of spaces and words of no known piece among them."""


class TextReader:
    """Queries and documents as an encoder reads them."""

    def __init__(self, tokenizer: Any, settings: EncoderSettings, positions: int | None) -> None:
        """Nothing is read yet.

        Args:
            tokenizer: a Hugging Face tokenizer, or what is called like one.
            settings: prompts and lengths, none left open.
            positions: of the model; None if any length will do.
        """
        self.tokenizer = tokenizer
        self.pad_token = int(tokenizer.pad_token_id or 0)
        self._settings = settings
        self._positions = positions

    def queries(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Token ids of each query, unpadded; of ``max_length`` beside the prompt, if that is given."""
        limit = self.limit(documents=False)
        if max_length is not None:
            limit = min(max_length + self.prompt_tokens, limit)
        return self._read([f"{self._settings.query_prompt}{text}" for text in texts], limit)

    def documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each document, unpadded."""
        prompted = [f"{self._settings.document_prompt}{text}" for text in texts]
        return self._read(prompted, self.limit(documents=True))

    def limit(self, documents: bool) -> int:
        """Tokens that are read of a query or a document, its prompt among them."""
        if documents:
            assert self._settings.document_max_length is not None
            return self._settings.document_max_length
        assert self._settings.query_max_length is not None
        # A prompt takes nothing from what a query may have, as far as there are positions.
        prompted = self._settings.query_max_length + self.prompt_tokens
        return prompted if self._positions is None else min(prompted, self._positions)

    def are_cut(self, texts: Sequence[str], rows: Sequence[Sequence[int]], documents: bool) -> list[bool]:
        """Which texts are longer than what is read of them; see ``Encoder.are_cut``."""
        prompt = self._settings.document_prompt if documents else self._settings.query_prompt
        limit = self.limit(documents)
        # One that is as long as it may be ended there, or was cut: with room for one more it tells.
        full = [position for position, row in enumerate(rows) if len(row) >= limit]
        longer = self._read([f"{prompt}{texts[position]}" for position in full], limit + 1)
        cut = [False] * len(texts)
        for position, row in zip(full, longer, strict=True):
            cut[position] = len(row) > limit
        return cut

    @cached_property
    def prompt_tokens(self) -> int:
        """Tokens that the query prompt adds to a query."""
        prompt = self._settings.query_prompt
        if not prompt:
            return 0
        long = 4 * len(prompt) + 16
        bare, prompted = (self._read([text], long)[0] for text in ("a", prompt + "a"))
        return max(0, len(prompted) - len(bare))

    @cached_property
    def prompt(self) -> slice:
        """Where the prompt stands in a query's tokens: after the special ones that open a text."""
        # What two texts have in common need not be special: T5's tokenizers may put a space before both.
        nothing, text = self._read(["", "a"], 16)
        both = enumerate(zip(nothing, text, strict=False))
        opening = next((place for place, (one, other) in both if one != other), len(nothing))
        return slice(opening, opening + self.prompt_tokens)

    def _read(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        if not texts:
            return []
        # A book is not tokenised to its end for what is read of it.
        most = max_length * CHARACTERS_PER_TOKEN
        tokens = self.tokenizer(
            [text[:most] for text in texts],
            truncation=True,
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return list(tokens["input_ids"])


def batches(rows: Sequence[Sequence[int]], most: float, most_padding: float) -> Iterator[list[int]]:
    """Positions of texts to be run together, of like length.

    Args:
        rows: token ids of each text.
        most: texts in a batch.
        most_padding: padding tokens in a batch.
    """
    # Longest first: a batch that does not fit in memory fails at the start, not after an hour.
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    batch: list[int] = []
    padding = 0
    for row in order:
        padding += len(rows[batch[0]]) - len(rows[row]) if batch else 0
        if batch and (len(batch) == most or padding > most_padding):
            yield batch
            batch, padding = [], 0
        batch.append(row)
    if batch:
        yield batch
