"""Every public name has an example, and every example in the package gives the result it shows."""

import doctest
import importlib
import pkgutil

import pytest

import atrousx

MODULES = [
    module.name
    for module in pkgutil.walk_packages(atrousx.__path__, "atrousx.")
    # Compiled libraries have no docstrings. Importing __main__ would run the command.
    if not module.name.endswith(("._C", "._cuda", ".__main__"))
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_do_what_they_say(name):
    if name.startswith("atrousx.data."):
        pytest.importorskip("cv2")
    # PyTorch decides how printed tensors are padded with spaces.
    options = doctest.NORMALIZE_WHITESPACE
    assert doctest.testmod(importlib.import_module(name), optionflags=options).failed == 0


@pytest.mark.parametrize("package", [atrousx, atrousx.ops, atrousx.models])
def test_public_functions_and_layers_have_an_example(package):
    public = {name: getattr(package, name) for name in package.__all__}
    assert not [
        name
        for name, value in public.items()
        if callable(value) and ">>> " not in (value.__doc__ or "")
    ]
