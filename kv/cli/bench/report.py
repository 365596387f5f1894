"""The report on a benchmark, for people and as JSON."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kv.cli.bench.plan import Plan
    from kv.cli.bench.tally import Tally

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
_BAR_WIDTH = 40


class Results:
    """The results of one benchmark. Processor times are in seconds; ``daemon_s`` is None where it cannot be read."""

    def __init__(self, plan: "Plan", tally: "Tally", daemon_s: float | None, loaded_s: float) -> None:
        from kv.cli.bench.processor import verdict

        self.plan = plan
        self.tally = tally
        self.loaded_s = loaded_s
        self.seconds = max(tally.seconds, 1e-9)
        self.clients = tally.processor_s / self.seconds
        self.daemon = None if daemon_s is None else daemon_s / self.seconds
        self.limit, self.verdict = verdict(self.clients, self.daemon, plan.processes, near_cache=plan.near_cache)

    def rate(self, count: int) -> float:
        """Return ``count`` per second."""
        return count / self.seconds


def as_json(results: Results) -> "dict[str, object]":
    """Return every figure: times in µs, shares of one core."""
    from kv.cli.bench.histogram import highest_in
    from kv.cli.bench.processor import cores

    tally = results.tally
    succeeded = sum(tally.operations.values())
    latency = {_name(percent): _us(tally.histogram.percentile(percent)) for percent in PERCENTILES}
    return {
        "settings": results.plan.settings(),
        "seconds": round(results.seconds, 6),
        "operations": succeeded,
        "operations_per_second": round(results.rate(succeeded), 1),
        "by_operation": tally.operations,
        "errors": tally.errors,
        "latency_us": {**latency, "max": _us(tally.histogram.max)},
        "timed": tally.histogram.total,
        "histogram": [[_us(highest_in(index)), count] for index, count in tally.histogram.filled()],
        "processor": {
            "clients": round(results.clients, 3),
            "daemon": None if results.daemon is None else round(results.daemon, 3),
            "cores": cores(),
        },
        "limit": results.limit,
        "verdict": results.verdict,
        "near_cache": tally.near_cache or None,
        "load_seconds": round(results.loaded_s, 6),
    }


def as_text(results: Results) -> list[str]:
    """Return lines for people."""
    tally = results.tally
    succeeded = sum(tally.operations.values())
    lines = [_plan_text(results.plan), "", f"operations   {succeeded:,} in {results.seconds:.2f} s"]
    lines.append(f"             {results.rate(succeeded):,.0f} a second")
    if len(results.plan.mix) > 1:
        rates = (f"{name} {results.rate(count):,.0f}" for name, count in sorted(tally.operations.items()))
        lines.append(f"             {', '.join(rates)} a second")
    lines += [f"errors       {_errors(tally.errors)}", *_latency(results), *_near_cache(tally.near_cache)]
    daemon = "not known" if results.daemon is None else f"{results.daemon:.0%} of a core"
    processes = f"{results.plan.processes} process{'es' if results.plan.processes > 1 else ''}"
    lines.append(f"processor    clients ({processes}) {results.clients:.0%} of a core, daemon {daemon}")
    return [*lines, "", results.verdict]


def _plan_text(plan: "Plan") -> str:
    mix = ", ".join(
        f"{share:.3g} % {name}" for name, share in ((name, 100 * share) for name, share in plan.mix.items())
    )
    keys = f"{plan.keys:,} keys ({plan.distribution}) of {plan.value_bytes:,} bytes"
    if plan.near_cache:
        return f"{mix}; {keys}; near cache, {plan.processes} process(es)"
    return f"{mix}; {keys}; {plan.connections} connection(s), {plan.pipeline} request(s) a frame"


def _errors(errors: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {code}" for code, count in sorted(errors.items())) or "none"


def _latency(results: Results) -> list[str]:
    histogram = results.tally.histogram
    if not histogram.total:
        return []
    figures = [f"{_name(percent)} {_time(histogram.percentile(percent))}" for percent in PERCENTILES]
    lines = [f"latency      {', '.join(figures)}, max {_time(histogram.max)}"]
    powers = histogram.by_powers()
    max_count = max(count for _, count in powers)
    width = max(len(f"{count:,}") for _, count in powers)
    for highest, count in powers:
        bar = "#" * -(-count * _BAR_WIDTH // max_count)
        lines.append(f"  up to {_time(highest):>8}  {count:>{width},}  {bar}".rstrip())
    return lines


def _near_cache(counts: dict[str, int]) -> list[str]:
    return [f"near cache   {', '.join(f'{count:,} {name}' for name, count in counts.items())}"] if counts else []


def _name(percent: float) -> str:
    return f"p{percent:g}"


def _us(ns: int) -> float:
    return ns / 1000


def _time(ns: int) -> str:
    if ns < 1_000:
        return f"{ns} ns"
    if ns < 1_000_000:
        return f"{ns / 1_000:.3g} µs"
    if ns < 1_000_000_000:
        return f"{ns / 1_000_000:.3g} ms"
    return f"{ns / 1_000_000_000:.3g} s"
