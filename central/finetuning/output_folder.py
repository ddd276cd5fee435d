"""The output folder of a fine-tuning run: what is in it already, and what becomes of that."""

from pathlib import Path

from central import files
from central.errors import first_line
from central.runtime.checkpoints import NONE_BEFORE
from central.runtime.exits import BadRequest


def newest_trainer_checkpoint(folder: Path, before: int | None = None) -> Path | None:
    """The newest complete `checkpoint-<step>` of a Hugging Face Trainer, of the steps before `before` if given.

    `trainer_state.json` is the last file that rank 0 writes; a run killed while saving leaves a folder without it.
    """
    for path in _newest_first(folder):
        if (before is None or _step(path) < before) and _is_complete(path):
            return path
    return None


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    return sorted(found, key=_step, reverse=True)


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def unreadable(path: Path, error: Exception) -> BadRequest:
    """What to say of a checkpoint, or of one of its files, that cannot be read: how to go on from the one before it."""
    checkpoint = path if path.is_dir() else path.parent
    before = newest_trainer_checkpoint(checkpoint.parent, _step(checkpoint))
    remedy = f"--resume_from_checkpoint {before} goes on from the one before it" if before else NONE_BEFORE
    return BadRequest(f"{path}: cannot be read ({first_line(error)}): {remedy}")


def _is_complete(checkpoint: Path) -> bool:
    return _is_written(checkpoint) and not _missing(checkpoint)


def _is_written(checkpoint: Path) -> bool:
    """Whether the last file of a checkpoint is there: all others were, once."""
    state = checkpoint / "trainer_state.json"
    try:
        return state.is_file() and isinstance(files.parse_json(state.read_text()), dict)
    except (OSError, ValueError):
        return False


def _missing(checkpoint: Path) -> list[str]:
    """The files of a checkpoint that are not there, or no files."""
    wanted = ("model.safetensors", "optimizer.pt", "scheduler.pt")
    missing = [name for name in wanted if not (checkpoint / name).is_file()]
    return missing if any(path.is_file() for path in checkpoint.glob("rng_state*.pth")) else [*missing, "rng_state.pth"]


def _refuse_lost_files(folder: Path) -> None:
    """Raise BadRequest for a newest checkpoint that lacks files: a run would go back behind it, or begin anew."""
    newest = next(filter(_is_written, _newest_first(folder)), None)
    if newest and (missing := _missing(newest)):
        raise unreadable(newest, FileNotFoundError(f"it has no {', '.join(missing)}"))


def checkpoint_to_resume(resume: str | None, output_dir: Path) -> Path | None:
    """What `--resume_from_checkpoint` names: a folder, or with `True` the newest one of the output folder.

    None means a fresh start, also where nothing has been saved yet. Raises BadRequest for a folder that is none.
    """
    if not resume or resume.lower() == "false":
        return None
    if resume.lower() == "true":
        _refuse_lost_files(output_dir)
        return newest_trainer_checkpoint(output_dir)
    named = Path(resume)
    checkpoint = named if named.name.startswith("checkpoint-") else newest_trainer_checkpoint(named)
    if checkpoint is None or not _is_complete(checkpoint):
        raise BadRequest(f"--resume_from_checkpoint {resume}: not a complete checkpoint, nor a folder with one")
    return checkpoint


def refuse_use(output_dir: Path, overwrite: bool, sources: dict[str, str | None]) -> None:
    """Raise BadRequest for a used folder without `overwrite`, or with something in it that the run reads.

    `sources` are the paths a run reads, by flag: the folder they lie in would be renamed.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise BadRequest(f"--output_dir {output_dir}: is a file: name a folder")
    if not _in_use(output_dir):
        return
    if not overwrite:
        raise BadRequest(
            f"--output_dir {output_dir}: is in use: continue there with --resume_from_checkpoint, rename it with "
            "--overwrite_output_dir, or name another folder"
        )
    inside = [f"{flag} {path}" for flag, path in sources.items() if path and lies_in(Path(path), output_dir)]
    if inside:
        raise BadRequest(
            f"{', '.join(inside)}: lies in --output_dir, which would be renamed: name another output folder"
        )


def move_aside(output_dir: Path) -> Path | None:
    """Rename a used folder `<name>.1`, `.2`, ...; returns its new name, None where there was nothing."""
    aside = files.move_aside(output_dir) if _in_use(output_dir) else None
    return Path(aside) if aside else None


def _in_use(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def lies_in(path: Path, folder: Path) -> bool:
    """Whether a path that exists is the folder or in it, through whatever links."""
    return path.exists() and path.resolve().is_relative_to(folder.resolve())
