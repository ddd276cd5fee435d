"""Where a run begins: anew, from other weights, or where an earlier run of its folder stopped."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from central.errors import no_start
from central.files import checkpoint_step, misnamed
from central.runtime.checkpoints import check_content, list_checkpoints, read_state, remedy
from central.runtime.exits import BadRequest
from pretraining import results
from pretraining.checkpoint import MOST_STEPS
from pretraining.schedule import poly_warmup
from pretraining.settings import Settings

# Settings that decide a run, by their field; the data and the size of the model are compared elsewhere.
DECIDING = {
    "lr": "--learning_rate",
    "max_steps": "--max_steps",
    "warmup_proportion": "--warmup_proportion",
    "max_seq_length": "--max_seq_length",
    "max_predictions_per_seq": "--max_predictions_per_seq",
    "dynamic_masking": "--dynamic_masking",
    "data_type": "precision",
    "bf16_exchange": "--allreduce_post_accumulation_fp16",
    "fused_lamb": "--use_fused_lamb",
    "optimizer_name": "--optimizer",
    "objective": "--objective",
}
SCHEDULE = ("lr", "warmup_proportion", "max_steps")  # those that the learning rate of a step follows from
NEEDED = {"phase": int, "step": int, "global_step": int, "data": dict, "settings": dict}  # in a state.json

State = dict[str, Any]  # what a state.json holds
KEPT: dict[str, Callable[[object], bool]] = {  # settings that a run keeps from its beginning: what they can be
    "seed": lambda value: type(value) is int and 0 <= value < 1 << 32,
    "init_checkpoint": lambda value: value is None or isinstance(value, str),
}


@dataclass(frozen=True)
class ResumePoint:
    """`path` holds weights (None: fresh ones); `exact` when it is a checkpoint of this very phase to continue."""

    path: Path | None
    note: str
    step: int = 0  # optimizer steps done in this phase
    global_step: int = 0  # and in all phases
    rows_read: int | None = 0  # rows taken in this phase, None: reckon from the step
    exact: bool = False
    state: State | None = None

    @property
    def name(self) -> str:
        return self.path.name if self.path is not None else ""


def find_start(settings: Settings) -> ResumePoint:
    """Decide from the flags and from what lies in the output folder; raises BadRequest where that is unclear, or where
    the checkpoint to start from is not what was written."""
    start = _find_start(settings)
    if start.path is not None and start.state:
        try:
            check_content(start.path, start.state)
        except (OSError, ValueError) as error:
            raise BadRequest(str(error)) from error
    return start


def _find_start(settings: Settings) -> ResumePoint:
    found = [(path, _state(path)) for path in list_checkpoints(settings.output_dir)]
    older = [path for path in sorted(settings.output_dir.glob("ckpt_*.pt")) if checkpoint_step(path) is not None]
    if not settings.resume:
        if found or older:
            raise BadRequest(
                f"{settings.output_dir}: holds {(found[-1][0] if found else older[-1]).name}: give "
                "--resume_from_checkpoint to go on from it, or another --output_dir"
            )
        if settings.init_checkpoint:
            return _from_weights(settings, settings.init_checkpoint, [])
        return ResumePoint(None, "start anew")
    whole = [(path, state) for path, state in found if not isinstance(state, ValueError)]
    if settings.resume_step is not None and not settings.init_checkpoint:
        asked = [state for path, state in found if checkpoint_step(path) == settings.resume_step]
        damaged = [state for state in asked if isinstance(state, ValueError)]
        whole = [(path, state) for path, state in whole if state["global_step"] == settings.resume_step]
    else:
        damaged = [state for _, state in found[-1:] if isinstance(state, ValueError)]
    if damaged:
        raise BadRequest(str(damaged[0]))
    own = [(path, state) for path, state in whole if state["phase"] == settings.phase]
    if own:
        return _continued(settings, own)
    if settings.init_checkpoint:
        return _from_weights(settings, settings.init_checkpoint, whole)
    if settings.resume_step is not None and not older and not (settings.phase == 2 and whole):
        raise BadRequest(
            f"{settings.output_dir}: no checkpoint of step {settings.resume_step} of phase {settings.phase}"
        )
    if settings.phase == 1:
        if older:
            return _from_pt(settings, older)
        return ResumePoint(None, f"{settings.output_dir}: no checkpoint of phase 1 to resume: start anew")
    if whole:
        path, state = whole[-1]
        note = f"phase 2 starts from {path.name}, step {state['step']} of phase {state['phase']}"
        planned = state["settings"].get("max_steps")
        if isinstance(planned, int) and state["step"] < planned:
            note = f"{note}, which was to have {planned}: phase {state['phase']} is not finished"
        return ResumePoint(path, note, global_step=state["global_step"], state=state)
    if older:
        return _from_pt(settings, older)
    raise BadRequest(no_start(settings.output_dir))


def of_the_run(settings: Settings, start: ResumePoint, world_size: int) -> tuple[Settings, list[str]]:
    """Settings with what a run keeps from its beginning when it is resumed, and lines to say: each that now differs.

    Raises BadRequest for an end before the step that the run has reached.
    """
    if settings.do_train and start.step > settings.max_steps:
        raise BadRequest(
            f"--max_steps {settings.max_steps}: {start.name} is at step {start.step} of phase {settings.phase} "
            f"already: give {start.step} or more, or another --output_dir"
        )
    if not (start.exact and start.state):
        return settings, []
    begun = start.state["settings"]
    kept = replace(
        settings,
        seed=begun.get("seed", settings.seed),
        init_checkpoint=Path(begun["init_checkpoint"]) if begun.get("init_checkpoint") else None,
    )
    said = [f"--seed {settings.seed}: this run goes on with the seed it began with, {kept.seed}"]
    return kept, [*(said if kept.seed != settings.seed else []), *_changed(settings, start.state, world_size)]


def _changed(settings: Settings, state: State, world_size: int) -> list[str]:
    """A line for each setting that decides a run and is another one from here on."""
    begun, until = state["settings"], f"up to step {state['step']}"
    pairs = [(flag, begun.get(field), getattr(settings, field)) for field, flag in DECIDING.items()]
    batch, ranks = begun.get("train_batch_size"), state.get("world_size")
    if isinstance(batch, int) and isinstance(ranks, int):
        pairs.append(("sequences a step, over all ranks", batch * ranks, settings.train_batch_size * world_size))
    said = [f"{what}: {now} from here on, {was} {until}" for what, was, now in pairs if was not in (None, now)]
    return [*said, *_other_rate(settings, begun, state["step"] + 1)]


def _other_rate(settings: Settings, begun: dict, step: int) -> list[str]:
    """A line where the learning rate of the next step is not that of the schedule as it was."""
    now = {name: getattr(settings, name) for name in SCHEDULE}
    was = {name: begun.get(name, value) for name, value in now.items()}
    try:
        before, rate = (
            poly_warmup(step, base_lr=of["lr"], warmup_proportion=of["warmup_proportion"], total_steps=of["max_steps"])
            for of in (was, now)
        )
    except (TypeError, ValueError, ArithmeticError):  # of a state.json that was edited
        return []
    return [f"the learning rate of step {step} is {rate:.2e}, and was to be {before:.2e}"] if rate != before else []


def lacks_results(settings: Settings, start: ResumePoint) -> bool:
    """Whether a finished phase was killed after its last checkpoint and before it was evaluated and its results were
    written. Not where a later phase has begun: that one would have to be done again."""
    if not start.exact or start.path != list_checkpoints(settings.output_dir)[-1]:
        return False
    return results.last_step(settings.results_dir / results.NAME, settings.phase) != start.global_step


def _state(path: Path) -> State | ValueError:
    """A checkpoint's state, or the ValueError that says what is wrong with it."""
    try:
        state = read_state(path)
    except ValueError as error:
        return error
    bad = [name for name, kind in NEEDED.items() if type(state.get(name)) is not kind]  # true is no number here
    if bad or type(state["data"].get("rows_read")) is not int:
        return ValueError(f"{path / 'state.json'}: no {', '.join(bad) or 'rows_read'} in it: {remedy(path)}")
    counts = {name: state[name] for name in ("step", "global_step")} | {"rows_read": state["data"]["rows_read"]}
    wrong = [f"{name} {count}" for name, count in counts.items() if not 0 <= count < MOST_STEPS]
    wrong += [f"phase {state['phase']}"] if state["phase"] not in (1, 2) else []
    wrong += [f"step {state['step']} of {state['global_step']} in all"] if state["step"] > state["global_step"] else []
    ranks, begun = state.get("world_size", 1), state["settings"]
    wrong += [f"world_size {ranks!r}"] if type(ranks) is not int or ranks < 1 else []
    wrong += [
        f"{name} {begun[name]!r}" for name, is_right in KEPT.items() if name in begun and not is_right(begun[name])
    ]
    if wrong:
        return ValueError(f"{path / 'state.json'}: {', '.join(wrong)}: no place of a training: {remedy(path)}")
    return state


def _continued(settings: Settings, own: list[tuple[Path, State]]) -> ResumePoint:
    path, state = own[-1]
    begun_with = state["settings"].get("init_checkpoint")
    if settings.init_checkpoint and Path(begun_with or "").resolve() != settings.init_checkpoint.resolve():
        raise BadRequest(
            f"{path} belongs to a run that began with --init_checkpoint {begun_with}, not with "
            f"{settings.init_checkpoint}: give another --output_dir"
        )
    note = f"resume from {path.name}: step {state['step']} of phase {state['phase']}"
    return ResumePoint(path, note, state["step"], state["global_step"], state["data"]["rows_read"], True, state)


def _from_weights(settings: Settings, path: Path, whole: list[tuple[Path, State]]) -> ResumePoint:
    """--init_checkpoint: weights and moments, step 0, fresh schedule. Never counts over checkpoints already there."""
    if problems := misnamed(path):
        raise BadRequest(problems)
    done = 0
    state = _state(path) if (path / "state.json").is_file() else None
    if isinstance(state, ValueError):
        raise BadRequest(str(state))
    if settings.phase == 2:
        named = settings.resume_step if settings.resume_step is not None else (checkpoint_step(path) or 0)
        done = max([state["global_step"] if state else named, *(earlier["global_step"] for _, earlier in whole)])
    elif whole:
        raise BadRequest(f"{settings.output_dir}: holds checkpoints of phase 2: give another --output_dir")
    return ResumePoint(path, f"weights from {path}, step 0 of phase {settings.phase}", global_step=done, state=state)


def _from_pt(settings: Settings, older: list[Path]) -> ResumePoint:
    """A `.pt` of the reference says its global step by its name and its phase not at all."""
    by_step = {step: path for path in older if (step := checkpoint_step(path)) is not None}
    step = max(by_step) if settings.resume_step is None else settings.resume_step
    if step not in by_step:
        raise BadRequest(f"{settings.output_dir}: no ckpt_{step}.pt")
    path = by_step[step]
    if settings.phase == 1:
        return ResumePoint(path, f"resume from {path.name}: step {step} of phase 1", step, step, None)
    done = max(0, step - settings.phase1_end_step)
    note = f"phase 2 from {path.name}: step {done} (phase 1 ended at {settings.phase1_end_step})"
    return ResumePoint(path, note, done, step, None)
