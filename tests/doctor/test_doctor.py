"""The command from end to end; processes that die, hang or lose their device; the report."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from atrousx.cli import main
from atrousx.doctor import as_json, as_text, examination, examine, worker
from atrousx.doctor.checking import NOT_RUN, OK, WRONG, Check
from atrousx.doctor.examination import Findings, Report
from atrousx.doctor.speed import Timing

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
OPERATOR = "_permutohedral_pack"
ONE = ["--device", "cpu", "--quick", "--no-timing", "--operators", OPERATOR]


def doctor(
    tmp_path: Path, *arguments: str, broken: str = "", kernel: str | None = None
) -> tuple[int, str]:
    """Runs the command in a separate process with a broken operator or, on the emulated device,
    with a broken kernel."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent / "broken"), str(ROOT)]),
        "ATROUSX_TEST_BREAK": broken,
        "ATROUSX_TEST_BREAK_ONCE": str(tmp_path / "once"),
    }
    if kernel is not None:
        environment["ATROUSX_TEST_BREAK_KERNEL"] = kernel
    done = subprocess.run(
        [sys.executable, "-m", "atrousx", "doctor", *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert broken or not done.stderr  # PyTorch warns when an operator is overridden
    return done.returncode, done.stdout


@pytest.mark.emulated
@pytest.mark.parametrize("broken", [False, True])
def test_on_the_emulated_device(tmp_path: Path, emulated_device, broken: bool):
    kernel = "argmax_kernel" if broken else ""
    options = ["--quick", "--no-timing", "--operators", "_upsample_argmax,_permutohedral_pack"]
    code, out = doctor(tmp_path, "--device", "emulated", *options, kernel=kernel)
    assert code == int(broken), out
    assert ("All is well." in out) != broken
    assert (" 0 WRONG" in out) != broken
    assert "_permutohedral_pack forward" in out


def test_all_is_well(tmp_path: Path):
    file = tmp_path / "report.json"
    code, out = doctor(tmp_path, *ONE, "--json", str(file))
    assert code == 0
    assert "All is well." in out
    assert f"{OPERATOR} forward   ok 2          ok 2" in out
    found = json.loads(file.read_text())
    assert found["is_well"]
    assert found["machine"]["torch"]
    assert [check["status"] for check in found["devices"][0]["checks"]] == [OK] * 4


@pytest.mark.parametrize(
    ("operator", "how", "said"),
    [
        ("upsample_bilinear2d", "wrong", "float64, contiguous: error "),
        ("upsample_bilinear2d", "raise", "RuntimeError: broken on purpose"),
    ],
)
def test_an_operator_broken_on_purpose_is_wrong(tmp_path: Path, operator, how, said):
    options = [*ONE[:-1], operator]
    code, out = doctor(tmp_path, *options, broken=f"{operator}:{how}")
    assert code == 1
    assert f"WRONG: {operator} forward, x8, 21 labels, " in out
    assert said in out
    assert "fit for an issue" in out


def test_a_check_that_takes_its_process_along_is_wrong_and_the_rest_are_run(tmp_path: Path):
    options = [*ONE[:-1], "_permutohedral_neighbours"]
    code, out = doctor(tmp_path, *options, broken="_permutohedral_neighbours:abort")
    assert code == 1
    assert "its process ended by signal 6 (Fatal Python error: Aborted)" in out
    assert "cpu: 3 ok, 1 WRONG, 0 not run" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--device warp:0", "there is no device 'warp:0' here"),
        ("--device cpu --operators conv3d", "operators must be of atrous_conv2d, "),
        ("--device cpu --json /nowhere/at/all.json", "No such file or directory"),
    ],
)
def test_wrong_options_are_named(capfd, arguments, message):
    assert main(["doctor", *arguments.split()]) == 2
    captured = capfd.readouterr().err
    assert message in captured
    assert captured.count("\n") == 1


def test_help_says_what_the_exit_status_means(capsys):
    with pytest.raises(SystemExit):
        main(["doctor", "--help"])
    assert "1 something is wrong" in " ".join(capsys.readouterr().out.split())


def test_the_doctor_comes_without_opencv():
    code = (
        "import sys; sys.modules['cv2'] = None; from atrousx.cli import main; "
        "main(['doctor', '--device', 'warp'])"
    )
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=path, capture_output=True, text=True, timeout=300
    )
    assert done.stderr.startswith("atrousx doctor: there is no device 'warp' here")


def test_a_worker_ends_where_its_device_is_lost(monkeypatch, capsys):
    monkeypatch.setattr(worker, "is_alive", lambda device: False)
    wrong = Check(OPERATOR, "forward", "a", "float32", "contiguous", WRONG, message="an error")
    monkeypatch.setattr(worker, "run_check", lambda *_: wrong)
    worker.examine("cpu", True, [OPERATOR], 1, 0)
    events = [json.loads(line) for line in capsys.readouterr().out.split("\n") if line]
    assert [event["event"] for event in events] == ["plan", "start", "check", "lost"]
    assert events[1]["index"] == 1


# A process that reports six checks; {body} is run for each. A library prints in between.
STAND_IN = """
import json, sys, time
def tell(event, **values): print(json.dumps({{"event": event, **values}}), flush=True)
checks = [dict(operator="a", pass_name="forward", case=str(i), dtype="float32", layout="rows")
          for i in range(6)]
tell("plan", device="gpu:0", checks=checks)
print("a line of a library\\n[1]", flush=True)
for i in range(json.loads(sys.argv[1])["first"], 6):
    tell("start", index=i)
    {body}
tell("end")
"""
WELL = "tell('check', index=i, check={**checks[i], 'status': 'ok'})"
LOST = (
    "tell('check', index=i, check={**checks[i], 'status': 'WRONG', 'message': 'lost'}); "
    "tell('lost'); sys.exit()"
)


@pytest.mark.parametrize(
    ("body", "statuses"),
    [
        (WELL, [OK] * 6),
        # The process is restarted after each failure, at most three times.
        (LOST, [WRONG] * 4 + [NOT_RUN] * 2),
        ("sys.exit(3)", [WRONG] * 4 + [NOT_RUN] * 2),
        (f"time.sleep(60 if i == 2 else 0); {WELL}", [OK] * 2 + [WRONG] + [OK] * 3),
    ],
    ids=["well", "lost", "dead", "hanging"],
)
def test_what_becomes_of_the_other_checks(monkeypatch, body, statuses):
    monkeypatch.setattr(examination, "_CODE", STAND_IN.format(body=body))
    monkeypatch.setattr(examination, "PATIENCE_ELSEWHERE", 3.0)
    report = examine(["gpu:0"])
    assert [check.status for check in report.devices[0].checks] == statuses
    assert report.is_well == (statuses == [OK] * 6)


def test_the_cpu_beside_a_gpu_is_examined_in_small(monkeypatch):
    monkeypatch.setattr(examination, "_CODE", STAND_IN.format(body="tell('end'); sys.exit()"))
    seen = []
    run = examination._Examination.run
    monkeypatch.setattr(
        examination._Examination, "run", lambda self: seen.append(self.options) or run(self)
    )
    examine(["cpu", "gpu:0"], seconds=9)
    examine(["cpu"], seconds=9)
    assert [(o["quick"], o["seconds"]) for o in seen] == [(True, 0), (False, 9), (False, 9)]


def test_a_process_that_never_speaks_is_a_failure(monkeypatch):
    code = "import sys; print('no library here', file=sys.stderr); sys.exit(1)"
    monkeypatch.setattr(examination, "_CODE", code)
    report = examine(["cpu"])
    assert report.devices[0].failures == ["starting: its process ended (no library here)"]
    assert not report.is_well
    assert "WRONG: starting" in as_text(report)


def test_report():
    checks = [
        Check("conv", "forward", str(i), "float32", "rows", status, message="why")
        for i, status in enumerate([OK, OK, WRONG, NOT_RUN])
    ]
    checks += [Check("conv", "forward", "5", "bfloat16", "rows", NOT_RUN)]
    checks += [Check("conv", "gradients", "6", "float32", "rows", OK)]
    nan = math.nan
    lines = [
        Timing("layer", "forward", "tf32", 8, 2.0, 1.0),
        Timing("late", "forward", "tf32", 8, nan, nan, "the time was up"),
    ]
    findings = Findings("cuda:0", checks, lines, {"clocks.sm": "1980 MHz"}, [], 3.0)
    report = Report({"torch": "2"}, [findings], 4.0)
    text = as_text(report)
    assert "conv     forward   WRONG 1/4     not run 1\n" in text
    assert "conv     gradients ok 1          -\n" in text
    assert "WRONG: conv forward, 2, float32, rows: why\n" in text
    assert "  0.50x  slower\n" in text
    assert "not run: the time was up\n" in text
    assert "clocks.sm 1980 MHz\n" in text
    assert "cuda:0: 3 ok, 1 WRONG, 2 not run; 1 of 1 timed lines slower" in text
    found = json.loads(as_json(report))
    assert found["devices"][0]["timings"][1]["atrousx_ms"] is None
    assert [row["status"] for row in found["devices"][0]["timings"]] == ["slower", "not run"]
    # A slow result is not wrong. A check that did not run is not known to be right.
    assert not report.is_well
    assert Report({}, [Findings("cpu", checks[:2], lines)], 1.0).is_well
    assert not Report({}, [Findings("cpu", checks[:2], [], {}, ["timing: died"])], 1.0).is_well
    assert not Report({}, [Findings("cpu")], 1.0).is_well
