"""A pytest plugin (`-p tests.noskip`): a skipped test fails the run, unless its reason names a part this machine lacks.

Allowed reasons start with `absent:`. The plugin also prints the figures that tests measured, last: a test hands one
over with `record_property("figure", "200 peers configured in 138 ms")`. It decides nothing else (OPS-1).
"""

from __future__ import annotations

import pytest

ALLOWED = "absent:"


class Tally:
    """What one run skipped without an excuse, and the figures it measured."""

    def __init__(self) -> None:
        self.unexcused: list[str] = []
        self.figures: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)
        if report.when == "call" or report.skipped:
            self.figures += [str(value) for name, value in report.user_properties if name == "figure"]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            if not (why := why.removeprefix("Skipped: ")).startswith(ALLOWED):
                self.unexcused.append(f"{report.nodeid}: {why}")

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.unexcused and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.unexcused:
            terminalreporter.section("skipped, though nothing is absent: this run fails", red=True)
            for line in self.unexcused:
                terminalreporter.line(line)
        if self.figures:
            terminalreporter.section("figures")
            for line in self.figures:
                terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    """Called by pytest when the plugin is loaded."""
    config.pluginmanager.register(Tally(), "meshctl-tally")
