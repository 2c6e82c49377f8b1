"""Every instruction set of this CPU gives correct results, not only the one in use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
ISAS = ("portable", "avx2", "avx512")


def run(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "ATROUSX_CPU": isa},
        capture_output=True,
        text=True,
    )


# "avx512" differs from the best instruction set of a CPU only in bfloat16.
@pytest.mark.parametrize(
    ("isa", "chosen"),
    [
        ("portable", "oracle and cpu"),
        ("avx2", "oracle and cpu"),
        ("avx512", "oracle and cpu and conv2d and dtype3"),
    ],
)
def test_lesser_instruction_sets_against_the_oracles(isa, chosen):
    in_use = run(isa, "-c", "from atrousx import _library; print(_library.core.cpu_isa)")
    # A machine without AVX2 stays portable, whatever is requested.
    assert ISAS.index(in_use.stdout.strip()) <= ISAS.index(isa), in_use.stderr
    selected = ["-m", "pytest", "tests/ops", "-k", chosen, "-p", "no:cacheprovider"]
    result = run(isa, *selected, f"--ignore={__file__}")
    assert result.returncode == 0, result.stdout[-4000:]
