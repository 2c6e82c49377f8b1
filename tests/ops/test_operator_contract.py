"""Properties of every operator in the schema, tested with arguments from operator_cases.py."""

from __future__ import annotations

import pytest
import torch

from atrousx import _library
from tests.ops.operator_cases import (
    Case,
    all_cases,
    cases,
    registered_operators,
    tensor_at,
    tensor_places,
    with_tensor,
)

NAMES = registered_operators()
# The keys of kernels that can be called without a GPU. CUDA's kernels are included, because their
# first check needs no GPU.
KEYS = ["CPU"] if _library.cuda is None else ["CPU", "CUDA"]


def operator(name):
    return getattr(torch.ops.atrousx, name).default


def several_tensors(name):
    kinds = [str(argument.type) for argument in operator(name)._schema.arguments]
    return sum("Tensor" in kind for kind in kinds) > 1


@pytest.mark.parametrize("name", NAMES)
def test_every_operator_has_cases_with_all_its_arguments(name):
    schema = operator(name)._schema.arguments
    for case in cases(name):
        assert len(case.arguments()) == len(schema)
    # Every tensor argument of an operator is given in some case.
    given = {
        place[0]
        for case in cases(name)
        for place in tensor_places(case.arguments(dtype=torch.float32))
    }
    wanted = {i for i, argument in enumerate(schema) if "Tensor" in str(argument.type)}
    assert given == wanted


@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_cases_are_valid(device, case: Case):
    if not case.serves(device):
        pytest.skip("asked on the CPU alone")
    for dtype in case.dtypes:
        operator(case.operator)(*case.arguments(device, dtype))


@pytest.mark.parametrize("name", [name for name in NAMES if several_tensors(name)])
def test_fake_kernels_refuse_tensors_on_two_devices(name):
    schema = operator(name)._schema.arguments
    for case in cases(name):
        arguments = case.arguments()
        for place in tensor_places(arguments):
            changed = with_tensor(arguments, place, tensor_at(arguments, place).to("meta"))
            with pytest.raises(RuntimeError, match="must be on the device of") as error:
                operator(name)(*changed)
            # The error names the argument that differs from the first one. If it is the first, it
            # names the next.
            named = str(error.value).split()[0].split("[")[0]
            assert named in {argument.name for argument in schema}
            if place != next(tensor_places(arguments)):
                assert named == schema[place[0]].name


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("name", [name for name in NAMES if several_tensors(name)])
def test_kernels_refuse_tensors_on_two_devices(name, key):
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    for case in cases(name):
        arguments = case.arguments()
        for place in tensor_places(arguments):
            changed = with_tensor(arguments, place, tensor_at(arguments, place).to("meta"))
            with pytest.raises(RuntimeError, match="must be on"):
                operator(name).redispatch(keys, *changed)


def storages(values):
    """Returns the addresses of the memory of all tensors among the values."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor) and value.numel():
            found.append(value.untyped_storage().data_ptr())
        elif isinstance(value, (list, tuple)):
            found += storages(value)
    return found


@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_results_share_no_memory_with_each_other_or_with_arguments(device, case: Case):
    if not case.serves(device):
        pytest.skip("asked on the CPU alone")
    arguments = case.arguments(device)
    results = operator(case.operator)(*arguments)
    results = results if isinstance(results, (list, tuple)) else [results]
    of_results = storages(results)
    assert len(set(of_results)) == len(of_results)
    assert not set(of_results) & set(storages(arguments))


@pytest.mark.parametrize(
    "case", [case for case in all_cases() if not case.operator.endswith("_")], ids=str
)
def test_arguments_are_not_changed(device, case: Case):
    if not case.serves(device):
        pytest.skip("asked on the CPU alone")
    arguments = case.arguments(device)
    operator(case.operator)(*arguments)
    for place in tensor_places(arguments):
        assert torch.equal(tensor_at(arguments, place), tensor_at(case.arguments(device), place))


@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_schemas_say_what_is_changed_and_shared(case: Case):
    torch.library.opcheck(
        operator(case.operator), tuple(case.arguments()), test_utils="test_schema"
    )
