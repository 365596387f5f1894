"""What the tests share: one object of each kind, for all folders.

In the test's own process (``in_memory``):

- ``build`` makes an `InMemoryServer`: the daemon's objects, wired as the daemon wires them. Each of their constructors
  is called there alone, so a test that says what it needs does not change when a constructor does.
- ``connect`` is an `InMemoryClient` of a server of its own: payloads in, replies out.
- ``InMemoryServer.open`` is a `FakeTransport`: bytes in, frames out, through a session.
- ``InMemoryServer.listening`` serves a real Unix socket on the test's event loop.
- ``build_database`` makes a database alone; ``clocks`` has the `ManualClock`, `TickingClock` and `ManualScheduler`.

In a process of its own:

- `Daemon` (``daemon``) serves from its construction on, may be killed, and serves again. `WatchedDaemon` is one that is
  looked at over one connection; `HttpDaemon` is one as HTTP clients see it.
- `RealDaemon` (``real_daemon``) is a place where `kv serve` is started in any way: in a shell, detached by the real
  double fork, refused, or with a fault at the moment when it binds its socket.
- `SmallDaemon` is the double fork and the locks without the rest of the daemon.
- `Kv` (``kv_command``) is the command line as a person runs it. ``processes`` starts any other process.

At the other end of a connection:

- `RawPeer` and `HttpPeer` send any bytes; `DescriptorPeer` also takes the descriptors that the daemon passes.
- `ScriptedServer` does what no daemon does, for a client under test.

And: ``waiting`` waits for a condition, ``programs`` skips a test where a program is missing, ``scale`` says how much
more a test does in `make soak`. What one folder needs besides stands in that folder's conftest.
"""
