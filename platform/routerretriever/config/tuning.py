"""The search over how experts are trained: which settings are tried. ``tune-training`` runs it."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, PositiveInt, ValidationError

from routerretriever.adapters.kinds import kind_named
from routerretriever.settings import Settings
from routerretriever.training.settings import TrainingSettings

Values = dict[str, Any]
"""What a trial puts in the place of the recipe's ``training``, by dotted name: ``{"adapter.rank": 16}``."""

_THE_SAME = frozenset(
    (
        "evaluate_every", "dev_queries", "held_out_fraction", "seed", "selection", "cross_validate_below",
        "scales", "confidence", "workers", "cpus_per_worker", "gpus_per_worker", "labels", "at_once",
        "max_failures",
    )
)  # fmt: skip
"""Without these, trials could not be compared; or they change no trial."""


class TuningSettings(Settings):
    """Which training settings ``tune-training`` tries, and when it ends a trial early."""

    space: dict[str, Any] | None = None
    """Values to try, in the form of ``training`` with a list in place of each value, as
    ``{learning_rate: [0.001, 0.003], adapter: {rank: [4, 8]}}``. By default values around the recipe's own:
    0.3, 1 and 3 times the learning rate; half, the same and twice the rank of a LoRA; distillation off and
    on, unless a teacher is of use for it alone; the same and twice the steps."""
    trials: PositiveInt = 9
    """Combinations that are tried at most, a random choice of all; beside them the recipe's own settings."""
    seed: int = 0
    """Seed of this choice."""
    grace_evaluations: PositiveInt = 2
    """Evaluations on dev before a trial can be ended early."""
    reduction: Annotated[float, Field(gt=1)] = 3.0
    """One in so many trials goes on at each of ASHA's decisions, which become rarer by the same factor."""

    def draw(self, training: TrainingSettings) -> list[tuple[Values, TrainingSettings]]:
        """The trials, the recipe's own settings first; the same at every call.

        Args:
            training: the recipe's.

        Raises:
            ValueError: the space is empty, or holds a setting or a value that training does not know.
        """
        space = _around(training) if self.space is None else dict(_choices(self.space))
        if not space:
            raise ValueError("tuning.space: empty; name one setting or more, or leave it out for the default")
        for name, choices in space.items():
            for value in choices:
                _check(training, name, value)
        drawn = {training.model_dump_json(): (Values(), training)}
        every = math.prod(len(choices) for choices in space.values())
        # In a random order, and more than are wanted: some are the same, or the recipe's own.
        for number in random.Random(self.seed).sample(range(every), min(every, 2 * self.trials)):
            if len(drawn) > self.trials:
                break
            values = _combination(space, number)
            try:
                changed = with_values(training, values)
            except ValidationError as error:
                raise ValueError(f"tuning.space: {_reason(error)} ({describe(values)})") from None
            drawn.setdefault(changed.model_dump_json(), (values, changed))
        return list(drawn.values())


def with_values(training: TrainingSettings, values: Mapping[str, Any]) -> TrainingSettings:
    """Training settings with others in the place of some.

    Raises:
        ValidationError: a value is none of its setting's.
        KeyError: there is no such setting.
    """
    content = training.model_dump(mode="json")
    for dotted, value in values.items():
        *groups, name = dotted.split(".")
        node = content
        for group in groups:
            node = node[group]
        if name not in node:
            raise KeyError(dotted)
        node[name] = value
    # Through JSON, so that the strict check still takes a list where a tuple is meant.
    return TrainingSettings.model_validate_json(json.dumps(content), strict=True)


def describe(values: Mapping[str, Any]) -> str:
    """A trial's settings in a few words."""
    return ", ".join(f"{name} {_short(value)}" for name, value in values.items()) or "as the recipe"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value).replace('"', "")


def _around(training: TrainingSettings) -> dict[str, list[Any]]:
    """The default space; every value is valid for every kind of adapter."""
    rate = training.learning_rate
    space: dict[str, list[Any]] = {
        "learning_rate": [float(f"{rate * factor:.3g}") for factor in (0.3, 1, 3)],
    }
    if training.teacher is None or training.mask_above is not None:  # else it would be of no use
        space["distillation"] = sorted({0.0, training.distillation or 1.0})
    tried = kind_named(training.adapter.kind).worth_trying(training.adapter)
    space |= {f"adapter.{name}": values for name, values in tried.items()}
    for limit in ("max_steps", "max_epochs"):
        if own := getattr(training, limit):
            space[limit] = [own, 2 * own]
    return space


def _choices(space: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    """The lists of a space by dotted name."""
    for key, value in space.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _choices(value, f"{name}.")
        elif not isinstance(value, list):
            raise ValueError(f"tuning.space.{name}: found {value!r}; give a list of values to try")
        elif not value:
            raise ValueError(f"tuning.space.{name}: an empty list; give the values to try")
        else:
            yield name, value


def _check(training: TrainingSettings, name: str, value: Any) -> None:
    field = f"tuning.space.{name}"
    if name in _THE_SAME:
        raise ValueError(f"{field}: the same for all trials; set training.{name} instead")
    try:
        with_values(training, {name: value})
    except (KeyError, TypeError):
        raise ValueError(f"{field}: training has no such setting") from None
    except ValidationError as error:
        raise ValueError(f"{field}: {_reason(error)} (found {value!r})") from None


def _combination(space: Mapping[str, list[Any]], number: int) -> Values:
    """One combination of all, by its number."""
    values = {}
    for name, choices in space.items():
        number, chosen = divmod(number, len(choices))
        values[name] = choices[chosen]
    return values


def _reason(error: ValidationError) -> str:
    return error.errors()[0]["msg"].removeprefix("Value error, ")
