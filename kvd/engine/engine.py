"""The parts of the engine together, as requests use them."""

from typing import NamedTuple

from kvd.engine.database import Database
from kvd.engine.durability import Durability
from kvd.engine.feeds import Feeds
from kvd.engine.near_cache import NearCaches
from kvd.engine.snapshots import Snapshots


class Engine(NamedTuple):
    """What happens around a commit, and what follows from it."""

    database: Database
    durability: Durability
    snapshots: Snapshots
    feeds: Feeds
    near_caches: NearCaches
