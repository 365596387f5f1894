"""Which operation comes next, and on which key: reproducible by the seed, one source for each process."""

from itertools import accumulate
from math import exp, expm1, log, log1p
from random import Random

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kv.cli.bench.plan import Plan

# The exponent of YCSB: of 10,000 keys the hottest gets a tenth of all requests.
ZIPF_EXPONENT = 0.99
# A prime: rank * prime % keys gives every key once, if the prime does not divide the number of keys.
_SCATTER = 2_654_435_761


def key_of(prefix: str, number: int) -> str:
    """Return the name of key ``number``."""
    return f"{prefix}{number:08}"


def counter_of(prefix: str, number: int) -> str:
    """Return the name of counter ``number``; ``incr`` adds to counters."""
    return f"{prefix}n{number:08}"


class Choices:
    """The operations and keys of one process."""

    def __init__(self, plan: "Plan", prefix: str, process: int) -> None:
        random = Random(f"{plan.seed}/{process}")  # noqa: S311 (work, no secret)
        self.value = random.randbytes(plan.value_bytes)
        self._random = random.random
        self._prefix = prefix
        self._number = uniform(plan.keys, self._random) if plan.distribution == "uniform" else zipf(plan.keys, random)
        self._limits = list(zip(accumulate(plan.mix.values()), plan.mix, strict=True))
        self._last = self._limits[-1][1]

    def operation(self) -> str:
        """Draw the next operation, in the shares of the mix."""
        at = self._random()
        for limit, name in self._limits:
            if at < limit:
                return name
        return self._last  # a sum of fractions may end just below 1

    def request(self, operation: str) -> tuple[object, ...]:
        """Draw a key, and return the request of ``operation`` for it."""
        number = self._number()
        if operation == "get":
            return ("get", key_of(self._prefix, number))
        if operation == "set":
            return ("set", {key_of(self._prefix, number): self.value})
        if operation == "del":
            return ("delete", [key_of(self._prefix, number)], True)
        return ("increment", counter_of(self._prefix, number), 1)

    def key(self) -> str:
        """Draw the next key."""
        return key_of(self._prefix, self._number())

    def counter(self) -> str:
        """Draw the next counter."""
        return counter_of(self._prefix, self._number())


def uniform(keys: int, random: "Callable[[], float]") -> "Callable[[], int]":
    """Return a function that draws each of 0 to ``keys`` - 1 equally often."""
    return lambda: int(random() * keys)


def zipf(keys: int, random: Random, exponent: float = ZIPF_EXPONENT) -> "Callable[[], int]":
    """Return a function that draws the key of rank r in proportion to 1 / r ** exponent.

    The ranks are scattered over 0 to ``keys`` - 1.

    Rejection-inversion: W. Hörmann, G. Derflinger, "Rejection-inversion to generate variates from monotone discrete
    distributions", ACM TOMACS 6(3), 1996. It needs no table, and 1.1 attempts on average.
    """
    power = 1 - exponent

    # The integral of the hat function, exact also where power * log(x) is small, and its inverse.
    def integral(x: float) -> float:
        return expm1(power * log(x)) / power

    def inverse(y: float) -> float:
        return exp(log1p(max(y * power, -1.0)) / power)

    first, last = integral(1.5) - 1, integral(keys + 0.5)
    near = 2 - inverse(integral(2.5) - 2**-exponent)
    draw = random.random

    def rank() -> int:
        while True:
            u = last + draw() * (first - last)
            x = inverse(u)
            k = min(max(int(x + 0.5), 1), keys)
            if k - x <= near or u >= integral(k + 0.5) - k**-exponent:
                return k

    return lambda: rank() * _SCATTER % keys
