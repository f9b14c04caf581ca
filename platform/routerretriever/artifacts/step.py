"""Steps: artifacts that can be made, and the one way to make those that are missing.

A step is a name, a key and inputs. The key is the hash of everything the artifact depends on, so a step
whose settings or inputs change is another step. ``plan``, ``run`` and ``--dry-run`` all read the same steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Self, TypeVar

from routerretriever.artifacts.store import ArtifactStore, build_keys
from routerretriever.errors import ArtifactDamaged, ArtifactMissing, RouterRetrieverError
from routerretriever.runtime.progress import log

S = TypeVar("S", bound="Step")
K = TypeVar("K")

Timed = Callable[[str], AbstractContextManager[None]]
"""Given a stage, a context manager around its work."""

_WALKS = 5


class Status(Enum):
    """What there is of an artifact. The values are words for people."""

    PRESENT = "there already"
    DAMAGED = "damaged, made again"
    STARTED = "goes on where an interrupted run stopped"
    MISSING = "to be made"


@dataclass(frozen=True, kw_only=True, eq=False)
class Step(ABC):
    """One artifact that can be made.

    Subclasses are small frozen dataclasses (``kw_only=True, eq=False``) that hold what they need to build:
    settings and the keys of inputs. Two steps with the same key are the same step.
    """

    stage: ClassVar[str]
    """``encode``, ``train``, ``score`` ...: the heading in the plan, in progress and in timings."""
    builds_inputs: ClassVar[bool] = False
    """Whether ``build_all`` takes steps together with inputs of their own class, which come first."""

    name: str
    """What is made, for people: a domain, an expert."""
    key: str
    """Where the artifact lies in the store; ends in a hash of all that it is made from."""
    inputs: tuple[Step, ...] = ()
    """Steps whose artifacts ``build_all`` reads."""

    def status(self, store: ArtifactStore) -> Status:
        """What there is of the artifact; changes nothing. Files seen before are not read again."""
        try:
            store.fetch(self.key)
        except ArtifactMissing:
            return Status.STARTED if self.is_started(store) else Status.MISSING
        except ArtifactDamaged:
            return Status.DAMAGED
        return Status.PRESENT

    def is_started(self, store: ArtifactStore) -> bool:
        """Whether an interrupted run has left something that ``build_all`` goes on from."""
        return bool(store.unfinished(self.key))

    def work(self) -> str:
        """How much there is to do, for people: ``5183 documents in 3 shards``; may be empty."""
        return ""

    def asks_for(self) -> str:
        """The resources that it needs, for people: ``2 workers of 1 CPU``; may be empty."""
        return ""

    @classmethod
    @abstractmethod
    def build_all(cls, steps: Sequence[Self], store: ArtifactStore) -> None:
        """Make and commit the artifacts of these steps together, as in one Ray Data run.

        Called with a lease on each, for missing ones only, when all inputs are present, except those that
        ``builds_inputs`` is about: they are among these steps, or another run makes them. Files that an
        interrupted run has left at a key may be kept.
        """


def alike(steps: Sequence[S], kind: Callable[[S], K]) -> list[tuple[K, list[S]]]:
    """Steps that can be made together, each group with its kind, in the order of their first members.

    Kinds are told apart by comparison: settings that hold labels have no hash.
    """
    groups: list[tuple[K, list[S]]] = []
    for step in steps:
        own = kind(step)
        members = next((members for known, members in groups if known == own), None)
        if members is None:
            groups.append((own, [step]))
        else:
            members.append(step)
    return groups


def build_missing(steps: Iterable[Step], store: ArtifactStore, timed: Timed | None = None) -> None:
    """Make what is missing of these steps and of all their inputs; returns when all is present and sound.

    Inputs come first. Steps of one class that are ready together are built together. An artifact that
    another run is making is waited for. A damaged one is reopened and made again, and so is an input that
    turns out damaged, or is taken away, while others are built from it.

    Args:
        steps: what is wanted.
        store: where artifacts lie.
        timed: is entered with a step's stage around its verification, waiting and work.

    Raises:
        RouterRetrieverError: a step failed, and its inputs are not to blame.
    """
    groups = groups_in_order(steps)
    for _ in range(_WALKS):
        # Walk until nothing is missing on the way: other runs may reopen what they find damaged at any time.
        if _all_present(groups, store, timed or _untimed):
            return
    raise ArtifactMissing(
        f"{store.uri}: artifacts were made {_WALKS} times and are damaged or gone again; check the disk, and "
        "whether something else deletes files here"
    )


def _all_present(groups: Sequence[Sequence[Step]], store: ArtifactStore, timed: Timed) -> bool:
    """Walk the groups once and build what is missing; returns whether nothing was."""
    all_present = True
    for group in groups:
        by_key = {step.key: step for step in group}
        begun: set[str] = set()

        def build(keys: list[str], by_key: dict[str, Step] = by_key, begun: set[str] = begun) -> None:
            begun.update(keys)
            steps = [by_key[key] for key in keys]
            type(steps[0]).build_all(steps, store)

        try:
            with timed(group[0].stage):
                all_present &= not build_keys(store, list(by_key), build)
        except RouterRetrieverError as error:
            # Inputs that were being built with the others are not why these failed: they are what failed.
            inputs = {each.key: None for step in group for each in step.inputs if each.key not in begun}
            unsound = [key for key in inputs if not store.verify(key)]
            if not unsound:
                raise
            log.warning("%s; %s must be made again first", error, ", ".join(unsound))
            return False
    return all_present


def in_order(steps: Iterable[Step]) -> list[Step]:
    """Steps and all their inputs, each key once, inputs first."""
    ordered: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.key not in ordered:
            for each in step.inputs:
                visit(each)
            ordered[step.key] = step

    for step in steps:
        visit(step)
    return list(ordered.values())


def groups_in_order(steps: Iterable[Step]) -> list[list[Step]]:
    """Steps and all their inputs in groups of one class, each group after the inputs of its members.

    A class waits while more of its steps can still become ready, so that groups are few and large: scores
    of the base alone could be made before any expert is trained, but are made with all other scores.
    """
    waiting = in_order(steps)
    done: set[str] = set()
    groups: list[list[Step]] = []
    while waiting:
        ready: dict[type[Step], list[Step]] = {}
        blocked: set[type[Step]] = set()
        for step in waiting:
            beside = {one.key for one in ready.get(type(step), ())} if step.builds_inputs else set()
            if all(each.key in done or each.key in beside for each in step.inputs):
                ready.setdefault(type(step), []).append(step)
            else:
                blocked.add(type(step))
        chosen = next((kind for kind in ready if kind not in blocked), next(iter(ready)))
        groups.append(ready[chosen])
        done |= {step.key for step in ready[chosen]}
        waiting = [step for step in waiting if step.key not in done]
    return groups


def _untimed(stage: str) -> AbstractContextManager[None]:
    return nullcontext()
