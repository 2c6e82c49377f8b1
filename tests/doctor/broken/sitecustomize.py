"""Breaks an operator in every Python process that has this folder on PYTHONPATH, to test whether
the doctor detects it. ATROUSX_TEST_BREAK=OPERATOR:HOW, where HOW is "wrong" (results 1 % too
large), "raise", or "abort" (only once: then the file ATROUSX_TEST_BREAK_ONCE exists).

ATROUSX_TEST_BREAK_KERNEL adds the emulated device, and breaks its kernels whose names contain this
text. "" breaks none.
"""

import os
from pathlib import Path

name, _, how = os.environ.get("ATROUSX_TEST_BREAK", "").partition(":")

if name:
    import torch

    import atrousx  # noqa: F401, it registers the operators

    kernel = torch.library.get_kernel(f"atrousx::{name}", "CPU")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def too_large(result):
        if isinstance(result, (tuple, list)):
            return tuple(map(too_large, result))
        return 1.01 * result if result.is_floating_point() else result

    def broken(*args):
        if how == "raise":
            raise RuntimeError("broken on purpose")
        once = os.environ.get("ATROUSX_TEST_BREAK_ONCE")
        if how == "abort" and not Path(once).exists():
            Path(once).touch()
            os.abort()
        result = kernel.call_boxed(keys, *args)
        return too_large(result) if how == "wrong" else result

    library = torch.library.Library("atrousx", "IMPL")
    library.impl(name, broken, "CPU", allow_override=True)

if (kernels := os.environ.get("ATROUSX_TEST_BREAK_KERNEL")) is not None:
    from tests.emulator.device import add_device

    add_device().break_kernels(kernels)
