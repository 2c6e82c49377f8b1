"""Sphinx builds the documentation from this folder; `make docs` runs it."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "extensions"), str(HERE.parent)]
os.environ["ATROUSX_CACHE"] = "0"

import atrousx  # noqa: E402

project = "atrousx"
author = "the atrousx contributors"
version = release = atrousx.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "command_line",
    "mathml",
    "pages_made_by_scripts",
]
exclude_patterns = ["_build", "_generated", "extensions"]
myst_enable_extensions = ["deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"
copybutton_exclude = ".linenos, .go"

# The package's docstrings have two sections that others lack.
napoleon_custom_sections = [("Shape", "returns_style"), "Source"]
napoleon_numpy_docstring = False
napoleon_use_rtype = False
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
add_module_names = False
python_maximum_signature_line_length = 72
python_use_unqualified_type_names = True
nitpicky = True
# Types of other packages, and names that docstrings use in prose, have no page here.
nitpick_ignore_regex = [
    ("py:.*", r"(torch|nn|np|numpy|collections|typing|Tensor|Sequence|Mapping|Path|pathlib)\b.*"),
]

html_theme = "furo"
html_title = "atrousx"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
