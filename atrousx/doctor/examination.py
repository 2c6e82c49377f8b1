"""Examines devices, each in a process of its own, and gathers what is found."""

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

# A process that ended is started again behind the check that ended it, so often.
RESTARTS = 3
# Seconds after which a check that has not come back never will; a test device is slow.
PATIENCE, PATIENCE_ELSEWHERE = 90.0, 900.0
ROOT = str(Path(__file__).resolve().parents[2])
# -c puts the working directory first on the path, where another atrousx may lie.
_CODE = (
    f"import sys; sys.path[0] = {ROOT!r}; import json; from atrousx.doctor import worker; "
    "worker.examine(**json.loads(sys.argv[1]))"
)


@dataclass
class Findings:
    """Of one device. ``failures`` are what went wrong outside a check."""

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
    """Examines each device in turn.

    The CPU beside other devices is only where their references come from: it is examined in small
    sizes, and not timed.

    Args:
        devices: by PyTorch's names.
        quick: small sizes alone.
        named: the operators to check; none for all.
        seconds: of timing on those devices that can be timed, on the CPU twice as many; 0 for
            none.
        progress: told in words how far it is.

    Raises:
        ValueError: there is no such device, or no such operator.
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
    """One device, by as many processes as it takes."""

    def __init__(self, options: dict[str, Any], progress: Callable[[str], None]) -> None:
        name = options["name"]
        self.findings = Findings(name)
        self.options, self.progress = options, progress
        self.patience = PATIENCE if name.startswith(("cpu", "cuda")) else PATIENCE_ELSEWHERE
        # What is being done: the check of this index, or else, in words.
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
        """Runs a process to its end; the check to go on with, if there is one left."""
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
        """Follows a process; "end", "lost", or how it ended before that."""
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
        """Notes what a process tells; whether it was the last that it has to say."""
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
    # The CPU's limits of the parent are the child's; Python's output must not wait in a buffer.
    return {**os.environ, "PYTHONUNBUFFERED": "1"}


def _forward(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _event(line: str) -> dict[str, Any] | None:
    """What a line tells, None where it is no event but something that a library printed."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "event" in found else None


def _last_words(complaints: str) -> str:
    """The first line of a fatal error, else the last line on standard error."""
    lines = [line.strip() for line in complaints.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("Fatal Python error")]
    return f" ({(fatal or lines)[-1][:200]})" if lines else ""
