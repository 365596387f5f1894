"""How much more than usual the random tests do: KVD_TEST_SCALE, which `make soak` sets."""

import os

SCALE = float(os.environ.get("KVD_TEST_SCALE", "1"))
# The same as a whole number, for what is repeated.
TIMES = max(1, int(SCALE))
