"""Draws the pictures and writes the pages and tables of measurements before Sphinx reads the rest.

The directive ``picture`` shows one of pictures.py, in its form for light and for dark pages.
"""

from __future__ import annotations

import performance
import pictures
import reproduction_tables
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx


class Picture(Directive):
    """``picture NAME``; the content says what is to be seen."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        self.assert_has_content()
        [name] = self.arguments
        box = nodes.container(classes=["picture"])
        for theme in pictures.THEMES:
            uri = f"/_generated/{name}-{theme}.svg"
            box += nodes.image(uri=uri, alt=" ".join(self.content), classes=[f"only-{theme}"])
        return [box]


def make(_: Sphinx) -> None:
    performance.write_pages()
    reproduction_tables.write_tables()
    pictures.main()


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", make)
    app.add_directive("picture", Picture)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
