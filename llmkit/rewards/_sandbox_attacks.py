"""What the sandbox must refuse, as functions: `_sandbox.probe` runs this file as a program inside a sandbox.

Each returns nothing if the attack worked, and raises what the refusal raises. Nothing here can be undone by the
sandbox's end only: what an attack would change is made for it by the probe.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def refused(attack: Callable[..., None], *arguments: Any) -> bool:
    """Whether the machine stops `attack`."""
    try:
        attack(*arguments)
    except (OSError, MemoryError):
        return True
    return False


def works() -> bool:
    """Whether an honest program can run: threads, modules, codecs, files in its own folder."""
    import os
    import threading
    import zoneinfo

    thread = threading.Thread(target=zoneinfo.available_timezones)
    thread.start()
    thread.join()
    with open("own.txt", "w", encoding="cp1252") as file:
        file.write("ok")
    found = os.listdir(".")
    os.unlink("own.txt")
    return found == ["own.txt"]


def connect(port: int) -> None:
    """Open a TCP connection to a port where somebody listens."""
    import socket

    socket.create_connection(("127.0.0.1", port), timeout=2).close()


def send(port: int) -> None:
    """Send a datagram."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("127.0.0.1", port))


def read(path: str) -> None:
    """Read a file that all users may read."""
    with open(path, "rb") as file:
        file.read()


def overwrite(path: str) -> None:
    """Write to a file that all users may write."""
    with open(path, "r+b") as file:
        file.write(b"x")


def create(folder: str) -> None:
    """Make a file in a folder where all users may."""
    with open(f"{folder}/new", "xb"):
        pass


def shorten(path: str) -> None:
    """Cut a file without opening it."""
    import os

    os.truncate(path, 0)


def lock(path: str) -> None:
    """Change who may open a file."""
    import os

    os.chmod(path, 0o666)


def age(path: str) -> None:
    """Change when a file was written."""
    import os

    os.utime(path, (0, 0))


def remove(path: str) -> None:
    """Remove a file."""
    import os

    os.unlink(path)


def signal(pid: int) -> None:
    """Ask whether a signal could be sent."""
    import os

    os.kill(pid, 0)


def own(pid: int, request: int) -> None:
    """Have the signals of a socket go to another process, by FIOSETOWN or SIOCSPGRP; none is sent, it would kill."""
    import fcntl
    import socket
    import struct

    one, other = socket.socketpair()
    with one, other:
        fcntl.ioctl(one, request, struct.pack("i", pid))


def breed(count: int) -> None:
    """Have `count` processes at once."""
    import os
    import time

    for _ in range(count):
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)


def allocate(count: int) -> None:
    """Reserve `count` bytes of memory, without touching them."""
    import mmap

    mmap.mmap(-1, count).close()


def fill(count: int) -> None:
    """Write a file whose end is beyond `count` bytes."""
    with open("big", "wb") as file:
        file.seek(count)
        file.write(b"x")
