"""``cached``: a value that one caller makes while the others wait for it."""

from __future__ import annotations

from kv.api.locks import MAKING, name_for
from kv.api.procedures import CallUser
from kv.errors import LockLost
from kv.wire.operations import binary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from typing import Any

    from kv.api.procedures import Procedure


def make_once(
    client: Any,  # noqa: ANN401  # of either kind
    key: str,
    make: Callable[[], Any],
    ttl: float | timedelta | None,
    timeout: float | None,
) -> Procedure[Any]:
    """Return the value of ``key``, made under a lock if there is still none. Raises what ``make`` raises, TimedOut."""
    value: bytes | None = None

    def set_value() -> Any:  # noqa: ANN401  # the result of the client's own method, awaited if it is asyncio's
        return client.set(key, value, ttl=ttl)

    def look_and_make() -> Procedure[None]:
        nonlocal value
        value = yield CallUser(client.get, key)
        if value is None:
            value = binary((yield CallUser(make)))
            yield CallUser(set_value)

    try:
        yield from client.lock(name_for(key), timeout=timeout, prefix=MAKING)._around(look_and_make)
    except LockLost:
        if value is None:
            raise  # lost before the value was made
    return value
