"""Formulas as MathML, which browsers draw themselves: no script, and no other site is asked."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def mathml(node: nodes.Element, display: str) -> str:
    # The converter does not know "arg".
    formula = node.astext().replace("\n", " ").replace(r"\arg\max", r"\mathrm{arg\,max}")
    found: str = convert(formula, display=display)
    if "\\" in found:
        logger.warning("a formula has a command that is not converted: %s", formula, location=node)
    return found


def inline(translator: Any, node: nodes.Element) -> None:
    translator.body.append(mathml(node, "inline"))
    raise nodes.SkipNode


def block(translator: Any, node: nodes.Element) -> None:
    formula = mathml(node, "block")
    translator.body.append(f'<div class="math-block">{formula}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
