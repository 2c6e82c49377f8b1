"""Every C++ kernel has the parameter and result types of its schema: boxing would cast any type.

The test reads the sources, not the libraries, so it also compares the CUDA kernels where nothing
can compile them.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import atrousx  # noqa: F401  (registers the operators)

CSRC = Path(__file__).parents[2] / "csrc"
# From a kernel's type to the schema's type. Sizes is arguments.h's name for a list of integers.
TYPES = {
    "Tensor": "Tensor",
    "const Tensor&": "Tensor",
    "std::optional<Tensor>": "Optional[Tensor]",
    "std::vector<Tensor>": "List[Tensor]",
    "int64_t": "int",
    "bool": "bool",
    "double": "float",
    "std::optional<double>": "Optional[float]",
    "std::vector<int64_t>": "List[int]",
    "Sizes": "List[int]",
    "std::vector<double>": "List[float]",
    "ScalarType": "ScalarType",
    "std::string": "str",
}


class Kernel(NamedTuple):
    operator: str
    function: str
    file: Path

    def __str__(self) -> str:
        return f"{self.operator}-{self.file.name}"


def find_kernels() -> list[Kernel]:
    boxed = re.compile(
        r'm\.impl\(\s*"(\w+)",\s*(?:TORCH_BOX\(&|ATROUSX_BOX\()(?:atrousx::)?(\w+)(?:<[\w:]+>)?\)\)'
    )
    found = []
    for file in sorted([*CSRC.rglob("*.cpp"), *CSRC.rglob("*.cu")]):
        text = file.read_text()
        here = [Kernel(operator, function, file) for operator, function in boxed.findall(text)]
        assert len(here) == text.count("m.impl("), f"{file} registers in a way that is not known"
        found += here
    return found


KERNELS = find_kernels()


def split_outside_brackets(text: str) -> list[str]:
    """Splits a list at commas, except commas inside angle brackets."""
    items, depth = [""], 0
    for character in text:
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "," and depth == 0:
            items.append("")
        else:
            items[-1] += character
    return [item.strip() for item in items if item.strip()]


def signature(kernel: Kernel) -> tuple[list[str], list[str]]:
    """Returns the types of the parameters and of the results in the source."""
    # If devices share a kernel, it is a template in a header of the operator's folder.
    headers = kernel.file.parents[1].rglob("*.h")
    definition = re.compile(
        rf"^((?:std::tuple<[\w:, ]+>)|[\w:<>]+) {kernel.function}\(([^;{{}}]*)\) \{{", re.MULTILINE
    )
    for file in itertools.chain([kernel.file], headers):
        text = re.sub(r"/\*.*?\*/", "", file.read_text())
        if match := definition.search(text):
            result, parameters = (re.sub(r"\s+", " ", part) for part in match.groups())
            types = [
                re.sub(r"(?<=[>&\w]) \w+$", "", item) for item in split_outside_brackets(parameters)
            ]
            many = re.fullmatch(r"std::tuple<(.*)>", result)
            results = split_outside_brackets(many[1]) if many else [result]
            return types, [] if results == ["void"] else results
    raise AssertionError(f"no definition of {kernel.function} for {kernel.file}")


def schema_type(argument: torch.Argument) -> str:
    return "ScalarType" if str(argument.real_type) == "ScalarType" else str(argument.type)


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_kernel_has_the_signature_of_its_schema(kernel):
    schema = getattr(torch.ops.atrousx, kernel.operator).default._schema
    parameters, results = signature(kernel)
    assert [TYPES[t] for t in parameters] == [schema_type(a) for a in schema.arguments]
    assert [TYPES[t] for t in results] == [schema_type(r) for r in schema.returns]


def test_reading_a_signature(tmp_path):
    file = tmp_path / "x.cpp"
    file.write_text(
        "std::tuple<Tensor, Tensor> other(bool a);\n"
        "std::tuple<Tensor, Tensor> f(const Tensor& a, std::optional<Tensor> /*unused*/,\n"
        "                             std::vector<int64_t> c, int64_t /*d*/, ScalarType e) {\n"
    )
    parameters = ["const Tensor&", "std::optional<Tensor>", "std::vector<int64_t>", "int64_t"]
    assert signature(Kernel("f", "f", file)) == (
        [*parameters, "ScalarType"],
        ["Tensor", "Tensor"],
    )


def test_every_operator_has_a_kernel_that_is_compared():
    registered = {
        name.removeprefix("atrousx::").split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("atrousx::")
    }
    # Python composes these of other operators.
    composed = {"_permutohedral_build", "_measured_conv2d"}
    assert registered - {kernel.operator for kernel in KERNELS} == composed
