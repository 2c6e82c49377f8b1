"""Makes ``python -m atrousx`` the same as the ``atrousx`` command."""

import sys

from .cli import main

sys.exit(main())
