"""What a person at the terminal sees: step headings, progress bars, tables; and quiet logs for machines."""

from __future__ import annotations

import logging
import sys
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from routerretriever.errors import without_secrets
from routerretriever.runtime.heartbeat import Heartbeat
from routerretriever.runtime.metrics import drain

_CONTROL_CODES = (*range(9), *range(11, 32), *range(127, 160))  # all but tab and newline
# Marks that turn the direction of writing, and Unicode's own ends of lines.
_DIRECTION_CODES = (0x061C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
_CONTROL = dict.fromkeys((*_CONTROL_CODES, *_DIRECTION_CODES), "\N{REPLACEMENT CHARACTER}")


class PlainConsole(Console):
    """A console that shows every string as text: no markup, no emoji codes, no terminal commands.

    Documents, queries and names come from outside; ``[bold]`` or an escape sequence in them must not reach
    the terminal as a command. Every string, a table's cells included, passes through ``render_str``.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """The text, whatever is in it."""
        text = without_secrets(text).translate(_CONTROL)
        return super().render_str(text, **{**options, "markup": False, "emoji": False})


# Logs and files have no width of their own; tables should not be cut to the 80 columns assumed for them.
console = PlainConsole(highlight=False, width=None if sys.stdout.isatty() else 120)
log = logging.getLogger("routerretriever")
RUN_ID = uuid.uuid4().hex[:8]
"""This process's own; in its log lines and on what it registers."""

T = TypeVar("T")
_SPEED_SECONDS = 600.0
"""How far back a bar looks to tell how fast it moves; a shard or a step may take minutes."""
_heartbeat = Heartbeat(log)


def _redact(record: logging.LogRecord) -> bool:
    """Take passwords out of a line, wherever it was written."""
    record.msg, record.args = without_secrets(record.getMessage()), ()
    return True


log.addFilter(_redact)
_quiet = False


def set_up(quiet: bool) -> None:
    """Choose between a person's view (bars, tables) and plain log lines."""
    global _quiet
    _quiet = quiet
    log.handlers.clear()
    log.propagate = False
    log.setLevel(logging.INFO)
    if quiet:
        handler: logging.Handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s run={RUN_ID} %(message)s"))
        log.addHandler(_heartbeat)
        _heartbeat.start()
    else:
        handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S")
    log.addHandler(handler)
    # What other packages say to their own developers; ours are logged.
    warnings.filterwarnings("ignore", category=FutureWarning)


def is_quiet() -> bool:
    """Whether bars are off and progress has to be told in log lines."""
    return _quiet


def figures_table(*header: str, title: str) -> Table:
    """A table of a name and figures: the first column to the left, the others to the right."""
    table = Table(title=title, header_style="bold")
    for position, name in enumerate(header):
        table.add_column(name, justify="right" if position else "left")
    return table


def show(table: Table) -> None:
    """Print a table, in quiet mode too: it is what was asked for."""
    console.print(table)


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Pass items through, with a bar that counts them, or in quiet mode a line now and then."""
    done, start = 0, time.monotonic()

    def told() -> str:
        left = time_left(done, total, time.monotonic() - start)
        return f"{description}: {done} of {total} done" + (f", {left}" if left else "")

    with bars() as progress, _heartbeat.during(told):
        task = progress.add_task(description, total=total)
        for item in items:
            done += 1
            progress.advance(task)
            yield item


def time_left(done: int, total: int, seconds: float) -> str:
    """How long the rest takes if it is as slow as what is done, for people; empty if nothing is."""
    if not 0 < done < total:
        return ""
    left = seconds * (total - done) / done
    if left < 90:
        return f"about {left:.0f} s left"
    return f"about {left / 60:.0f} min left" if left < 5400 else f"about {left / 3600:.1f} h left"


def at_work(description: str) -> AbstractContextManager[None]:
    """While a block runs, quiet mode tells of it when nothing else has been told for half a minute."""
    return _heartbeat.during(lambda: description)


class StepClock:
    """How long each step of a run took, without the steps that it had to wait for, and what was counted."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        self._within = 0.0

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a block, perhaps inside another step's."""
        start, outer, self._within = time.monotonic(), self._within, 0.0
        try:
            with at_work(f"at step {name}"):
                yield
        finally:
            whole = time.monotonic() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + whole - self._within
            self._within = outer + whole
            self.counts.update(drain())


@contextmanager
def bars() -> Iterator[Progress]:
    """A group of progress bars; draws nothing in quiet mode."""
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
        TextColumn("{task.fields[note]}"),
    )
    with _NotedProgress(
        *columns, console=console, disable=_quiet, speed_estimate_period=_SPEED_SECONDS
    ) as progress:
        yield progress


class _NotedProgress(Progress):
    """Every bar has a free note at its end."""

    def add_task(self, *args: object, **kwargs: object) -> TaskID:
        kwargs.setdefault("note", "")
        return super().add_task(*args, **kwargs)  # type: ignore[arg-type]
