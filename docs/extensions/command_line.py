"""The directive ``atrousx-command``: a command's options, from the parser that reads them."""

from __future__ import annotations

import argparse
from importlib import import_module

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx


def parser_of(command: str) -> argparse.ArgumentParser:
    commands = argparse.ArgumentParser(prog="atrousx").add_subparsers()
    import_module(f"atrousx.cli.{command.replace('-', '_')}").register(commands)
    found = commands.choices[command]
    assert isinstance(found, argparse.ArgumentParser)
    return found


def written(action: argparse.Action) -> str:
    """An option with its value, as a user types it."""
    value = action.metavar or ""
    if action.choices is not None:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    if not action.option_strings:
        return str(value or action.dest)
    names = ", ".join(action.option_strings)
    return f"{names} {value}" if action.nargs != 0 else names


def option(action: argparse.Action) -> nodes.definition_list_item:
    text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
    if text:
        # A name such as v3 stays as it is.
        first = text[0] if text[1:2].isdigit() else text[0].upper()
        text = f"{first}{text[1:]}."
    if action.required and action.option_strings:
        text = f"Required. {text}".strip()
    term = nodes.term("", "", nodes.literal(text=written(action)))
    return nodes.definition_list_item("", term, nodes.definition("", nodes.paragraph(text=text)))


class Command(Directive):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        parser = parser_of(self.arguments[0])
        found: list[nodes.Node] = [nodes.paragraph(text=parser.description or "")]
        for group in parser._action_groups:
            actions = [a for a in group._group_actions if not isinstance(a, argparse._HelpAction)]
            if not actions:
                continue
            title = {"options": "Options", "positional arguments": "Arguments"}
            name = title.get(str(group.title), str(group.title))
            found.append(nodes.rubric(text=name[:1].upper() + name[1:]))
            if group.description:
                found.append(nodes.paragraph(text=group.description))
            found.append(nodes.definition_list("", *map(option, actions)))
        return found


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("atrousx-command", Command)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
