"""Runs the ``atrousx`` command as ``python -m atrousx``."""

import sys

from .cli import main

sys.exit(main())
