#!python
# PYTHON_ARGCOMPLETE_OK
import sys

from kv.cli.main import main

sys.exit(main())
