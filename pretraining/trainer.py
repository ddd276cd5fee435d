"""A run put together from a checked request: its parts are made here, handed to the loop, and told what it yields."""

import contextlib
import gc
import time
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from central.runtime.device import Device, configure_compile
from central.runtime.exits import BadRequest, Diverged, Preempted
from central.runtime.process_group import open_store
from central.runtime.rank import Rank, StopRequest
from central.runtime.watchdog import BUSY, Watchdog
from pretraining import checkpoint
from pretraining.batches import Masking
from pretraining.convert import convert
from pretraining.dataset import Prefetch, ShardReader, steps
from pretraining.distributed import Alone, open_exchange
from pretraining.evaluation import HeldOut, count_tokens, evaluate, load_held_out
from pretraining.kernels.choice import Kernels, open_kernels
from pretraining.metrics import Metrics
from pretraining.modeling import BertForPreTraining, initialise
from pretraining.objective import OBJECTIVES, Objective
from pretraining.optimizer import Optimizer, build
from pretraining.preflight import Checked
from pretraining.reports import START, Reporter
from pretraining.results import Facts
from pretraining.resume import ResumePoint
from pretraining.settings import Settings
from pretraining.train_loop import Parts, TrainState, train

LONGEST_NAMES = 2000  # characters of an error's list of rows


class Run:
    """The parts of a run, and what is done with a step that the loop yields: reports, checkpoints, evaluations."""

    def __init__(
        self, settings: Settings, start: ResumePoint, device: Device, rank: Rank, checked: Checked, stop: StopRequest
    ):
        self._began = time.monotonic()
        self._settings, self._device, self._rank, self._checked, self._stop = settings, device, rank, checked, stop
        self._objective = objective = OBJECTIVES[settings.objective]
        self._exchange = exchange = open_exchange(rank.world_size, settings.flat_exchange, settings.bf16_exchange)
        _agree(exchange, start, checked.reader)
        in_place = rank.world_size == 1 or settings.flat_exchange  # DDP must see every gradient
        kernels = open_kernels(device, in_place, settings.fused_sdpa)
        self._model, self._optimizer, notes = _open_model(settings, start, device, kernels, checked, objective)
        if device.mode == "compile":
            configure_compile(2, settings.checkpoint_activations)  # training and evaluation
        model = exchange.wrap(device.compile(self._model))
        rows_read = start.rows_read
        if rows_read is None:  # a .pt does not say: as many whole steps as it has done
            rows_read = start.step * checked.shape.global_rows_per_step
        self.state = TrainState(settings.phase, start.step, start.global_step, rows_read)
        batches = Prefetch(
            steps(
                checked.reader,
                checked.shape,
                rows_read,
                start.global_step,
                device.pads_rows,
                _masking(settings, checked),
                objective,
                tile=device.tile,
                pinned=device.pins_batches,
            )
        )
        peak = device.matrix_peak()
        name_rows = partial(_name_rows, checked.reader, settings.results_dir / "rows_not_finite.txt")
        metrics = Metrics(device, checked.config, objective, peak, exchange, name_rows)
        self._held_out = _open_held_out(checked, rank, objective)
        self._evaluated: int | None = None  # the global step that was evaluated last
        self._saved = start.global_step  # a run stopped before its first step begins where this one did
        self._reporter = self._writer = None
        if rank.is_main:
            notes += [*checked.notes, *_changed_data(settings, start, checked.reader, rows_read)]
            self._reporter = self._open_reporter(start, peak, notes)
            limit = settings.save_total_limit
            self._writer = checkpoint.CheckpointWriter(settings.output_dir, limit, objective.architecture)
            checkpoint.sweep(settings.output_dir)
            if settings.do_train:
                for line in checkpoint.set_aside(settings.output_dir, start.global_step):
                    self._reporter.say(line)
        stop.kept = start.name
        watchdog = Watchdog(rank, settings.hang_timeout, stop, open_store(rank), compiles=device.compiles)
        self._parts = Parts(
            settings, self.state, device, rank, stop, exchange, kernels, model, self._optimizer, batches, checked.shape,
            metrics, watchdog,
        )  # fmt: skip

    def train(self) -> None:
        """Train to the stop step; raises Preempted when a signal asked to stop, after saving."""
        gc.freeze()  # modules and parts live as long as the run: a collection shall not walk them
        self.evaluate()
        for due in train(self._parts):
            if due.stop:
                self._end_early()
            if due.report:
                self.report()
            if due.save:
                self.save(wait=False)  # before evaluating, which may take longer than a run told to stop is given
            if due.evaluate:
                self.evaluate()

    def report(self) -> None:
        """Log the steps since the last report."""
        numbers = self._parts.metrics.read()
        if self._writer is not None:
            self._writer.check()
        if self._reporter is not None:
            self._reporter.report(numbers)

    def evaluate(self) -> None:
        """Evaluate on the held-out rows, if there are any and this very state has not been evaluated."""
        if self._held_out is None or self._evaluated == self.state.global_step:
            return
        self._evaluated = self.state.global_step
        parts, size = self._parts, self._settings.micro_batch_size
        mark = parts.watchdog.mark
        numbers = evaluate(
            parts.model, self._objective, self._held_out, size, self._device, self._exchange, mark, self._stop
        )
        if numbers is None:
            self._end_early()
        if self._reporter is not None:
            self._reporter.evaluation(numbers)

    def _end_early(self) -> NoReturn:
        """Asked to stop, all ranks save, meet and end. A resumed run makes up for an evaluation cut short."""
        self._parts.watchdog.busy()
        self.save(wait=True)
        self._exchange.barrier()
        unsaved = self._settings.skip_checkpoint or not self._settings.do_train
        where = "nothing was saved" if unsaved else "--resume_from_checkpoint goes on from there"
        raise Preempted(f"stopped by a signal after step {self.state.step}; {where}")

    def save(self, wait: bool) -> None:
        """Save the state of now, on the main rank; returns after the copy unless `wait`."""
        self._parts.metrics.settle()  # nothing that is not finite reaches a checkpoint
        if self._writer is None or self._settings.skip_checkpoint:
            return
        if self._saved != self.state.global_step:
            self._saved = self.state.global_step
            vocabulary = self._checked.vocabulary
            texts = vocabulary.files() if vocabulary else {}
            state = {
                **self.state.in_phase(),
                "data": _position(self._checked.reader, self.state.rows_read),
                "vocab_sha256": vocabulary.sha256 if vocabulary else None,
                "world_size": self._rank.world_size,
                "settings": self._settings.to_json(),
            }
            self._writer.save(self._model, self._optimizer, state, texts, partial(self._kept, f"ckpt_{self._saved}"))
        if wait:
            self._writer.wait()

    def _kept(self, name: str) -> None:
        """A checkpoint has become whole."""
        self._stop.kept = name
        if self._reporter is not None:
            self._reporter.draw()

    def close(self) -> None:
        """Wait for what is being written, part from the other ranks, and report the whole run."""
        watchdog = self._parts.watchdog
        watchdog.mark(BUSY)
        self._parts.batches.close()
        if self._writer is not None:
            self._writer.wait()
        if self._reporter is not None:
            self._reporter.close()
        self._exchange.barrier()
        watchdog.close()
        self._exchange.barrier()  # rank 0 takes the store with it
        if self._rank.world_size > 1:
            dist.destroy_process_group()
        if self._reporter is not None:
            seconds = time.monotonic() - self._began
            self._reporter.finish(seconds, self._parts.metrics, self._device.peak_memory())

    def abandon(self) -> None:
        """After an error: let a checkpoint under way become whole, and wait for no other rank."""
        self._parts.watchdog.close()
        self._parts.batches.close()
        if self._writer is not None:
            with contextlib.suppress(BadRequest, Diverged):  # the error that ended the run is the one to tell
                self._writer.wait()

    def _open_reporter(self, start: ResumePoint, peak: float | None, notes: list[str]) -> Reporter:
        settings, device, checked, world_size = self._settings, self._device, self._checked, self._rank.world_size
        kept = (checkpoint.unpadded(name, part, checked.config) for name, part in self._model.named_parameters())
        facts = Facts(
            model=settings.bert_model,
            parameters=sum(part.numel() for part in kept),
            device=device.type,
            device_name=device.name,
            mode=device.mode,
            data_type=device.data_type,
            world_size=world_size,
            global_batch_size=settings.train_batch_size * world_size,
        )
        fresh = start.path is None and settings.phase == 1
        rows_per_epoch = checked.reader.rows_per_epoch
        reporter = Reporter(settings, self._objective, facts, rows_per_epoch, self.state, peak, fresh)
        if checked.vocabulary is None:
            notes.append("no vocab.txt beside the shards and no --vocab_file: checkpoints get no tokenizer")
        notes += device.remarks(bf16_exchange=settings.bf16_exchange and world_size > 1)
        reporter.parameters(settings=settings.to_json(), world_size=world_size)
        reporter.parameters(SEED=settings.seed, batch_size_per_pu=settings.micro_batch_size)
        if peak is not None:
            reporter.parameters(matrix_peak_flops=peak)
        reporter.parameters(**{START: self.state.global_step, "phase": self.state.phase})
        if reporter.log_kept_as:
            notes.append(f"{settings.json_summary}: the log of an earlier run is kept as {reporter.log_kept_as}")
        for line in (
            f"{facts.model}: {facts.size}, {device.type} {device.mode} {device.data_type}, {world_size} rank(s), "
            f"about {checked.memory_bytes / 2**30:.1f} GiB per process",
            f"{checked.shape.global_rows_per_step} rows a step: {world_size} rank(s) x "
            f"{checked.shape.num_micro_batches} micro-steps x {checked.shape.rows_per_micro_batch}; {rows_per_epoch} "
            "rows an epoch",
            *notes,
        ):
            reporter.say(line)
        return reporter


def _agree(exchange: Alone, start: ResumePoint, reader: ShardReader) -> None:
    """All ranks start at the same step, over the same rows."""
    if not exchange.agree([start.step, start.global_step, reader.rows_per_epoch]):
        raise BadRequest(
            f"this rank would start at step {start.step} over {reader.rows_per_epoch} rows an epoch, other "
            "ranks elsewhere: --output_dir and --input_dir must hold the same on every host (a shared folder)"
        )


def _open_model(
    settings: Settings,
    start: ResumePoint,
    device: Device,
    kernels: Kernels,
    checked: Checked,
    objective: Objective,
) -> tuple[BertForPreTraining, Optimizer, list[str]]:
    """Model and optimizer as `start` says, on the device; and lines to say."""
    model = BertForPreTraining(checked.config, kernels, settings.checkpoint_activations, objective.heads)
    notes: list[str] = []
    moments = None
    initialise(model, settings.seed)
    if start.path is not None and (start.path / "state.json").is_file():
        checkpoint.load_weights(model, checkpoint.read_weights(start.path), start.path)
        moments = checkpoint.read_moments(start.path)
    elif start.path is not None:
        converted = convert(start.path, model)
        checkpoint.load_weights(model, converted.weights, start.path)
        moments, notes = converted.moments, list(converted.notes)
    model.to(device.device)
    optimizer = build(settings.optimizer, model, settings.lr, device)
    if moments is not None and start.path is not None:
        checkpoint.check_moments(moments, optimizer, model, start.path)
        checkpoint.load_moments(optimizer, model, moments)
    return model, optimizer, notes


def _masking(settings: Settings, checked: Checked) -> Masking | None:
    if not settings.dynamic_masking:
        return None
    ids = checked.special_ids
    special = tuple(ids[token] for token in ("[PAD]", "[CLS]", "[SEP]"))
    return Masking(checked.config.vocab_size, ids["[MASK]"], special)


def _open_held_out(checked: Checked, rank: Rank, objective: Objective) -> HeldOut | None:
    if not checked.test_shards:
        return None
    limits = checked.limits
    try:
        counts = checked.token_counts
        if counts is None:
            counts = count_tokens(checked.reader.shards, limits)
        return load_held_out(checked.test_shards, limits, rank.rank, rank.world_size, counts, objective)
    except ValueError as error:
        raise BadRequest(str(error)) from error


def _position(reader: ShardReader, rows_read: int) -> dict[str, int | str]:
    """Where the next row lies."""
    epoch, shard, row = reader.locate(rows_read)
    return {"rows_read": rows_read, "epoch": epoch, "shard": reader.shards[shard].path.name, "row": row}


def _changed_data(settings: Settings, start: ResumePoint, reader: ShardReader, rows_read: int) -> list[str]:
    """A line to say where the place at which a run stopped lies elsewhere in the shards of now."""
    if not (start.exact and start.state):
        return []
    was, now = start.state["data"], _position(reader, rows_read)
    if all(was.get(key, value) == value for key, value in now.items()):
        return []
    return [
        f"the shards in {settings.input_dir} are not those this run stopped at: its next row was "
        f"{was.get('shard')} row {was.get('row')}, and is now {now['shard']} row {now['row']}"
    ]


def _name_rows(reader: ShardReader, path: Path, places: range) -> str:
    """Rows of the order by file and number; too long a list goes to a file, which is named instead."""
    names = reader.describe(places.start, places.stop)
    if len(names) > LONGEST_NAMES:
        with contextlib.suppress(OSError):
            path.write_text(names.replace("; ", "\n") + "\n")
            return f"the {len(places)} rows in {path}"
    return names
