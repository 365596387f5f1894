"""The processor time of a process, and the verdict: what limited a benchmark."""

import os

# From this share of a core on, a process counts as busy all the time.
BUSY = 0.8


def used_s(pid: int) -> float | None:
    """Return the processor time of a process and all its threads so far; None where that cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name stands in brackets and may hold any character; field 3 follows the last bracket.
            fields = file.read().rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None


def daemon_pid(reported: object, of_socket: int | None) -> int | None:
    """Return the pid of the daemon's process as this process sees it; None if it cannot be known.

    ``reported``: by the daemon; it is wrong here if the daemon runs on another host or in a container. ``of_socket``:
    by the kernel; it is systemd's if that opened the socket.
    """
    if of_socket is None or reported == of_socket:
        return of_socket
    try:
        with open(f"/proc/{reported}/cmdline", "rb") as file:
            return int(str(reported)) if b"serve" in file.read().split(b"\0") else None
    except (OSError, ValueError):
        return None


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def verdict(clients: float, daemon: float | None, processes: int, *, near_cache: bool) -> tuple[str, str]:
    """Return what the limit was, as a word and as a sentence. The arguments are shares of one core."""
    clients_busy = clients / processes >= BUSY
    if near_cache and clients_busy:
        return "clients", (
            "The clients were the limit, as they should be: reads were answered in their own memory. More --processes "
            "read more, as long as there are cores."
        )
    if daemon is None:
        return (
            "unknown",
            "The daemon's processor time cannot be read from here, so it is not known what the limit was.",
        )
    if daemon >= BUSY and clients_busy:
        return (
            "both",
            "The daemon and the clients were both busy all the time: the daemon can do this, perhaps a little more.",
        )
    if daemon >= BUSY:
        return "daemon", "The daemon was the limit: it was busy all the time, the clients were not."
    if clients_busy and processes < cores():
        return "clients", (
            "The clients, not the daemon, were the limit: the daemon can do more. "
            "Try more --processes, or a longer --pipeline."
        )
    if clients + daemon >= BUSY * cores():
        return "machine", (
            f"The machine was the limit: clients and daemon shared {cores()} core(s), so the daemon had less than one. "
            "With more cores, or the clients elsewhere, it can do more."
        )
    return "waiting", (
        "Neither was busy: the time went by waiting, for each other, for the disk or for the processor. "
        "Try more --connections or --processes."
    )
