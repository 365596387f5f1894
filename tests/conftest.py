"""What holds for all folders."""

import signal

import pytest

# Its assertions say what they compared, as those of the tests do. Before anything imports it.
pytest.register_assert_rewrite("tests.harness")

# A run in the background of a script, or under nohup, inherits signals that are ignored; so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD):
    signal.signal(number, signal.SIG_DFL)
