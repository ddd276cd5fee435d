"""One run at a time in a folder: two would write over each other's results."""

import fcntl
import os

from central.launch.problems import BadRequest


def take(path, folder) -> int:
    """Hold the lock file at `path` until this process ends; the descriptor that holds it.

    Raises BadRequest where another run holds it. A folder whose file system knows no locks has none.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 100).decode(errors="replace").strip() or "of an unknown process"
        os.close(descriptor)
        raise BadRequest(
            f"--output_dir {folder}: another run ({holder}) writes there: wait for its end, or name another folder"
        ) from None
    except OSError:
        return descriptor
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
    return descriptor
