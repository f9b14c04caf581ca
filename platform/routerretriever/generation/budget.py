"""A budget of tokens, which many requests at a time may draw on."""

from __future__ import annotations

from threading import Lock

from routerretriever.errors import WriterError


class Budget:
    """Tokens that may still be spent. What a request may need at most is set aside before it is sent."""

    def __init__(self, tokens: int | None, spent: int, field: str) -> None:
        """Begin with what earlier runs have spent.

        Args:
            tokens: that may be spent on a collection; None for any number.
            spent: by earlier runs.
            field: where the model's settings stand in the recipe, for messages.
        """
        self._tokens, self._spent, self._field, self._lock = tokens, spent, field, Lock()

    def reserve(self, tokens: int) -> None:
        """Set aside what one request may need at most.

        Raises:
            WriterError: so much is not left.
        """
        with self._lock:
            if self._tokens is not None and self._spent + tokens > self._tokens:
                raise WriterError(
                    f"{self._field}.token_budget: {self._tokens} tokens, {self._spent} of them spent or "
                    f"set aside: the next request may need {tokens}. What was answered is kept: raise the "
                    "budget, or ask for less, and run the same command again"
                )
            self._spent += tokens

    def settle(self, reserved: int, used: int) -> None:
        """Give back what a request did not need."""
        with self._lock:
            self._spent += used - reserved
