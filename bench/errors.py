"""What a benchmark raises when it cannot measure; the text is for the person who started it."""


class BenchError(Exception):
    """A measurement that could not be made. The run goes on with the next one and ends with status 1."""
