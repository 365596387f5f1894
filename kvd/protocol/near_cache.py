"""The near cache: how a client can answer reads from its own memory and never be stale. What both sides must know.

The server keeps a table of 64-bit words in memory that it shares with its clients, who can only read it:

    word    0       the lease: a time of CLOCK_MONOTONIC, in ns, that the server keeps moving ahead
            1, 2    MAGIC, and the number of slots (a power of two)
            3       how many changes have been noted
            8…      a generation for each slot; many keys share a slot
            then    NOTES words: the slots of the changes noted last, a ring

        server                                     client
        commit:  raise the slots' generations      fetch returns value, slot, generation: it keeps all three
                 change the values                 read: the slot's generation is still the same?
                 reply, notify watchers                  the lease has not run out?  then the value is current

**Why this is never stale.** A generation only rises, and it rises before any client can see the change: before the
commit is answered, sent to a watcher, or read by another client. So if a client finds the generation that came *with
the value*, no change of the key was visible at that moment. The moment lies between the call and its return, and is
where the read takes its place among all operations. A generation that the client looks up after the reply does not
suffice, because it may have been raised in between. Keys that share a slot only cost each other a fetch.

**Several keys are one instant** if the client takes all entries out before it compares the first generation. Each entry
was current when it was fetched and is still current when it is compared, so all were current at the moment in between.

**A dead server** raises nothing. So an answer also needs the lease, which runs out by itself LEASE_MS after the
server's last heartbeat. The next server finds a file that says that clients were attached. It serves nothing, not even
reads, before every lease of its predecessor has run out (``kvd/service/restart_fence.py``). A server that is only
delayed needs no lease: while it does nothing, nothing changes.

**Order in memory.** A word is aligned, and one instruction reads or writes it, so it is never torn. The server raises
before it sends, and the client compares after it has received. A client learns of a change through the kernel, which
orders everything before a send before everything after the receive, on every processor.

**The notes** are only a hint: they say which slots were raised recently. A client that sends a request anyway can fetch
the other entries that it has lost in the same request, instead of finding out read by read. Whatever the notes say, an
answer needs the checks above. A client that reads the notes too late, or while they are written, only learns of fewer
changes.

A client must have the same clock as the server; ``clock_id`` says whether it has. This module is imported by
short-lived clients too, so it imports nothing heavy.
"""

import os

LEASE = 0
MAGIC_WORD = 1
SLOTS_WORD = 2
NOTED = 3
FIRST_GENERATION = 8
NOTES = 4096  # a power of two
WORD_BYTES = 8
MAGIC = int.from_bytes(b"kvd-gen1", "little")
# fcntl(2): SEAL, SHRINK, GROW and FUTURE_WRITE. Only the server can write, and no process can shrink what clients have
# mapped, which would kill them.
SEALS = 0x01 | 0x02 | 0x04 | 0x10
MAX_SLOTS = 1 << 24

LEASE_MS = 250
HEARTBEAT_MS = 50
# A successor begins this much later than the lease ends: longer than the resolution of any clock involved.
CLOCK_TICK_MS = 10


def table_bytes(slots: int) -> int:
    """Return the size of a table with this number of slots."""
    return (FIRST_GENERATION + slots + NOTES) * WORD_BYTES


def first_note(slots: int) -> int:
    """Return the word at which the notes begin."""
    return FIRST_GENERATION + slots


def clock_id() -> int:
    """Return the time namespace of this process: two processes of one host have the same clocks if it is the same.

    0 if the kernel has no such namespaces; -1 if it cannot be found out, which counts as equal to no other.
    """
    try:
        return os.stat("/proc/self/ns/time").st_ino
    except FileNotFoundError:
        return 0 if os.path.exists("/proc/self/ns") else -1
    except OSError:
        return -1
