"""What the tests share: one object of each kind, for all folders.

| a test needs | it uses |
| --- | --- |
| the daemon's objects in its own process, and connections without sockets | ``in_memory.build`` or ``in_memory.connect``: `InMemoryServer`, `InMemoryClient` |
| such a connection with its session, byte by byte | ``InMemoryServer.open``: `FakeTransport` |
| such a server at a real Unix socket, on the test's own event loop | ``InMemoryServer.listening`` |
| a database alone | ``in_memory.build_database`` |
| a clock, or a scheduler, that moves only when the test moves it | ``clocks``: `ManualClock`, `TickingClock`, `ManualScheduler` |
| a real daemon that serves from its construction on, may be killed and serves again | ``daemon``: `Daemon` |
| the same, looked at without opening further connections | ``watched_daemon``: `WatchedDaemon` |
| the same, as HTTP clients see it | ``http_daemon``: `HttpDaemon` |
| a place where `kv serve` is started in any way: in a shell, detached, refused, with a fault at its bind | ``real_daemon``: `RealDaemon` |
| the double fork and the locks without the rest of the daemon | ``small_daemon``: `SmallDaemon` |
| a connection that sends any bytes | ``raw_peer``: `RawPeer`, `DescriptorPeer`; ``http_peer``: `HttpPeer` |
| a server that does what no daemon does, for a client under test | ``scripted_server``: `ScriptedServer` |
| the command line as a person runs it | ``kv_command``: `Kv` |
| another process, and its environment | ``processes`` |
| to wait for a condition | ``waiting``: `eventually`, `until` |
| to be skipped where a program is missing | ``programs``: `require` |
| to do more when `make soak` runs it | ``scale``: `SCALE`, `TIMES` |

A subclass for one folder stands in that folder's conftest: `RecordedDaemon`, `HistoryDaemon`, `ReplaceableDaemon`.

Each constructor of the daemon's classes that a server consists of is called in ``in_memory.build`` alone, so a test that
says what it needs does not change when a constructor does.
"""
