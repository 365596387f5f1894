# PYTHON_ARGCOMPLETE_OK
"""``python -m kv``: the command line."""

import sys

from kv.cli.main import main

sys.exit(main())
