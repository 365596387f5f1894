"""The edges of the daemon towards its clients: sessions, the table of commands, listeners."""
