"""What the engine refuses, with a code of the wire and a message for people."""

from kvd.journal.errors import NoSpace

__all__ = ["EngineError", "NoSpace"]


class EngineError(Exception):
    """The engine cannot do what is asked. ``code`` is one of ``kvd.protocol.errors.CODES``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
