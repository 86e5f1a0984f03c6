"""Servers that do to an HTTP client what a script says."""

import socket
import threading
from contextlib import contextmanager, suppress


def head_of(reader):
    lines = []
    while (line := reader.readline()).strip():
        lines.append(line)
    return lines


@contextmanager
def peer(*scripts):
    """A server that does one of these with each connection: it gets the socket and a reader of it."""
    listener = socket.create_server(("127.0.0.1", 0))
    accepted = []

    def serve():
        for script in scripts:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            accepted.append(connection)
            with connection, connection.makefile("rb") as reader, suppress(OSError):
                script(connection, reader)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/x", accepted
    finally:
        for each in [listener, *accepted]:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)
        assert not thread.is_alive()
