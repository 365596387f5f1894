"""Two checkouts measured in the same rounds: the ratio of each pair and how far the ratios spread. Measures nothing.

A *pair* is one measurement of each checkout, one directly after the other. A *round* holds a few pairs of the same two
daemons. The ratio of a round is the median of its pairs, so that one disturbed measurement does not count. The result
is the median of the rounds, because a daemon is a little faster or slower after each start.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles

from bench.rows import Json

Rounds = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Spread:
    """How ratios spread: the median, the quartiles around it, and both ends."""

    median: float
    first_quartile: float
    third_quartile: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of one value or more."""
        first, third = values[0], values[0]
        if len(values) > 1:
            first, _, third = quantiles(values, n=4, method="inclusive")
        return cls(median(values), first, third, min(values), max(values))


@dataclass(frozen=True)
class Paired:
    """One cost of both checkouts. Each round holds the measurements of its pairs, in order."""

    ours: Rounds
    theirs: Rounds

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours / theirs of each round."""
        return tuple(_round_ratio(ours, theirs) for ours, theirs in zip(self.ours, self.theirs, strict=True))

    @property
    def spread(self) -> Spread:
        """How the ratios of the rounds spread."""
        return Spread.of(self.ratios)

    @property
    def medians(self) -> tuple[float, float]:
        """The median cost of each checkout, over all measurements."""
        ours, theirs = (median([value for values in side for value in values]) for side in (self.ours, self.theirs))
        return ours, theirs

    def as_json(self) -> Json:
        """All measurements, with the figures that follow from them."""
        ours, theirs = self.medians
        figures = {"median_ours": ours, "median_theirs": theirs, "ratio": asdict(self.spread), "ratios": self.ratios}
        return {**figures, "ours": self.ours, "theirs": self.theirs}


@dataclass(frozen=True)
class Comparison:
    """One row of the result: the compared cost, and its parts."""

    name: str
    unit: str
    description: str
    cost: Paired
    parts: Mapping[str, Paired]

    def as_json(self) -> Json:
        """The row with all its samples."""
        parts = {name: part.as_json() for name, part in self.parts.items()}
        facts = {"name": self.name, "unit": self.unit, "description": self.description}
        return {**facts, **self.cost.as_json(), "parts": parts}


def in_turn(sides: Sequence[str], number: int) -> tuple[str, ...]:
    """The order of the sides in this round or pair. Every second round or pair begins with the last side."""
    return tuple(sides) if number % 2 == 0 else tuple(reversed(sides))


def _round_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return median([one / other for one, other in zip(ours, theirs, strict=True)])
