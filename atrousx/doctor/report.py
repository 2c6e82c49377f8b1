"""Writes the report as text, which can be pasted into an issue, and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

from .cases import DTYPES
from .checking import NOT_RUN, OK, WRONG, Check
from .examination import Findings, Report
from .speed import MARGIN

_SHOWN = 30  # the number of wrong checks that are listed


def as_json(report: Report) -> str:
    """Returns the whole report as JSON, with every check; "format" grows when names change."""
    found = {"format": 1, "is_well": report.is_well, **asdict(report)}
    for device, findings in zip(found["devices"], report.devices, strict=True):
        for row, timing in zip(device["timings"], findings.timings, strict=True):
            row["status"] = timing.status
    # JSON has no NaN.
    return json.dumps(_without_nan(found), indent=1)


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def as_text(report: Report) -> str:
    width = max(map(len, report.machine), default=0)
    lines = [f"{name:<{width}}  {value}" for name, value in report.machine.items()]
    for findings in report.devices:
        lines += ["", *_device(findings)]
    lines += ["", *_verdict(report)]
    return "\n".join(lines)


def _device(findings: Findings) -> Iterator[str]:
    yield f"== {findings.device}: {len(findings.checks)} checks, {findings.seconds:.0f} s"
    dtypes = [name for name in DTYPES if any(c.dtype == name for c in findings.checks)]
    groups: dict[tuple[str, str], list[Check]] = {}
    for check in findings.checks:
        groups.setdefault((check.operator, check.pass_name), []).append(check)
    width = max(len(name) for name in ("operator", *(operator for operator, _ in groups)))
    heads = " ".join(f"{name:<13}" for name in dtypes)
    if groups:
        yield f"{'operator':<{width}} {'pass':<9} {heads}".rstrip()
    for (operator, pass_name), checks in groups.items():
        cells = (_cell([c for c in checks if c.dtype == name]) for name in dtypes)
        row = " ".join(f"{cell:<13}" for cell in cells)
        yield f"{operator:<{width}} {pass_name:<9} {row}".rstrip()
    yield from _faults(findings)
    yield from _timings(findings)


def _cell(checks: list[Check]) -> str:
    """Returns "ok 12", "WRONG 3/12" or "not run 12"; "-" if there are no checks of the dtype."""
    if not checks:
        return "-"
    counts = Counter(check.status for check in checks)
    if counts[WRONG]:
        return f"{WRONG} {counts[WRONG]}/{len(checks)}"
    if counts[NOT_RUN]:
        return f"{NOT_RUN} {counts[NOT_RUN]}"
    return f"{OK} {len(checks)}"


def _faults(findings: Findings) -> Iterator[str]:
    wrong = findings.wrong
    if wrong or findings.failures:
        yield ""
    for failure in findings.failures:
        yield f"{WRONG}: {failure}"
    for check in wrong[:_SHOWN]:
        what = f"{check.operator} {check.pass_name}, {check.case}, {check.dtype}, {check.layout}"
        yield f"{WRONG}: {what}: {check.message}"
    if len(wrong) > _SHOWN:
        yield f"... and {len(wrong) - _SHOWN} more: --json FILE has them all"


def _timings(findings: Findings) -> Iterator[str]:
    if not findings.timings:
        return
    yield ""
    yield (
        f"{'timed, backend=native':<25} {'pass':<9} {'dtype':<9} {'batch':>5} "
        f"{'atrousx ms':>11} {'PyTorch ms':>11} {'ratio':>7}"
    )
    for t in findings.timings:
        what = f"{t.line:<25} {t.pass_name:<9} {t.dtype:<9} {t.batch:>5}"
        if t.status == NOT_RUN:
            yield f"{what} {NOT_RUN}: {t.message}"
        else:
            yield f"{what} {t.atrousx_ms:>11.3f} {t.torch_ms:>11.3f} {t.ratio:>6.2f}x  {t.status}"
    if findings.clocks:
        yield ", ".join(f"{name} {value}" for name, value in findings.clocks.items())


def _verdict(report: Report) -> Iterator[str]:
    for findings in report.devices:
        counts = Counter(check.status for check in findings.checks)
        slower = sum(timing.status == "slower" for timing in findings.timings)
        timed = sum(timing.status != NOT_RUN for timing in findings.timings)
        yield (
            f"{findings.device}: {counts[OK]} ok, {counts[WRONG]} {WRONG}, {counts[NOT_RUN]} "
            f"{NOT_RUN}; {slower} of {timed} timed lines slower than PyTorch by more than "
            f"{MARGIN - 1:.0%}"
        )
    if report.is_well:
        yield f"All is well. {report.seconds:.0f} s."
    else:
        yield (
            f"Something is {WRONG}. {report.seconds:.0f} s. This report is fit for an issue: "
            "paste it as it is, and attach what --json FILE writes."
        )
