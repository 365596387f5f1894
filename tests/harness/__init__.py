"""What the tests share: one object of each kind, for all folders.

| a test needs | it uses |
| --- | --- |
| the daemon's objects in its own process, without a socket | ``in_memory.build`` → `InMemoryServer`, `InMemoryClient` |
| one of those connections with its session and a transport that a test drives | `in_memory.FakeTransport` |
| a database alone | ``in_memory.build_database`` |
| a clock, or a scheduler, that moves only when the test moves it | ``clocks`` |
| to wait for a condition | ``waiting`` |

Each constructor of the daemon's classes is called in ``in_memory`` alone: a test that says what it needs does not
change when a constructor does.
"""
