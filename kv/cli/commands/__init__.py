"""One module for each command, imported only when that command runs.

Each has ``USAGE``, ``EXAMPLES`` and ``DETAILS`` for people, ``arguments(parser)`` and ``run(context) -> exit code``.
"""
