"""Which keys a request names."""

from collections.abc import Collection

from kvd.protocol import messages
from kvd.protocol.messages import AnyRequest


def written_keys(request: AnyRequest) -> Collection[str]:
    """The keys that it may change."""
    match request:
        case messages.Set():
            return request.entries
        case messages.Commit():
            return request.writes
        case messages.Delete() | messages.Touch():
            return request.keys
        case messages.Increment():
            return (request.key,)
    return ()


def named_keys(request: AnyRequest) -> Collection[str]:
    """The keys that it reads or may change, one by one; what it reads as a range is not among them."""
    match request:
        case messages.Get() | messages.History():
            return (request.key,)
        case messages.GetMany() | messages.Fetch() | messages.Ttl():
            return request.keys
        case messages.Commit():
            return [*request.writes, *(request.reads or ())]
    return written_keys(request)
