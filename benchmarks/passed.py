"""A pytest plugin for `gpu.py`: tests that have passed are not run again.

``-p benchmarks.passed --passed FILE`` writes to FILE, one per line, the tests that passed or were
skipped, as soon as they finish. It skips the tests that FILE listed at the start. With pytest-xdist
only the first process reads and writes the file, because all other processes must collect the same
tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--passed", type=Path, help="a file of tests that have passed")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("passed") is not None:
        config.pluginmanager.register(Passed(config), "passed of gpu.py")


class Passed:
    def __init__(self, config: pytest.Config) -> None:
        self.file = config.getoption("passed")
        given = getattr(config, "workerinput", None)
        self.writes = given is None
        if given is not None:
            self.before = set(given["passed"])
        else:
            lines = self.file.read_text().splitlines() if self.file.exists() else []
            self.before = set(lines)
        self.failed: set[str] = set()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput["passed"] = sorted(self.before)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        done = [item for item in items if item.nodeid in self.before]
        config.hook.pytest_deselected(items=done)
        items[:] = [item for item in items if item.nodeid not in self.before]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid)
        if self.writes and report.when == "teardown" and report.nodeid not in self.failed:
            with self.file.open("a") as file:
                file.write(f"{report.nodeid}\n")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and self.before:
            session.exitstatus = pytest.ExitCode.OK
