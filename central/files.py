"""Files: written whole or not at all, which might never end, whose they are, and what the names in a folder say."""

import fcntl
import itertools
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from central.errors import BadRequest

TYPE_CHECKING = False  # typing is slow to import, and the launcher starts in a moment
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # of the project
COMMIT = ("git", "-C", ROOT, "describe", "--always", "--dirty", "--abbrev=12")  # the words that tell its own
CHECKPOINT_BYTES = 12  # per parameter: weight and two moments, fp32
ROOM_BESIDE = 1 << 20  # for vocabulary, configuration and reports
MODEL_SUFFIXES = (".json", ".txt", ".model", ".safetensors", ".bin", ".pt")  # of the files in a model's folder
MOST_INFLATED = 4  # times its size that a file of weights may unpack to


def parse_json(text: str) -> "Any":
    """json.loads, with a ValueError also for what is nested deeper than Python reads."""
    import json  # the launcher's start needs none

    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def json_object(path: "Path") -> dict:
    """The content of a file; ValueError for one that is no JSON object in UTF-8."""
    content = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"but a {type(content).__name__}")
    return content


def known_in(path: "Path") -> dict:
    """The content of a file as `json_object`; nothing where it is not there or damaged."""
    try:
        return json_object(path)
    except (OSError, ValueError):
        return {}


@contextmanager
def whole_or_absent(path: str | os.PathLike) -> "Iterator[Path]":
    """Where to write a file that gets its name `path` when all is well; an error leaves nothing behind.

    Each process has a place of its own, and holds it: workers of a killed run may still be writing the same file.
    """
    from pathlib import Path  # the launcher's start needs none

    _remove_abandoned(os.fspath(path))
    unfinished = Path(f"{os.fspath(path)}.{os.getpid()}.tmp")
    held = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(held, fcntl.LOCK_EX)
        yield unfinished
        replace_synced(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
    finally:
        os.close(held)


def _remove_abandoned(path: str) -> None:
    """Remove what processes that were killed had written of a file: nobody holds it."""
    folder, name = os.path.split(os.path.abspath(path))
    for other in names_in(folder):
        if not (other.startswith(f"{name}.") and other.endswith(".tmp") and other[len(name) + 1 : -4].isdecimal()):
            continue
        with suppress(OSError), open(place := os.path.join(folder, other), "rb+") as unfinished:
            fcntl.flock(unfinished, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(place)


def replace_synced(unfinished: str | os.PathLike, path: str | os.PathLike) -> None:
    """Give a finished file its name, once its content is on disk."""
    sync(unfinished)
    os.replace(unfinished, path)


def sync(path: str | os.PathLike) -> None:
    """Return when a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: str | os.PathLike, data: bytes) -> None:
    """Write a file that is whole or absent."""
    with whole_or_absent(path) as unfinished:
        unfinished.write_bytes(data)


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write a JSON file that is whole or absent."""
    import json  # the launcher's start needs none

    write_synced(path, (json.dumps(value, indent=2) + "\n").encode())


def move_aside(path: str | os.PathLike) -> str | None:
    """Rename a file or folder `<name>.1`, `.2`, ...; returns its new name, None where there was nothing."""
    if not os.path.lexists(path):
        return None
    names = (f"{os.fspath(path)}.{number}" for number in itertools.count(1))
    aside = next(name for name in names if not os.path.lexists(name))
    os.rename(path, aside)
    return aside


def refuse_inflated(path: str | os.PathLike) -> None:
    """Raise BadRequest for a file of torch.save that unpacks to much more than it is: torch.save never compresses."""
    import zipfile  # the launcher's start needs none

    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as packed:
        unpacked = sum(entry.file_size for entry in packed.infolist())
    size = os.path.getsize(path)
    if unpacked > MOST_INFLATED * size:
        raise BadRequest(
            f"{path}: {size / 2**20:.1f} MiB that unpack to {unpacked / 2**20:.0f}: no file of torch.save, which never "
            "compresses: take another copy"
        )


def leads_to(path: str | os.PathLike, status: os.stat_result) -> bool:
    """Whether a path still leads to the file that had this status, which may have been deleted since."""
    with suppress(OSError):
        return os.path.samestat(os.stat(path), status)
    return False


def is_special(path: str | os.PathLike) -> bool:
    """Whether a path leads to a device, pipe or socket, whose reading might never end."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # not there, or no name of a file at all
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def why_no_file(path: str | os.PathLike) -> str:
    """Why a path is no file whose content can be read, and what to do; nothing for one that is."""
    if os.path.isfile(path):
        return ""
    if os.path.islink(path) and not os.path.exists(path):
        target = os.readlink(os.fspath(path))
        return f"a link to {target}, which is not there: mount what it lies on, or take the link away"
    what = "a folder" if os.path.isdir(path) else "a pipe, socket or device" if os.path.exists(path) else "not there"
    return f"{what} where a file is due: give it another name, or move it elsewhere"


def misnamed(folder: str | os.PathLike) -> list[str]:
    """A line for each name in a model's folder that leads to no file: readers would wait for it, or pass over it."""
    paths = [os.path.join(folder, name) for name in names_in(folder) if name.endswith(MODEL_SUFFIXES)]
    return [f"{path}: {reason}" for path in paths if (reason := why_no_file(path))]


def hold(path: str) -> bool:
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


def take_folder(path: str, folder: str) -> None:
    """Hold the lock file of a folder: two runs would write over each other's results. Raises BadRequest."""
    if not hold(path):
        with open(path) as file:
            holder = file.read(100).strip()
        raise BadRequest(
            f"--output_dir {folder}: another run ({holder}) writes there: wait for its end, or name another folder"
        )


def names_in(folder: str | os.PathLike) -> list[str]:
    """Names of what is in a folder, in order; none where there is no folder."""
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def files_below(folder: "Path") -> "list[Path]":
    """All files in a folder and below it, in order of their paths; of links to folders, too, but no folder twice.

    Raises OSError for a folder that may not be looked into, which Path.rglob passes over.
    """
    from pathlib import Path  # the launcher's start needs none

    def refuse(error: OSError) -> None:
        raise error

    found: list[Path] = []
    seen = {os.path.realpath(folder)}
    for where, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        found += (Path(where, name) for name in names)
        reached = {os.path.realpath(os.path.join(where, name)): name for name in sorted(folders, reverse=True)}
        folders[:] = [name for place, name in reached.items() if place not in seen]
        seen |= reached.keys()
    return sorted(found)


def missing_folders(path: str) -> list[str]:
    """The folders that os.makedirs would make, the outermost first."""
    path, missing = os.path.abspath(path), list[str]()
    while not os.path.exists(path):
        missing.insert(0, path)
        path = os.path.dirname(path)
    return missing


def existing_parent(path: str) -> str:
    """A path where it is there, else the nearest folder above it that is."""
    missing = missing_folders(path)
    return os.path.dirname(missing[0]) if missing else os.path.abspath(path)


def lack_of_room(folder: str | os.PathLike, parameters: int) -> str:
    """What is wrong with the room for a model's checkpoints in a folder; nothing where it is enough.

    The newest one stays until the next is complete: room for two, or for one where one is there.
    """
    import shutil  # the launcher's start needs none

    there = os.path.isdir(folder) and any(name.startswith("ckpt_") for name in os.listdir(folder))
    needed = (1 if there else 2) * CHECKPOINT_BYTES * parameters + ROOM_BESIDE
    free = shutil.disk_usage(existing_parent(os.fspath(folder))).free
    if free >= needed:
        return ""
    what = "another checkpoint takes" if there else "two checkpoints take"
    sizes = f"{size_in_words(free)} are free, {what} {size_in_words(needed)}"
    return f"{os.fspath(folder)}: {sizes}: make room, or name another folder"


def size_in_words(number: float) -> str:
    """A size as people say it: 12 kB, 3.4 MB, 8.1 GB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number // 1000:.0f} kB"


def changed_since(mark: str, folder: str, but: str) -> bool:
    """Whether a file in or below a folder is newer than `mark`, itself and those called `but` aside."""
    then = os.stat(mark).st_mtime_ns
    paths = [os.path.join(where, name) for where, _, names in os.walk(folder) for name in names if name != but]
    return any(os.lstat(path).st_mtime_ns > then for path in paths if path != mark)


def remove_empty(folders: list[str]) -> None:
    """Remove folders, given outermost first, with the empty ones in them; one that holds a file stays."""
    inside = [where for where, _, _ in os.walk(folders[-1], topdown=False)]
    for folder in (*inside, *reversed(folders)):
        with suppress(OSError):
            os.rmdir(folder)


def checkpoint_step(path: str | os.PathLike) -> int | None:
    """The global step in a checkpoint's name, ckpt_7038 or the reference's ckpt_7038.pt; None for any other name."""
    prefix, _, digits = os.path.basename(os.fspath(path).rstrip("/")).removesuffix(".pt").partition("_")
    return int(digits) if prefix == "ckpt" and digits.isdecimal() else None


SHARD_SUFFIXES = (".hdf5", ".h5")
PACKED_BY_HABANA = "mixed_strategies_part_"  # names of shards made by its pack_pretraining_data_pytorch.py


def shards_of(names: Iterable[str], split: str) -> list[str]:
    """Of the names of files in a folder those of its shards of a split ("training" or "test"), in order.

    Of both words the last counts: a corpus may be called "latest". Habana's packed shards say neither: where no name
    says "training", they are the training shards.
    """
    shards = sorted(name for name in names if name.endswith(SHARD_SUFFIXES))
    other = "test" if split == "training" else "training"
    named = [name for name in shards if name.rfind(split) > name.rfind(other)]
    if named or split != "training":
        return named
    return [name for name in shards if name.startswith(PACKED_BY_HABANA)]
