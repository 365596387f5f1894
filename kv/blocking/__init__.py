"""The blocking client: sockets, threads, and what the shared parts become on them."""
