"""Loading the compiled libraries: they contain no Python, and a failure to load is reported."""

from __future__ import annotations

import pytest
import torch

from atrousx import _library

LIBRARIES = [library for library in (_library.core, _library.cuda) if library is not None]


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.file.name)
def test_libraries_hold_no_python(library):
    binary = library.file.read_bytes()
    assert b"PyInit_" not in binary
    assert b"PyObject" not in binary
    assert b"libpython" not in binary
    assert b"libtorch_python" not in binary


def test_libraries_know_what_they_were_built_for():
    isa, built_with = torch.ops.atrousx._cpu_build_info()
    assert isa in ("portable", "avx2", "avx512")
    assert built_with.split(".")[0] == "2"
    told = torch.ops.atrousx._cuda_build_info()
    if _library.cuda is None:
        assert tuple(told) == ("", "")
    else:
        assert tuple(told) == _library.cuda[1:]
        assert all(told)


REMEDY = r"Install it with 'pip install \.'.* it needs torch >= 2\.11, this is torch 2\."


def test_a_missing_library_is_named(tmp_path):
    with pytest.raises(ImportError, match=REMEDY) as error:
        _library._load_core(tmp_path)
    message = (
        f"atrousx could not load its compiled operators (there is no file {tmp_path / '_C.so'}"
    )
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_without_a_cuda_library_there_are_no_cuda_kernels(tmp_path):
    assert _library._load_cuda(tmp_path) is None


def test_a_library_that_does_not_load_says_why(tmp_path):
    for name, load, what in (
        ("_C.so", _library._load_core, "compiled operators"),
        ("_cuda.so", _library._load_cuda, "CUDA operators"),
    ):
        (tmp_path / name).write_text("no library at all, but long enough to be read as one" * 9)
        with pytest.raises(ImportError, match=REMEDY) as error:
            load(tmp_path)
        assert str(error.value).startswith(f"atrousx could not load its {what} (")
        assert "invalid ELF header" in str(error.value)
