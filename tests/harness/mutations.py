"""Random damage to valid input: what fuzzers feed to a reader that must take or refuse anything.

Each input comes from one seed, so a failure can be repeated: the tests name the seed.
"""

import random
from collections.abc import Iterator, Sequence

# Bytes at which readers change their mind: limits of MessagePack, ends of lines, quotes, controls, broken UTF-8.
EDGES = (
    b"\x00", b"\x7f", b"\x80", b"\x8f", b"\x90", b"\x9f", b"\xa0", b"\xbf", b"\xc0", b"\xc1", b"\xc4\xff", b"\xc7\xff",
    b"\xd9\xff", b"\xdb\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xe0",
    b"\xff", b"\r\n", b"\n", b"\r", b" ", b"\t", b'"', b"'", b"\\", b"=", b":", b",", b"/", b"%00", b"%", b"-1",
    b"9" * 400, b"18446744073709551616", b"-9223372036854775809", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf",
    b"[[[[[[[[[[[[[[[[", b"{" * 200, b"= " + b"[" * 3_000,
)  # fmt: skip


def mutated(sample: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """Return ``sample`` with one to eight changes; some splice in a part of one of ``others``."""
    data = bytearray(sample)
    for _ in range(chance.randint(1, 8)):
        at = chance.randint(0, len(data))
        end = min(len(data), at + chance.choice((1, 1, 1, 2, 4, 16, 256)))
        match chance.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                del data[at:end]
            case 2:
                data[at:at] = chance.choice(EDGES)
            case 3:
                data[at:end] = chance.choice(EDGES)
            case 4:
                data[at:at] = data[at:end] * chance.choice((1, 2, 50))
            case 5:
                other = chance.choice(others)
                begin = chance.randint(0, len(other))
                data[at:at] = other[begin : begin + chance.choice((1, 8, 64, 1024))]
            case _:
                del data[at + chance.randrange(16) :]
    return bytes(data)


def inputs(samples: Sequence[bytes], count: int, first_seed: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield ``count`` pairs: the seed, and a damaged sample."""
    for seed in range(first_seed, first_seed + count):
        chance = random.Random(seed)  # noqa: S311 - to repeat a failure
        yield seed, mutated(chance.choice(samples), samples, chance)


# What stands in a request in place of what belongs there.
ODD_VALUES: tuple[object, ...] = (
    None, True, False, 0, 1, -1, 7, 2**31, 2**63 - 1, -(2**63), 2**64 - 1, 0.5, float("nan"), float("inf"), "", "a",
    "\0", "\U0010ffff", "\ud7ff", "a" * 5_000, b"", b"a", b"\xff" * 5_000, [], [[]], ["a"], ["a",
    "a"], [["a", None]], {},
    {"a": b"1"}, {"a": None},
    {"": 0}, {"ttl": -1}, {"ttl": 2**62}, {"id": b"0" * 16, "since": 0}, {"keep": True},
)  # fmt: skip


def distorted(sample: object, chance: random.Random, others: Sequence[object]) -> object:
    """Return ``sample``, lists and dicts, with some of its parts replaced, repeated, swapped or gone."""
    if chance.random() < 0.12:
        return chance.choice(ODD_VALUES)
    if chance.random() < 0.03:
        return chance.choice(others)
    if isinstance(sample, list):
        parts = [distorted(part, chance, others) for part in sample if chance.random() > 0.03]
        return [*parts, chance.choice(ODD_VALUES)] if chance.random() < 0.08 else parts
    if isinstance(sample, dict):
        return {key: distorted(part, chance, others) for key, part in sample.items() if chance.random() > 0.05}
    return sample
