"""What a measurement is: samples, a ratio, a target, a verdict. No printing here."""

from dataclasses import asdict, dataclass
from statistics import median

Json = dict[str, object]


@dataclass(frozen=True)
class Samples:
    """The values of one subject, one for each round, in the order of the rounds."""

    name: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The value in the middle."""
        return median(self.values)

    @property
    def low(self) -> float:
        """The least."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The greatest."""
        return max(self.values)


@dataclass(frozen=True)
class Target:
    """A limit on the row's ratio, or on its own value when `of` is "value".

    `worst` judges by the worst round instead of the median: for what must never happen.
    """

    bound: str  # ">=" or "<="
    limit: float
    of: str = "ratio"
    worst: bool = False

    def allows(self, figure: float) -> bool:
        """Whether the figure is on the right side."""
        return figure >= self.limit if self.bound == ">=" else figure <= self.limit


@dataclass(frozen=True)
class Row:
    """One line of the result: ours beside theirs (or beside a floor), in one unit."""

    name: str
    unit: str
    ours: Samples
    theirs: Samples | None = None
    target: Target | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Ours / theirs, of the medians."""
        return self.ours.median / self.theirs.median if self.theirs else None

    @property
    def round_ratios(self) -> tuple[float, ...]:
        """Ours / theirs, round by round: how far the ratio moves with the machine."""
        if self.theirs is None:
            return ()
        return tuple(a / b for a, b in zip(self.ours.values, self.theirs.values, strict=False))

    @property
    def verdict(self) -> str:
        """met, missed, or, where single rounds disagree with the median, that as well."""
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
        """All of it, with the figures that follow from the samples."""
        return asdict(self) | {"ratio": self.ratio, "round_ratios": self.round_ratios, "verdict": self.verdict}
