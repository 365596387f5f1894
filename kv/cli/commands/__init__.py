"""One module for each command, imported only when that command runs.

Each has ``USAGE``, ``EXAMPLES`` and ``DETAILS`` for people; ``Options``, a class with the command's options and their
defaults; ``arguments(parser)``, which declares them; and ``run(context, options)``, which returns the exit code.
"""
