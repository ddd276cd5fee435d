"""Files that one process at a time may hold; the kernel lets go of them when that process ends."""

import fcntl
import os

from central.errors import BadRequest


def hold(path) -> bool:
    """Hold the file until this process ends; whether nobody else does. A file system without locks refuses nobody."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except OSError:
        return True
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
    return True


def take_folder(path, folder) -> None:
    """Hold the lock file of a folder: two runs would write over each other's results. Raises BadRequest."""
    if not hold(path):
        with open(path) as file:
            holder = file.read(100).strip()
        raise BadRequest(
            f"--output_dir {folder}: another run ({holder}) writes there: wait for its end, or name another folder"
        )
