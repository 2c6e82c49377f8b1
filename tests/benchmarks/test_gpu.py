"""benchmarks/gpu.py: its steps, their limits, continuing after an interruption, the table."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
DRY = ["--device", "cpu", "--quick"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu")


def steps_of(gpu, tmp_path: Path, *options: str):
    return {step.name: step for step in gpu.parse([str(tmp_path), *options]).listed}


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_on_a_gpu_it_is_right_first_then_fast_within_15_minutes(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.shutil, "which", lambda _: "/usr/bin/compute-sanitizer")
    steps = steps_of(gpu, tmp_path)
    assert list(steps) == [
        *("doctor", "tests_contract", "tests_convolution", "tests_upsample", "tests_rest"),
        *("memcheck", "racecheck", "initcheck", "synccheck"),
        *("bench_atrous-bfloat16", "bench_atrous-tf32", "bench_atrous-float32"),
        *("bench_upsample-bfloat16", "bench_upsample-tf32", "bench_crf", "bench_deeplab-bfloat16"),
    ]
    assert sum(step.limit for step in steps.values()) < 15 * 60
    batch = steps["bench_atrous-bfloat16"].command
    assert batch[batch.index("--batch") + 1] == "16"
    for name, step in steps.items():
        assert not name.startswith("tests") or "cuda" in step.command


@pytest.mark.parametrize("options", [[], DRY], ids=["cuda", "dry"])
def test_benchmarks_know_the_options_they_are_given(gpu, tmp_path, monkeypatch, options):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for step in steps_of(gpu, tmp_path, *options).values():
        if step.name.startswith("bench"):
            _, script, *given = step.command
            args = importlib.import_module(Path(script).stem).parse(given)
            assert args.csv == tmp_path / step.files[0]


def test_what_cannot_be_run_is_left_out(gpu, tmp_path):
    steps = steps_of(gpu, tmp_path, "--device", "host:0", "--quick")
    assert steps["memcheck"].note == "compute-sanitizer needs a GPU"
    assert steps["bench_crf"].note == "host:0 cannot be timed"
    assert "host:0" in steps["doctor"].command


@pytest.mark.parametrize("options", [[], DRY], ids=["cuda", "dry"])
def test_every_test_is_in_one_step(gpu, tmp_path, options):
    steps = [s for n, s in steps_of(gpu, tmp_path, *options).items() if n.startswith("tests")]
    assert (steps[0].command is None) == bool(options)
    steps = [step for step in steps if step.command is not None]
    files = [f for s in steps[:-1] for f in s.command if f.endswith(".py")]
    assert len(set(files)) == len(files)
    assert all((ROOT / file).is_file() for file in files)
    rest = steps[-1].command
    assert {f"--ignore={file}" for file in files} <= set(rest)
    assert ("tests/ops" if options else "tests") in rest


def test_the_emulated_device_is_set_up(gpu, tmp_path):
    steps = steps_of(gpu, tmp_path, "--device", "emulated", "--quick")
    assert steps["doctor"].environment == {
        "PYTHONPATH": str(ROOT / "tests" / "doctor" / "broken"),
        "ATROUSX_TEST_BREAK_KERNEL": "",
    }
    # conftest.py must be imported before atrousx in that step.
    assert steps["tests_rest"].environment == {"ATROUSX_EMULATED": "all"}
    assert steps["bench_crf"].command is None


def test_a_step_has_its_environment_and_the_tree(gpu, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", "/third")
    code = "import os; print(os.environ['PYTHONPATH'], os.environ['A'])"
    step = gpu.Step("first", 30, python(code), environment={"PYTHONPATH": "/one", "A": "b"})
    gpu.Run(tmp_path).step(step)
    assert f"/one:{ROOT}:/third b" in capfd.readouterr().out


SOME_TESTS = """
import pytest
@pytest.mark.parametrize("i", range(4))
def test_it(i):
    assert i != 2 or {mended}
def test_left_out():
    pytest.skip("here")
"""


@pytest.mark.parametrize("processes", [[], ["-n", "2"]], ids=["one", "xdist"])
def test_tests_that_passed_are_not_run_again(tmp_path, processes):
    if processes:
        pytest.importorskip("xdist")
    file, passed = tmp_path / "test_some.py", tmp_path / "some.passed"

    def run(mended: bool):
        file.write_text(SOME_TESTS.format(mended=mended))
        command = [*(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")]
        command += ["-p", "benchmarks.passed", "--passed", str(passed), *processes, file.name]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout

    code, out = run(False)
    assert code == 1, out
    assert len(passed.read_text().splitlines()) == 4
    code, out = run(True)
    assert code == 0, out
    assert "1 passed" in out
    # It is not an error that no tests are left.
    code, out = run(True)
    assert code == 0, out
    assert len(set(passed.read_text().splitlines())) == 5


def test_run_again_a_step_runs_all_its_tests(gpu, tmp_path):
    kept, forgotten = tmp_path / "tests_rest.passed", tmp_path / "tests_contract.passed"
    kept.touch()
    forgotten.touch()
    gpu.Run(tmp_path).forget(["tests_contract", ""])
    assert kept.exists()
    assert not forgotten.exists()


@pytest.fixture
def few(gpu, monkeypatch):
    """Quick steps: one writes, one fails, one never ends."""
    write = "open('{0}/a.csv', 'a').write('line\\n'); print('written')"

    def steps(args):
        return [
            gpu.Step("first", 30, python(write.format(args.results)), ["a.csv"]),
            gpu.Step("second", 30, python("print('bad luck'); raise SystemExit(3)")),
            gpu.Step("third", 1, python("import time; print('x', flush=True); time.sleep(60)")),
            gpu.Step("fourth", 0, None, note="no such tool"),
            gpu.Step("fifth", 30, python("print('the end')")),
        ]

    monkeypatch.setattr(gpu, "steps", steps)
    return steps


@pytest.mark.usefixtures("few")
def test_every_step_runs_whatever_became_of_the_others(gpu, tmp_path, capfd):
    results = tmp_path / "new" / "folder"
    assert gpu.main([str(results), *DRY]) == 1
    table = capfd.readouterr().out.split("note\n")[1].splitlines()
    rows = [" ".join(line.split()) for line in table[:5]]
    assert [row.split()[0] for row in rows] == ["first", "second", "third", "fourth", "fifth"]
    assert rows[0].startswith("first ok")
    assert rows[0].endswith("written")
    assert rows[1].startswith("second FAILED")
    assert rows[1].endswith("exit status 3")
    assert rows[2].startswith("third timed out")
    assert rows[3] == "fourth left out 0.0 0 no such tool"
    assert rows[4].endswith("the end")
    assert (results / "second.log").read_text() == "bad luck\n"
    assert (results / "third.log").read_text() == "x\n"


@pytest.mark.usefixtures("few")
def test_what_came_to_its_end_is_not_run_again(gpu, tmp_path, capfd):
    gpu.main([str(tmp_path), *DRY, "--steps", "first,second,third"])
    capfd.readouterr()
    (tmp_path / "third.log").unlink()
    assert gpu.main([str(tmp_path), *DRY]) == 1
    out = capfd.readouterr().out
    assert "== first: ok before" in out
    assert "== second: FAILED before" in out
    assert "== third, at most" in out
    # A step that starts again does not keep its old lines.
    assert (tmp_path / "a.csv").read_text() == "line\n"
    gpu.main([str(tmp_path), *DRY, "--steps", "first,second", "--again", "first,failed"])
    assert "before" not in capfd.readouterr().out
    assert (tmp_path / "a.csv").read_text() == "line\n"
    assert set(json.loads((tmp_path / "steps.json").read_text())) >= {"first", "second", "fifth"}


def test_the_table_comes_also_where_it_is_terminated(tmp_path: Path):
    code = (
        f"import sys; sys.path[:0] = [{str(BENCHMARKS)!r}, {str(ROOT)!r}]; import gpu; "
        "gpu.steps = lambda args: [gpu.Step('long', 60, [sys.executable, '-c', "
        "'import time; time.sleep(60)']), gpu.Step('next', 9, ['true'])]; "
        f"sys.exit(gpu.main([{str(tmp_path)!r}, '--device', 'cpu']))"
    )
    process = subprocess.Popen(python(code), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "== long" not in process.stdout.readline():
        pass
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert "interrupted: the same command goes on" in out
    assert "next                   not run" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_so_in_a_sentence(gpu, tmp_path, capsys):
    assert gpu.main([str(tmp_path / "never")]) == 2
    assert capsys.readouterr().err.startswith("gpu.py: PyTorch sees no GPU on this machine;")
    assert not (tmp_path / "never").exists()


def test_unknown_steps_are_named(gpu, tmp_path, capsys):
    with pytest.raises(SystemExit):
        gpu.parse([str(tmp_path), *DRY, "--steps", "doctor,lunch"])
    assert "got lunch" in capsys.readouterr().err


def test_tf32_is_a_dtype_of_the_upsampling_benchmark(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    bench = importlib.import_module("bench_upsample")
    assert bench.parse(["--device", "cpu", "--dtype", "tf32"]).dtype == "tf32"


def test_the_crf_benchmark_draws_where_there_is_no_photograph(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    bench = importlib.import_module("bench_crf")
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    drawn = bench.photograph(300, 200)
    assert drawn.shape == (200, 300, 3)
    assert drawn.dtype == "uint8"
    assert drawn.std() > 20
