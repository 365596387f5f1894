"""The process: configuration, lock, sockets, double fork, signals, systemd, logging. Starts at ``serve.py``."""
