"""Training an expert while the folds that will choose its step are still in training.

The folds of a cross-validation choose how many steps an expert is trained. The steps themselves do not depend
on the choice, so the expert need not wait for it: it is trained beside its folds, keeps its weights at every
evaluation, and goes back to the chosen step if it has gone further. It ends as if it had waited, to the last
bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from torch import Tensor

from routerretriever.training.scaling import copies
from routerretriever.training.selection import Selected

_POLL_SECONDS = 1.0


class Speculation:
    """The weights of an expert at each evaluation, until its folds have chosen one."""

    def __init__(self, found: Callable[[], Selected | None]) -> None:
        """Begin.

        Args:
            found: what the folds have chosen, None while they are in training. Raises TrainingFailed if one
                of them has failed.
        """
        self._found = found
        self._kept: dict[int, dict[str, Tensor]] = {}
        self._selected: Selected | None = None

    def keep(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Keep the weights after a step, on the CPU."""
        self._kept[step] = {name: weight.cpu() for name, weight in copies(weights).items()}

    def is_over(self, step: int) -> bool:
        """Whether the chosen step is known and has been reached."""
        selected = self._look()
        return selected is not None and selected.choice.step <= step

    def wait(self) -> Selected:
        """What the folds have chosen; waits for them."""
        while (selected := self._look()) is None:
            time.sleep(_POLL_SECONDS)
        return selected

    def _look(self) -> Selected | None:
        if self._selected is None:
            self._selected = self._found()
        return self._selected

    def weights(self) -> dict[str, Tensor]:
        """Those at the chosen step."""
        return self._kept[self.wait().choice.step]
