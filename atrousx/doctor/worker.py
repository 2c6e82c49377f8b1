"""The process that examines one device; it prints one JSON object per line.

A wrong kernel may end its process: by a segmentation fault, by an illegal address after which the
GPU is lost, or by an endless loop. Therefore the doctor watches from another process. The last line
shows what was running.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from .cases import cases
from .checking import References, planned, run_check
from .devices import device_named, is_alive
from .machine import clocks
from .speed import timings


def tell(event: str, **values: Any) -> None:
    # A kernel may print text without a line end, so each event starts on a new line.
    sys.stdout.write("\n" + json.dumps({"event": event, **values}) + "\n")
    sys.stdout.flush()


def examine(name: str, quick: bool, named: list[str], first: int, seconds: float) -> None:
    """Runs the checks of a device from index ``first`` on, and then times its operators.

    ``named`` lists the operators to check; if it is empty, all are checked. ``seconds`` is the time
    for timing; the CPU gets twice as much, and 0 means no timing.
    """
    try:
        device = device_named(name)
        plan = planned(cases(device, quick, named), device)
    except ValueError as error:
        return tell("refused", message=str(error))
    tell("plan", device=device.name, checks=[asdict(check) for _, check in plan])
    references = References()
    for index in range(first, len(plan)):
        tell("start", index=index)
        check = run_check(*plan[index], device, references)
        tell("check", index=index, check=asdict(check))
        if check.message and not is_alive(device.torch):
            return tell("lost")
    if seconds and device.can_be_timed:
        tell("timing begins")
        for timing in timings(device, seconds * (2 if device.is_cpu else 1)):
            tell("timing", timing=asdict(timing))
        tell("clocks", clocks=clocks(device.torch))
    return tell("end")


if __name__ == "__main__":
    examine(**json.loads(sys.argv[1]))
