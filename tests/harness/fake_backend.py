"""What stands for the process around a server in memory."""

from kvd.requests.errors import RequestError


class FakeBackend:
    """What the process around the server offers to administrators: fixed replies, and a note of a shutdown."""

    def __init__(self) -> None:
        self.stopping = False

    def status(self) -> list[tuple[str, str | int]]:
        return [("version", "1"), ("connections", 2)]

    def reload(self) -> list[str]:
        raise RequestError("bad_request", "kvd.toml, line 3: no such key")

    def checkpoint(self) -> int:
        raise NotImplementedError

    def counters(self) -> list[tuple[str, int]]:
        return []

    def resident_bytes(self) -> int:
        return 0

    def shutdown(self) -> int:
        self.stopping = True
        return 4711
