"""A measurement: samples, a ratio, a target and a verdict. This module prints nothing."""

from dataclasses import asdict, dataclass
from statistics import median

Json = dict[str, object]


@dataclass(frozen=True)
class Samples:
    """The values of one subject, one for each round, in order."""

    name: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median value."""
        return median(self.values)

    @property
    def low(self) -> float:
        """The minimum."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The maximum."""
        return max(self.values)


@dataclass(frozen=True)
class Target:
    """A limit on the row's ratio, or on its own value if `of` is "value".

    With `worst` the worst round counts instead of the median, for limits that must never be exceeded.
    """

    bound: str  # ">=" or "<="
    limit: float
    of: str = "ratio"
    worst: bool = False

    def allows(self, figure: float) -> bool:
        """Whether the figure meets the target."""
        return figure >= self.limit if self.bound == ">=" else figure <= self.limit


@dataclass(frozen=True)
class Row:
    """One line of the result: kvd beside another subject or a floor, in one unit."""

    name: str
    unit: str
    ours: Samples
    theirs: Samples | None = None
    target: Target | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """The ratio of the medians, ours / theirs."""
        return self.ours.median / self.theirs.median if self.theirs else None

    @property
    def round_ratios(self) -> tuple[float, ...]:
        """Ours / theirs of each round, which shows how much the machine changes the ratio."""
        if self.theirs is None:
            return ()
        return tuple(a / b for a, b in zip(self.ours.values, self.theirs.values, strict=False))

    @property
    def verdict(self) -> str:
        """`met` or `missed`, and the number of rounds that agree if some do not."""
        if self.target is None:
            return ""
        by_round = self.round_ratios if self.target.of == "ratio" else self.ours.values
        if self.target.worst:
            return "met" if all(map(self.target.allows, by_round)) else "missed"
        middle = self.ratio if self.target.of == "ratio" else self.ours.median
        met = middle is not None and self.target.allows(middle)
        agreeing = sum(self.target.allows(one) == met for one in by_round)
        word = "met" if met else "missed"
        return word if agreeing == len(by_round) else f"{word} ({agreeing} of {len(by_round)} rounds)"

    def as_json(self) -> Json:
        """The whole row, with the figures that follow from the samples."""
        return asdict(self) | {"ratio": self.ratio, "round_ratios": self.round_ratios, "verdict": self.verdict}
