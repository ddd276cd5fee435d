"""What launcher and ranks agree on: the names in which it tells them of the run, and the port where they meet, which
on one server the launcher opens and hands to rank 0, without a gap.

mpirun closes what its ranks would inherit, so the open socket goes over a Unix socket named by the id of the run.
"""

import os

TYPE_CHECKING = False  # socket is slow to import, and a dry run needs none
if TYPE_CHECKING:
    import socket

# What the launcher tells its ranks in their environment. Where it has spoken, no other launcher's variables count.
LAUNCHER = "BERT_LAUNCHER"  # what started this process for it: mpirun, torchrun or alone
WORLD_SIZE = "BERT_WORLD_SIZE"
LOCAL_WORLD_SIZE = "BERT_LOCAL_WORLD_SIZE"
RUN_ID = "BERT_RUN_ID"
HOSTS = "BERT_HOSTS"  # of all ranks, between commas; empty on one server
TOLD = (LAUNCHER, WORLD_SIZE, LOCAL_WORLD_SIZE, RUN_ID, HOSTS)

LOOPBACK = "127.0.0.1"
LOCAL_NAMES = ("localhost", LOOPBACK)
BACKLOG = 1024  # ranks that may knock before rank 0 is up
PATIENCE = 10  # s for the launcher's answer


def listen(port: int, address: str = LOOPBACK) -> "socket.socket":
    """A socket that listens at this port, 0 for any free one. Raises OSError where it is taken."""
    import socket

    return socket.create_server((address, port), backlog=BACKLOG)


def is_this_machine(address: str) -> bool:
    """Whether an address or a name is one of this machine's own."""
    import socket

    try:
        found = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    for family, kind, protocol, _, target in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind(target)
            except OSError:
                continue
            return True
    return False


def hand_over(listener: "socket.socket", run_id: str) -> None:
    """Give this listening socket to each process of this user that asks for the run's, as long as we live."""
    import socket
    import threading

    door = socket.socket(socket.AF_UNIX)
    door.bind(_name(run_id))
    door.listen()
    threading.Thread(target=_answer, args=(door, listener), daemon=True).start()


def take_over(run_id: str) -> "socket.socket":
    """The listening socket that the launcher of this run holds. Raises OSError where there is no launcher to ask."""
    import socket

    with socket.socket(socket.AF_UNIX) as door:
        door.settimeout(PATIENCE)
        door.connect(_name(run_id))
        _, descriptors, _, _ = socket.recv_fds(door, 1, 1)
    if not descriptors:
        raise OSError(f"the launcher of run {run_id} handed over no port")
    return socket.socket(fileno=descriptors[0])


def _name(run_id: str) -> str:
    """In Linux's abstract name space, which no TMPDIR can spoil and nothing has to clean."""
    return f"\0bert-{run_id}"


def _answer(door: "socket.socket", listener: "socket.socket") -> None:
    import socket
    import struct

    while True:
        caller, _ = door.accept()
        with caller:
            _, user, _ = struct.unpack("3i", caller.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if user == os.getuid():
                try:
                    socket.send_fds(caller, [b"+"], [listener.fileno()])
                except OSError:
                    continue
