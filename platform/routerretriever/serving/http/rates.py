"""How much a client may ask for in a minute."""

from __future__ import annotations

import time
from collections.abc import Callable


class Allowance:
    """So much a minute, of which a minute's worth can be saved up (a token bucket). Used by one thread."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        """It begins full.

        Args:
            per_minute: what comes in each minute, and the most that can be saved up.
            clock: gives the time in seconds.
        """
        self.per_minute = per_minute
        self._clock = clock
        self._left = float(per_minute)
        self._counted_at = clock()

    def take(self, amount: int, replicas: int = 1) -> float:
        """Take an amount, or nothing if there is too little; the seconds until there is enough, else 0.

        More than a minute's worth can be taken once a minute's worth is there; the rest is owed.

        Args:
            amount: what is asked for.
            replicas: how many allowances share the rate: each reckons that the others let as much pass.
        """
        amount *= replicas
        now = self._clock()
        per_second = self.per_minute / 60
        self._left = min(self.per_minute, self._left + (now - self._counted_at) * per_second)
        self._counted_at = now
        missing = min(amount, self.per_minute) - self._left
        if missing > 0:
            return missing / per_second
        self._left -= amount
        return 0.0

    def give_back(self, amount: int, replicas: int = 1) -> None:
        """Undo the taking of an amount."""
        self._left = min(self.per_minute, self._left + amount * replicas)
