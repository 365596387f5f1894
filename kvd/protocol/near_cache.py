"""The near cache: how a client may answer reads from its own memory and never be stale. What both sides know of it.

The server keeps a table of 64-bit words in memory that it shares with its clients, who can only read it:

    word    0       the lease: a time of CLOCK_MONOTONIC, in ns, that the server keeps moving ahead
            1, 2    MAGIC, and the number of slots (a power of two)
            3       how many changes have been noted
            8…      a generation for each slot; many keys share a slot
            then    NOTES words: the slots of the changes noted last, a ring

        server                                     client
        commit:  raise the slots' generations      fetch answers value, slot, generation: it keeps all three
                 change the values                 read: the slot's generation is still the same?
                 answer, tell watchers                   the lease has not run out?  then the value is current

**Why this is never stale.** A generation only rises, and it rises before anybody can see the change: before the
commit is answered, told to a watcher, or read by another client. So if a client finds the generation that came *with
the value*, no change of the key was visible at that moment, which lies between the call and its return: that moment
is where the read takes its place among all operations. A generation that is looked up when the reply has come will
not do, for it may have been raised in between. Keys that share a slot only cost each other a fetch.

**Several keys are one instant** if all entries were taken out before the first generation is compared: each entry was
right when it was fetched and still is when it is compared, so all were right at the moment in between.

**A dead server** raises nothing. So an answer also needs the lease: what runs out by itself LEASE_MS after the server's
last beat. The next server finds a file that says that clients were attached, and serves nothing, not even reads, before
every lease of its predecessor has run out (``kvd/service/restart_fence.py``). A server that is merely held up needs no
lease: while it does nothing, nothing changes.

**Order in memory.** A word is aligned and is read and written by one instruction, so it is never torn. The server
raises before it sends, the client compares after it has received; whoever learns of a change learns it through the
kernel, which orders what came before a send before what comes behind the receive, on every processor.

**The notes** are a hint and no more: they tell which slots have been raised lately, so that a client who asks the
server for something anyway can ask at once for what else it has lost, instead of finding out read by read. Whatever
they say, an answer needs what stands above. Who looks too late, or while they are written, learns less than there was.

A client has to tell time as the server does; ``clock_id`` says whether it does. Imported by short-lived clients too,
so it imports nothing heavy.
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
# fcntl(2): SEAL, SHRINK, GROW and FUTURE_WRITE. Nobody but the server can write, and nobody can take away what clients
# have mapped, which would kill them.
SEALS = 0x01 | 0x02 | 0x04 | 0x10
MAX_SLOTS = 1 << 24

LEASE_MS = 250
HEARTBEAT_MS = 50
# How much later than the lease a successor begins: more than the grain of any clock involved.
CLOCK_TICK_MS = 10


def table_bytes(slots: int) -> int:
    """The size of a table."""
    return (FIRST_GENERATION + slots + NOTES) * WORD_BYTES


def first_note(slots: int) -> int:
    """The word where the notes begin."""
    return FIRST_GENERATION + slots


def clock_id() -> int:
    """The time namespace of this process: two processes of one host have the same clocks if it is the same.

    0 where there are no such namespaces; -1 if it cannot be found out, which is like no other.
    """
    try:
        return os.stat("/proc/self/ns/time").st_ino
    except FileNotFoundError:
        return 0 if os.path.exists("/proc/self/ns") else -1
    except OSError:
        return -1
