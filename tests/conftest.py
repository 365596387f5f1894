"""What holds for all folders."""

import pytest

# Its assertions say what they compared, as those of the tests do. Before anything imports it.
pytest.register_assert_rewrite("tests.harness")
