"""The process that examines one device and tells what it finds, one JSON object a line.

Kernels may take their process with them: a segmentation fault, a GPU that is lost after an illegal
address, a loop that never ends. So the doctor looks from outside, and knows by the last line what
was being run.
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
    # A kernel may print, too, and leave a line open: each event begins on one of its own.
    sys.stdout.write("\n" + json.dumps({"event": event, **values}) + "\n")
    sys.stdout.flush()


def examine(name: str, quick: bool, named: list[str], first: int, seconds: float) -> None:
    """The checks of a device, of all operators or those ``named``, from the ``first`` on; then
    ``seconds`` of timing, on the CPU twice as many, 0 for none."""
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
