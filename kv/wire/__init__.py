"""What travels between the client and the daemon, as pure functions and state machines: no I/O here."""
