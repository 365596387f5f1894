"""A server that sends each request back, one connection after the other: the floor of a server in Python.

`python -m bench.python_echo SOCKET`, until a signal ends it.
"""

import socket
import sys


def main(path: str) -> None:
    """Serve until a signal ends the process."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection:
                while data := connection.recv(65536):
                    connection.sendall(data)


if __name__ == "__main__":
    main(sys.argv[1])
