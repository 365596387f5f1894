"""The error of a benchmark that cannot measure. Its text is for the user who started the benchmark."""


class BenchError(Exception):
    """A measurement failed. The run continues with the next benchmark and ends with status 1."""
