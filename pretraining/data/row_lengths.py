"""Tokens in a row of each HDF5 file named, as JSON; for a file that is no whole shard, what is wrong with it.

    python pretraining/data/row_lengths.py FILE ...

The launcher asks it before a run, so that a damaged shard of phase 2 is known before phase 1 has trained for days.
"""

import json
import sys

import h5py


def row_length(path: str) -> int | str:
    """Length of the rows of a shard, or why it has none."""
    try:
        with h5py.File(path, "r") as file:
            return int(file["input_ids"].shape[1])
    except (OSError, KeyError, AttributeError, IndexError) as error:
        return f"not a whole HDF5 file of pre-training rows ({error}): make or copy it again"


def main(argv: list[str] | None = None) -> int:
    print(json.dumps({path: row_length(path) for path in (sys.argv[1:] if argv is None else argv)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
