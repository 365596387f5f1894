"""What the engine refuses beyond the store's own errors; the text is for the client."""

from kvd.journal.errors import NoSpace

__all__ = ["EngineError", "NoSpace"]


class EngineError(Exception):
    """The engine refuses an operation. ``code`` is one of the wire's codes (``kvd/protocol/errors.py``)."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
