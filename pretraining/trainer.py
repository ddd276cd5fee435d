"""A run put together from a checked request: data, model, optimizer and exchange, and what it tells and saves."""

import contextlib
import time
from typing import NoReturn

import torch.distributed as dist

from central.runtime import reports
from central.runtime.device import Device, configure_compile
from central.runtime.exits import BadRequest, Diverged, Preempted
from central.runtime.process_group import open_store
from central.runtime.rank import Rank
from central.runtime.watchdog import BUSY, Watchdog
from pretraining import checkpoint, model_stats
from pretraining.batches import Masking
from pretraining.convert import read_foreign
from pretraining.dataset import Prefetch, steps
from pretraining.distributed import open_exchange
from pretraining.evaluation import HeldOut, evaluate, load_held_out, training_counts
from pretraining.kernels.choice import open_kernels
from pretraining.metrics import Watch
from pretraining.modeling import BertForPreTraining, initialise
from pretraining.optimizer import build
from pretraining.preflight import Request
from pretraining.resume import Start
from pretraining.settings import Settings
from pretraining.train_loop import TrainState
from pretraining.vocabulary import SPECIAL_TOKENS

FINAL_SCORES = ("eval_nsp_accuracy", "eval_nsp_majority")  # of the last evaluation, in the line of the whole run
LONGEST_NAMES = 2000  # characters of an error's list of rows


class Run:
    """What the training loop works with."""

    def __init__(self, settings: Settings, start: Start, device: Device, rank: Rank, request: Request, stop):
        self._began = time.monotonic()
        self.settings, self.device, self.rank, self.stop = settings, device, rank, stop
        self.request, self.share = request, request.share
        self.exchange = open_exchange(rank.world_size, settings.flat_exchange, settings.bf16_exchange)
        if not self.exchange.agree([start.step, start.global_step, request.reader.rows_per_epoch]):
            raise BadRequest(
                f"this rank would start at step {start.step} over {request.reader.rows_per_epoch} rows an epoch, other "
                "ranks elsewhere: --output_dir and --input_dir must hold the same on every host (a shared folder)"
            )
        in_place = rank.world_size == 1 or settings.flat_exchange  # DDP must see every gradient
        self.kernels = open_kernels(device, in_place, settings.fused_sdpa)
        self._raw_model = BertForPreTraining(request.config, self.kernels, settings.checkpoint_activations)
        notes = self._load(start)
        self.parameters = list(self._raw_model.parameters())
        if device.mode == "compile":
            configure_compile(2, settings.checkpoint_activations)  # training and evaluation
        self.model = self.exchange.wrap(device.compile(self._raw_model))
        rows_read = start.rows_read
        if rows_read is None:  # a .pt does not say: as many whole steps as it has done
            rows_read = start.step * self.share.global_rows_per_step
        self.state = TrainState(settings.phase, start.step, start.global_step, rows_read)
        self.batches = Prefetch(
            steps(
                request.reader,
                self.share,
                rows_read,
                start.global_step,
                device.pads_rows,
                self._masking(),
                tile=device.tile,
                pinned=device.pins_batches,
            )
        )
        self._peak, self._passed_peak = device.matrix_peak(), False
        self.watch = Watch(device, request.config, self._peak, self.exchange, self._name_rows)
        self._held_out = self._open_held_out()
        notes += [*request.notes, *self._changed_data(start)]
        self._open_reports(fresh=start.path is None and settings.phase == 1, notes=notes)
        self._last_report, self._last_evaluation, self._evaluated, self._no_picture = {}, {}, None, False
        self._saved = start.global_step  # a run stopped before its first step begins where this one did
        self._saver = checkpoint.Saver(settings.output_dir, settings.save_total_limit) if rank.is_main else None
        if rank.is_main:
            checkpoint.sweep(settings.output_dir)
            if settings.do_train:
                for line in checkpoint.set_aside(settings.output_dir, start.global_step):
                    self._console.say(line)
        stop.kept = start.path.name if start.path is not None else ""
        self.watchdog = Watchdog(rank, settings.hang_timeout, stop, open_store(rank), compiles=device.compiles)

    def _load(self, start: Start) -> list[str]:
        """Weights and optimizer as `start` says; returns lines to say."""
        model, notes, moments = self._raw_model, [], None
        initialise(model, self.settings.seed)
        if start.path is not None and (start.path / "state.json").is_file():
            checkpoint.load_weights(model, checkpoint.read_weights(start.path), start.path)
            moments = checkpoint.read_moments(start.path)
        elif start.path is not None:
            foreign = read_foreign(start.path, model)
            checkpoint.load_weights(model, foreign.weights, start.path)
            moments, notes = foreign.moments, list(foreign.notes)
        model.to(self.device.device)
        self.optimizer = build(self.settings.optimizer, model, self.settings.lr, self.device)
        if moments is not None:
            checkpoint.check_moments(moments, self.optimizer, model, start.path)
            checkpoint.load_moments(self.optimizer, model, moments)
        return notes

    def _masking(self) -> Masking | None:
        if not self.settings.dynamic_masking:
            return None
        vocabulary = self.request.vocabulary
        ids = vocabulary.special_ids() if vocabulary else SPECIAL_TOKENS
        special = tuple(ids[token] for token in ("[PAD]", "[CLS]", "[SEP]"))
        return Masking(self.request.config.vocab_size, ids["[MASK]"], special)

    def _open_held_out(self) -> HeldOut | None:
        request, settings = self.request, self.settings
        if not request.test_shards:
            return None
        try:
            counts = training_counts(settings.input_dir, request.reader.shards, request.limits)
            return load_held_out(request.test_shards, request.limits, self.rank.rank, self.rank.world_size, counts)
        except ValueError as error:
            raise BadRequest(str(error)) from error

    def _changed_data(self, start: Start) -> list[str]:
        """A line to say where the place at which a run stopped lies elsewhere in the shards of now."""
        if not (start.exact and start.state):
            return []
        was, now = start.state["data"], self._position()
        if all(was.get(key, value) == value for key, value in now.items()):
            return []
        return [
            f"the shards in {self.settings.input_dir} are not those this run stopped at: its next row was "
            f"{was.get('shard')} row {was.get('row')}, and is now {now['shard']} row {now['row']}"
        ]

    def _position(self) -> dict:
        """Where the next row lies."""
        reader, rows_read = self.request.reader, self.state.rows_read
        epoch, shard, row = reader.locate(rows_read)
        return {"rows_read": rows_read, "epoch": epoch, "shard": reader.shards[shard].path.name, "row": row}

    def _name_rows(self, places: range) -> str:
        """Rows of the order by file and number; too long a list goes to a file, which is named instead."""
        names = self.request.reader.describe(places.start, places.stop)
        path = self.settings.results_dir / "rows_not_finite.txt"
        if len(names) > LONGEST_NAMES:
            with contextlib.suppress(OSError):
                path.write_text(names.replace("; ", "\n") + "\n")
                return f"the {len(places)} rows in {path}"
        return names

    def _open_reports(self, fresh: bool, notes: list[str]) -> None:
        settings, rank = self.settings, self.rank
        self._log = self._board = None
        self._console = reports.Console(settings.stop_step, self.state.step, settings.progress_bar and rank.is_main)
        if not rank.is_main:
            return
        with self._writing_log():
            self._log = reports.DlLogger(settings.json_summary, fresh)
        if settings.tensorboard:
            try:
                self._board = reports.open_tensorboard(settings.results_dir / "tensorboard")
            except ValueError as error:
                raise BadRequest(str(error)) from error
        if self.request.vocabulary is None:
            notes.append("no vocab.txt beside the shards and no --vocab_file: checkpoints get no tokenizer")
        notes += self.device.remarks(bf16_exchange=settings.bf16_exchange and rank.world_size > 1)
        self._record("PARAMETER", {"settings": settings.to_json(), "world_size": rank.world_size})
        self._record("PARAMETER", {"SEED": settings.seed, "batch_size_per_pu": settings.micro_batch_size})
        if self._peak is not None:
            self._record("PARAMETER", {"matrix_peak_flops": self._peak})
        self._record("PARAMETER", {reports.START: self.state.global_step, "phase": self.state.phase})
        if self._log.kept_as:
            notes.append(f"{settings.json_summary}: the log of an earlier run is kept as {self._log.kept_as}")
        sizes = f"{model_stats.count_parameters(self.request.config) / 1e6:.1f} M parameters"
        global_rows = self.share.global_rows_per_step
        for line in (
            f"{settings.bert_model}: {sizes}, {self.device.type} {self.device.mode} {self.device.data_type}, "
            f"{rank.world_size} rank(s), about {self.request.memory_bytes / 2**30:.1f} GiB per process",
            f"{global_rows} rows a step: {rank.world_size} rank(s) x {self.share.num_micro_batches} micro-steps x "
            f"{self.share.rows_per_micro_batch}; {self.request.reader.rows_per_epoch} rows an epoch",
            *notes,
        ):
            self._console.say(line)

    @contextlib.contextmanager
    def _writing_log(self):
        """Reports that cannot be written, most likely because the disk is full, end the run in one line."""
        try:
            yield
        except OSError as error:
            raise BadRequest(
                f"{self.settings.json_summary}: cannot be written ({error.strerror or error}): make room, then "
                "--resume_from_checkpoint; the checkpoints are whole"
            ) from error

    def _record(self, place, numbers: dict) -> None:
        """A line of the log; what belongs to a step goes to the board, too."""
        with self._writing_log():
            if not self._log.log(place, numbers):
                self._console.say(f"{self.settings.json_summary}: was deleted, and begins anew")
            if self._board is not None and place == self._place:
                for name, value in numbers.items():
                    self._board.add_scalar(name, value, self.state.global_step)

    @property
    def _place(self) -> list[int]:
        return [self.state.rows_read // self.request.reader.rows_per_epoch, self.state.global_step]

    def report(self) -> None:
        """Log the steps since the last report."""
        numbers = self.watch.read()
        if self._log is None:
            return
        if self._saver is not None:
            self._saver.check()
        self._last_report = {"phase": self.state.phase, **numbers}
        self._record(self._place, self._last_report)
        self._console.step(
            self.state.step,
            f"loss {numbers['average_loss']:.4f}  lr {numbers['learning_rate']:.2e}  "
            f"{numbers['sequences_per_second']:.1f} seq/s  {numbers['tokens_per_second']:.0f} tokens/s"
            + (f"  mfu {numbers['mfu']:.1%}" if "mfu" in numbers else ""),
        )
        if numbers.get("mfu", 0) > 1 and not self._passed_peak:
            self._passed_peak = True
            self._console.say(
                f"mfu above 100 %: {self._peak / 1e9:.0f} GFLOP/s, the matrix peak measured at the start, was too low; "
                "take no mfu of this run for a measurement"
            )

    def evaluate(self) -> None:
        """Evaluate on the held-out rows, if there are any and this very state has not been evaluated."""
        if self._held_out is None or self._evaluated == self.state.global_step:
            return
        self._evaluated = self.state.global_step
        size = self.settings.micro_batch_size
        numbers = evaluate(self.model, self._held_out, size, self.device, self.exchange, self.watchdog.mark, self.stop)
        if numbers is None:
            self.end_early()
        if self._log is None:
            return
        self._last_evaluation = numbers
        self._record(self._place, {"phase": self.state.phase, **numbers})
        self._console.say(
            f"held out: MLM loss {numbers['eval_mlm_loss']:.4f} (unigram {numbers['eval_unigram_loss']:.4f}), MLM "
            f"accuracy {numbers['eval_mlm_accuracy']:.3f}, NSP accuracy {numbers['eval_nsp_accuracy']:.3f} "
            f"(majority {numbers['eval_nsp_majority']:.3f}), {numbers['eval_sequences']} sequences"
        )

    def end_early(self) -> NoReturn:
        """Asked to stop, all ranks save, meet and end. A resumed run makes up for an evaluation cut short."""
        self.watchdog.busy()
        self.save(wait=True)
        self.exchange.barrier()
        unsaved = self.settings.skip_checkpoint or not self.settings.do_train
        where = "nothing was saved" if unsaved else "--resume_from_checkpoint goes on from there"
        raise Preempted(f"stopped by a signal after step {self.state.step}; {where}")

    def save(self, wait: bool) -> None:
        """Save the state of now, on the main rank; returns after the copy unless `wait`."""
        self.watch.settle()  # nothing that is not finite reaches a checkpoint
        if self._saver is None or self.settings.skip_checkpoint:
            return
        if self._saved != self.state.global_step:
            self._saved = self.state.global_step
            texts = self.request.vocabulary.files() if self.request.vocabulary else {}
            state = self._state_json()
            self._saver.save(self._raw_model, self.optimizer, state, texts, lambda: self._kept(state["global_step"]))
        if wait:
            self._saver.wait()

    def _state_json(self) -> dict:
        state, vocabulary = self.state, self.request.vocabulary
        return {
            "phase": state.phase,
            "step": state.step,
            "global_step": state.global_step,
            "data": self._position(),
            "vocab_sha256": vocabulary.sha256 if vocabulary else None,
            "world_size": self.rank.world_size,
            "settings": self.settings.to_json(),
        }

    def _kept(self, global_step: int) -> None:
        """A checkpoint has become whole."""
        self.stop.kept = f"ckpt_{global_step}"
        self._draw()

    def _draw(self) -> None:
        try:
            title = f"{self.settings.bert_model}, {self.device.type} {self.device.data_type}"
            reports.draw_training(self._log.history, self.settings.results_dir / "training.png", title)
        except Exception as error:  # a picture is not worth a run: matplotlib is missing, the disk is full, ...
            if not self._no_picture:
                self._console.say(f"no training.png: {type(error).__name__}: {error}")
            self._no_picture = True

    def finish(self) -> None:
        """The line of the whole run and the last picture."""
        if self._log is None:
            return
        self._console.end()
        watch = self.watch
        self._record(
            (),
            {
                "e2e_train_time": time.monotonic() - self._began,
                "raw_train_time": watch.train_time,
                "training_sequences_per_second": watch.sequences / watch.train_time if watch.train_time else 0.0,
                "final_loss": self._last_report.get("average_loss"),
                **{name: number for name, number in self._last_evaluation.items() if name in FINAL_SCORES},
                "peak_memory_bytes": self.device.peak_memory(),
            },
        )
        if self._last_report or self._evaluated is not None:
            self._draw()

    def close(self) -> None:
        """Wait for what is being written, then part from the other ranks."""
        self.watchdog.mark(BUSY)
        self.batches.close()
        if self._saver is not None:
            self._saver.wait()
        if self._board is not None:
            self._board.close()
        self.exchange.barrier()
        self.watchdog.close()
        self.exchange.barrier()  # rank 0 takes the store with it
        if self.rank.world_size > 1:
            dist.destroy_process_group()

    def abandon(self) -> None:
        """After an error: let a checkpoint under way become whole, and wait for no other rank."""
        self.watchdog.close()
        self.batches.close()
        if self._saver is not None:
            with contextlib.suppress(BadRequest, Diverged):  # the error that ended the run is the one to tell
                self._saver.wait()
