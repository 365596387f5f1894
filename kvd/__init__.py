"""The kvd daemon. Start reading at docs/architecture.md; clients live in the package ``kv``."""

__version__ = "0.1.0"
