"""The fields of a training recipe as options of the command line."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import typing
from typing import Any

from ..training.recipe import CHOICES, Recipe
from ..training.recipes import RECIPES
from ._shared import CommandError

PREFIX = "field_"


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Adds --recipe, --then, and an option for each field of a recipe."""
    group = parser.add_argument_group("recipe")
    group.add_argument(
        "--recipe",
        required=True,
        choices=tuple(RECIPES),
        help="where the options below that are not given come from",
    )
    group.add_argument(
        "--then",
        action="append",
        default=[],
        metavar="RECIPE[,FIELD=VALUE...]",
        help="another recipe to go on with afterwards, for instance v3_os8,iterations=1000; it "
        "takes the options below, too",
    )
    fields = parser.add_argument_group("fields of the recipe")
    texts = _help_texts()
    for field in dataclasses.fields(Recipe):
        option, kept = f"--{field.name.replace('_', '-')}", PREFIX + field.name
        shown = texts.get(field.name, "")
        if _kind(field.name) is bool:
            fields.add_argument(
                option, dest=kept, action=argparse.BooleanOptionalAction, default=None, help=shown
            )
        else:
            fields.add_argument(
                option,
                dest=kept,
                metavar=_metavar(field.name),
                help=shown,
                type=_reader(field.name),
            )


def chosen_recipes(args: argparse.Namespace) -> list[tuple[str, Recipe]]:
    """Returns name and recipe of each part of the training.

    Raises:
        CommandError: a recipe is unknown, or a field has a wrong value.
    """
    given = {
        name.removeprefix(PREFIX): value
        for name, value in vars(args).items()
        if name.startswith(PREFIX) and value is not None
    }
    found = [(args.recipe, _changed(args.recipe, given, "--recipe"))]
    for text in args.then:
        name, *changes = text.split(",")
        if name not in RECIPES:
            raise CommandError(f"--then {text}: a recipe is one of {', '.join(RECIPES)}")
        own = dict(_assignment(change, text) for change in _rejoined(changes))
        found.append((name, _changed(name, given | own, f"--then {text}")))
    return found


def _changed(name: str, changes: dict[str, Any], option: str) -> Recipe:
    try:
        return RECIPES[name].replace(**changes)
    except (TypeError, ValueError) as error:
        raise CommandError(f"{option}: {error}") from error


def _rejoined(parts: list[str]) -> list[str]:
    """Puts values that hold commas together again: scale=0.5, 2 is one assignment."""
    found: list[str] = []
    for part in parts:
        if "=" in part or not found:
            found.append(part)
        else:
            found[-1] += f",{part}"
    return found


def _assignment(text: str, whole: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or name not in {field.name for field in dataclasses.fields(Recipe)}:
        raise CommandError(f"--then {whole}: {text!r} is not FIELD=VALUE of a recipe")
    try:
        return name, _reader(name)(value)
    except ValueError as error:
        raise CommandError(f"--then {whole}: {value!r} is no value of {name}") from error


def _kind(name: str) -> Any:
    """Returns the type of a field without None: int, float, str, bool or a tuple type."""
    hint = typing.get_type_hints(Recipe)[name]
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    is_optional = type(None) in typing.get_args(hint)
    found = kinds[0] if is_optional else hint
    return str if typing.get_origin(found) is typing.Literal else found


def _reader(name: str) -> Any:
    """Returns the function that reads a field's value from text."""
    kind = _kind(name)
    if kind is bool:
        return _boolean
    if typing.get_origin(kind) is not tuple:
        return kind
    item, count = typing.get_args(kind)[0], len(typing.get_args(kind))

    def read(text: str) -> tuple[Any, ...]:
        values = tuple(item(part) for part in re.split("[x,]", text))
        # One number stands for height and width.
        return values * 2 if name == "crop" and len(values) == 1 and count == 2 else values

    read.__name__ = _metavar(name)  # argparse shows it in its message about a wrong value
    return read


def _boolean(text: str) -> bool:
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise ValueError(text)
    return values[text.lower()]


def _metavar(name: str) -> str:
    if name in CHOICES:
        return "{" + ",".join(CHOICES[name]) + "}"
    names = {"crop": "HxW", "scale": "LOW,HIGH", "multi_grid": "A,B,C"}
    return names.get(name, {int: "N", float: "X"}.get(_kind(name), "NAME"))


def _help_texts() -> dict[str, str]:
    """Returns what the docstring of Recipe says of each field, so that it is written once."""
    documented = inspect.getdoc(Recipe) or ""  # None under python -OO
    arguments = re.search(r"Args:\n(.*?)\n\n", documented, re.DOTALL)
    entries = re.findall(
        r"^ {4}(\w+): (.*(?:\n {8}.*)*)", arguments[1] if arguments else "", re.MULTILINE
    )
    return {
        name: re.sub(r"\s+", " ", text).replace("``", "").replace("%", "%%")
        for name, text in entries
    }
