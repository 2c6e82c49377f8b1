"""Examines devices, each in a separate process, and collects the findings."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from .checking import NOT_RUN, WRONG, Check
from .machine import machine
from .speed import Timing

# If a check ends the process, a new one continues after that check, at most this many times.
RESTARTS = 3
# A check that takes more seconds than this is considered hung. Devices of other types, such as the
# tests' emulated one, are slow.
PATIENCE, PATIENCE_ELSEWHERE = 90.0, 900.0
ROOT = str(Path(__file__).resolve().parents[2])
# "-c" puts the working directory first in sys.path; it may contain another atrousx.
_CODE = (
    f"import sys; sys.path[0] = {ROOT!r}; import json; from atrousx.doctor import worker; "
    "worker.examine(**json.loads(sys.argv[1]))"
)


@dataclass
class Findings:
    """The findings for one device. ``failures`` are errors outside of checks."""

    device: str
    checks: list[Check] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)
    clocks: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def wrong(self) -> list[Check]:
        return [check for check in self.checks if check.status == WRONG]

    @property
    def not_run(self) -> list[Check]:
        return [check for check in self.checks if check.status == NOT_RUN]

    @property
    def is_well(self) -> bool:
        return bool(self.checks) and not (self.wrong or self.not_run or self.failures)


@dataclass(frozen=True)
class Report:
    machine: dict[str, str]
    devices: list[Findings]
    seconds: float

    @property
    def is_well(self) -> bool:
        return all(findings.is_well for findings in self.devices)


def examine(
    devices: Sequence[str],
    quick: bool = False,
    named: Sequence[str] = (),
    seconds: float = 25.0,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Examines each device in turn and returns the report.

    If there are other devices, the CPU only computes their references. It is then checked with
    small sizes and not timed.

    Args:
        devices: names of devices, as in PyTorch.
        quick: check small sizes only.
        named: the operators to check; empty for all.
        seconds: the time for timing on each device that can be timed; the CPU gets twice as much; 0
            means no timing.
        progress: is called with a text that describes the progress.

    Raises:
        ValueError: a device or an operator does not exist.
    """
    start = time.perf_counter()
    found = []
    for name in devices:
        aside = name == "cpu" and len(devices) > 1
        options = {"name": name, "quick": quick or aside, "named": list(named)}
        options["seconds"] = 0 if aside else seconds
        found.append(_Examination(options, progress).run())
    return Report(machine(), found, round(time.perf_counter() - start, 1))


class _Examination:
    """Examines one device, with a new process whenever one has ended too early."""

    def __init__(self, options: dict[str, Any], progress: Callable[[str], None]) -> None:
        name = options["name"]
        self.findings = Findings(name)
        self.options, self.progress = options, progress
        self.patience = PATIENCE if name.startswith(("cpu", "cuda")) else PATIENCE_ELSEWHERE
        # What is running: the check with this index or, if it is None, `doing` in words.
        self.index: int | None = None
        self.doing = "starting"

    def run(self) -> Findings:
        start, first = time.perf_counter(), 0
        for _ in range(RESTARTS + 1):
            if (again := self._process(first)) is None:
                break
            first = again
        self.findings.seconds = round(time.perf_counter() - start, 1)
        return self.findings

    def _process(self, first: int) -> int | None:
        """Runs a process to its end; returns the index of the next check, None if there is none."""
        self.index, self.doing = None, "starting"
        arguments = json.dumps({**self.options, "first": first})
        command = [sys.executable, "-X", "faulthandler", "-c", _CODE, arguments]
        with tempfile.TemporaryFile("w+") as complaints:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=complaints, text=True, env=_environment()
            )
            lines: queue.Queue[str | None] = queue.Queue()
            reader = threading.Thread(target=_forward, args=(process.stdout, lines), daemon=True)
            reader.start()
            try:
                how = self._listen(process, lines)
            finally:
                process.kill()
                process.wait()
                reader.join(timeout=5)
            if how == "end":
                return None
            if how != "lost":
                complaints.seek(0)
                self._blame(f"{how}{_last_words(complaints.read())}")
        if self.index is None or self.index + 1 >= len(self.findings.checks):
            return None
        return self.index + 1

    def _listen(self, process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> str:
        """Reads the events of a process until it ends.

        Returns "end", "lost", or a text that says how the process ended before these events.
        """
        while True:
            try:
                line = lines.get(timeout=self.patience)
            except queue.Empty:
                return f"it did not come back within {self.patience:.0f} s"
            if line is None:
                code = process.wait()
                return f"its process ended by signal {-code}" if code < 0 else "its process ended"
            event = _event(line)
            if event is not None and self._take(event):
                return str(event["event"])

    def _take(self, event: dict[str, Any]) -> bool:
        """Records an event of a process; returns whether it is the last one."""
        kind, findings = event["event"], self.findings
        if kind == "refused":
            raise ValueError(event["message"])
        if kind == "plan" and not findings.checks:
            findings.device = event["device"]
            findings.checks = [Check(**check) for check in event["checks"]]
        elif kind == "start":
            self.index = event["index"]
        elif kind == "check":
            findings.checks[event["index"]] = Check(**event["check"])
            self.progress(
                f"{findings.device}: {event['index'] + 1} of {len(findings.checks)} checks"
            )
        elif kind == "timing begins":
            self.index, self.doing = None, "timing"
        elif kind == "timing":
            findings.timings.append(Timing(**event["timing"]))
            self.progress(f"{findings.device}: {len(findings.timings)} lines timed")
        elif kind == "clocks":
            findings.clocks = event["clocks"]
        return kind in ("end", "lost")

    def _blame(self, message: str) -> None:
        if self.index is None:
            self.findings.failures.append(f"{self.doing}: {message}")
        else:
            check = self.findings.checks[self.index]
            self.findings.checks[self.index] = replace(check, status=WRONG, message=message)


def _environment() -> dict[str, str]:
    # The child gets the parent's variables, which may limit the CPU's threads and instruction set.
    # Without buffering, the last line before a crash is not lost.
    return {**os.environ, "PYTHONUNBUFFERED": "1"}


def _forward(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _event(line: str) -> dict[str, Any] | None:
    """Parses an event; returns None if the line is something else that a library printed."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found else None


def _last_words(complaints: str) -> str:
    """Returns the line "Fatal Python error ..." if there is one, else the last line of stderr."""
    lines = [line.strip() for line in complaints.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("Fatal Python error")]
    return f" ({(fatal or lines)[-1][:200]})" if lines else ""
