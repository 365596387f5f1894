"""The daemon's configuration: what can be set, where the values come from, and which values are refused."""
