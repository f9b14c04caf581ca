"""What a language model is here, what a writer of queries is, and what a teacher that reads them is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from routerretriever.generation.prompts import Prompt, Request
from routerretriever.types import Scores

_THINKING = "still thinking"


def still_thinking(tokens: int) -> str:
    """The problem of an answer that ended, after so many tokens, before it had begun."""
    return f"{_THINKING} after {tokens} tokens"


def remedy(problems: Iterable[str], setting: str, writer: str) -> str | None:
    """What to do if every answer ended before it had begun; None if they have failed otherwise.

    Args:
        problems: of all answers.
        setting: how long an answer may be.
        writer: where the model's settings stand in the recipe.
    """
    told = list(problems)
    if not told or not all(problem.startswith(_THINKING) for problem in told):
        return None
    return (
        f"raise {setting}, to 2000 perhaps, or keep the model from thinking, as by {writer}.extra_body: "
        "{reasoning_effort: none}"
    )


@dataclass(frozen=True)
class Answer:
    """What a language model made of one prompt."""

    text: str
    tokens: int = 0
    """Read and written."""
    problem: str = ""
    """Why there is no answer, in a few words."""
    passing: bool = False
    """Whether another time there may be one: the endpoint was away, or too busy."""


class LanguageModel(Protocol):
    """Answers prompts."""

    def check(self) -> None:
        """Make sure that it can answer, before any worker starts.

        Raises:
            WriterError: it cannot; the message says what to do.
        """

    def answer(self, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Answer]]:
        """Gives each prompt's number and its answer, as soon as it is there.

        Raises:
            WriterError: nothing more can be answered. What was given before stands.
        """


@dataclass(frozen=True)
class Written:
    """What came of one request."""

    query: str
    """Empty if there is a problem."""
    tokens: int = 0
    """Read and written."""
    problem: str = ""
    """Why there is no query, in a few words; rows are counted by it."""
    passing: bool = False
    """Whether another time there may be one."""


class Writer(Protocol):
    """Writes queries about documents."""

    def check(self) -> None:
        """Make sure that it can write, before any worker starts.

        Raises:
            WriterError: it cannot; the message says what to do.
        """

    def write(self, requests: Sequence[Request]) -> Iterator[tuple[int, Written]]:
        """Write the queries; gives each request's number and what came of it, as soon as it is there.

        Raises:
            WriterError: nothing more can be written. What was given before stands.
        """


class Teacher(Protocol):
    """Reads query and document together, and scores how well they fit."""

    @property
    def depth(self) -> int:
        """How many of a search's first documents it is asked about."""

    def check(self) -> None:
        """Make sure that it can score, before any query is written.

        Raises:
            TeacherError: it cannot; the message says what to do.
        """

    def identity(self) -> dict[str, Any]:
        """What its scores depend on."""

    def score(self, queries: Sequence[str], documents: Sequence[Sequence[str]]) -> list[Scores]:
        """Each query's scores of its own documents [D], in their order, on any scale.

        Raises:
            TeacherError: they cannot be had.
        """
