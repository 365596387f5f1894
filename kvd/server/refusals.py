"""Error replies: what a handler raises, and the map that goes on the wire."""

from kvd.protocol.errors import CODES

_MESSAGE_CHARACTERS = 300


class Refusal(Exception):
    """A request is answered with an error map of this code, message and fields."""

    def __init__(self, code: str, message: str, **fields: object) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fields = fields

    def reply(self) -> dict[str, object]:
        """The map to send."""
        return error_reply(self.code, self.message, **self.fields)


def error_reply(code: str, message: str, **fields: object) -> dict[str, object]:
    """An error map. The message is cut to a length that no peer can blow up."""
    assert code in CODES, code
    if len(message) > _MESSAGE_CHARACTERS:
        message = message[:_MESSAGE_CHARACTERS] + "…"
    return {"error": code, "message": message, **fields}
