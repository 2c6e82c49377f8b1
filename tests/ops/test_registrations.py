"""Every operator of the schema has its kernels, gradient, fake kernel and autocast rule."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from atrousx import _library

SCHEMA = Path(__file__).parents[2] / "csrc" / "schema.cpp"
NAMES = re.findall(r'"(_?[a-z0-9_]+)\(', SCHEMA.read_text())


def has_kernel(name: str, key: str) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(f"atrousx::{name}", key))


def serves(name: str, device: str) -> bool:
    # An operator without tensors has one kernel for all devices. A composed operator needs no own
    # one.
    return any(
        has_kernel(name, key)
        for key in (device, "CompositeExplicitAutograd", "CompositeImplicitAutograd")
    )


def test_schema_list_is_what_is_registered():
    registered = {
        name.removeprefix("atrousx::").split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("atrousx::")
    }
    assert registered == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["CPU", "Meta"])
def test_kernels(name, key):
    assert serves(name, key)


@pytest.mark.skipif(_library.cuda is None, reason="built without the CUDA library")
@pytest.mark.parametrize("name", NAMES)
def test_cuda_kernels(name):
    assert serves(name, "CUDA")


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("_")])
@pytest.mark.parametrize("key", ["Autograd", "AutocastCPU", "AutocastCUDA"])
def test_public_operators_have_gradient_and_autocast_rule(name, key):
    assert has_kernel(name, key)


@pytest.mark.skipif(_library.cuda is None, reason="built without the CUDA library")
def test_cuda_library_does_not_need_cuda_at_load_time():
    needed = _library.cuda.file.read_bytes()
    assert b"libtorch_cuda.so" in needed  # looked up by name at run time
    assert b"libcudart.so" not in needed  # linked statically
