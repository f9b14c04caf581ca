"""The adapters of one training run: which wait, which group of workers trains which, how far they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_LOST = "its worker was lost, as happens when a machine runs out of memory or goes"


@dataclass
class Course:
    """How far an adapter has come."""

    begun: bool = False
    step: int = 0
    total_steps: int = 0
    """At most."""
    best_dev: float = 0.0
    """Best nDCG@10 on dev so far."""
    steps_taken: int = 0
    """Those that were taken again after a loss count again."""
    restarts: int = 0
    """How often it was begun again, from its last checkpoint."""
    finished: bool = False
    """Trained and kept."""
    failed: str | None = None
    """Why it was given up."""


class TrainingQueue:
    """Hands adapters, by name, to groups of workers; a group that lost its workers gets its adapter again.

    Lives in a Ray actor. Knows no models, so the actor starts at once.
    """

    def __init__(self, names: Sequence[str], max_failures: int) -> None:
        """Queue adapters, each to be begun again at most ``max_failures`` times."""
        self._waiting = list(names)
        self._held: dict[int, str] = {}
        self._max_failures = max_failures
        self._courses = {name: Course() for name in names}

    def take(self, group: int) -> str | None:
        """The adapter that the group has begun and not ended, or its next; None if nothing is left."""
        held = self._held.get(group)
        if held is not None and self._courses[held].restarts < self._max_failures:
            self._courses[held].restarts += 1
            return held
        self.fail(group, _LOST, final=True)
        if not self._waiting:
            return None
        name = self._held[group] = self._waiting.pop(0)
        self._courses[name].begun = True
        return name

    def advance(self, group: int, step: int, total_steps: int, best_dev: float) -> None:
        """Note how far a group's adapter has come."""
        course = self._courses[self._held[group]]
        course.steps_taken += max(0, step - course.step)
        course.step, course.total_steps, course.best_dev = step, total_steps, best_dev

    def finish(self, group: int) -> None:
        """Note that a group's adapter is trained and kept."""
        self._courses[self._held.pop(group)].finished = True

    def fail(self, group: int, reason: str, final: bool) -> bool:
        """Note that a group's adapter, if it has one, met an error.

        Args:
            group: whose.
            reason: for people.
            final: trying again would end the same.

        Returns:
            Whether the group has anything left to do.
        """
        held = self._held.get(group)
        if held is not None and (final or self._courses[held].restarts >= self._max_failures):
            self._courses[held].failed = reason
            del self._held[group]
        return group in self._held or bool(self._waiting)

    def courses(self) -> dict[str, Course]:
        """How far all adapters are, by name."""
        return self._courses
