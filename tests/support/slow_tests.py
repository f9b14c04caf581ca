"""A plugin of pytest: ``--fast`` leaves out what ``tests/slow.txt`` lists, ``--write-slow`` writes that list.

Which tests are slow is measured rather than marked: some start a server, others compile a model or try a
property on hundreds of inputs.
"""

from __future__ import annotations

from collections import defaultdict

import pytest

from support.paths import ROOT

_LIST = ROOT / "tests" / "slow.txt"
_SECONDS = 0.1
"""From which a test is slow; one with many cases from five times as many, all together."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Two options."""
    group = parser.getgroup("slow tests")
    group.addoption("--fast", action="store_true", help="leave out the slow tests")
    group.addoption("--write-slow", action="store_true", help="list the tests that were slow in this run")


def pytest_configure(config: pytest.Config) -> None:
    """Measure, in the process that hears of all tests."""
    if config.getoption("write_slow") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Durations())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is listed."""
    if not config.getoption("fast"):
        return
    listed = set(_LIST.read_text().split())
    slow = [item for item in items if _name(item.nodeid) in listed]
    config.hook.pytest_deselected(items=slow)
    left_out = set(slow)
    items[:] = [item for item in items if item not in left_out]


class _Durations:
    """How long each case of each test took."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called three times for each case."""
        self._seconds[_name(report.nodeid)][report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        """Write the list; tests that did not run now stay what they were."""
        before = set(_LIST.read_text().split()) if _LIST.exists() else set()
        slow = {
            name
            for name, cases in self._seconds.items()
            if max(cases.values()) >= _SECONDS or sum(cases.values()) >= 5 * _SECONDS
        }
        _LIST.write_text("\n".join(sorted(slow | (before - self._seconds.keys()))) + "\n")


def _name(nodeid: str) -> str:
    """A test's, without its case."""
    return nodeid.partition("[")[0]
