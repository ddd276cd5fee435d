"""The Trainer of the fine-tuning scripts: Hugging Face's, with batches in parts, Gaudi's kernels and exact stops.

Private methods of transformers' Trainer are overridden here and nowhere else. One that a release does not have would
never be called, and what it does would be lost in silence: `missing_methods` finds it before anything starts.
"""

import collections
import contextlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
import transformers
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import nested_gather
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, TrainOutput
from typing_extensions import override

from central.finetuning import attention_cpu, attention_hpu
from central.finetuning.arguments import ReferenceFlags
from central.finetuning.batching import Collator, LengthBatches, PartsCollator, layout
from central.finetuning.features import Features
from central.finetuning.output_folder import unreadable
from central.finetuning.progress import ProgressBar, ProgressLines
from central.finetuning.resume import Record, check_moments, deciding
from central.finetuning.task import Task
from central.runtime import hpu, rank, tensor_files
from central.runtime.checkpoints import checksum
from central.runtime.device import Device, configure_compile
from central.runtime.dropout import DropoutBits, fold
from central.runtime.exits import BadRequest, Diverged, Preempted
from central.runtime.process_group import open_store
from central.runtime.rank import StopRequest
from central.runtime.watchdog import BUSY, Watchdog

CALLED = (
    "_determine_best_metric",
    "_evaluate",
    "_get_learning_rate",
)  # private methods that are called and not overridden
WEIGHTS_AND_MOMENTS = (".safetensors", ".pt")  # of the files of a checkpoint
SHAPES_COMPILED = 32  # four lengths of whole and of last batches, in training and in evaluation, and room beside


def missing_methods(ours: type[Trainer], theirs: type[Trainer] = Trainer) -> list[str]:
    """Methods that `ours` overrides or calls and `theirs` does not have."""
    overridden = [name for name, method in vars(ours).items() if getattr(method, "__override__", False)]
    return [name for name in (*overridden, *CALLED) if not hasattr(theirs, name)]


def refuse_another_trainer() -> None:
    """Raise BadRequest where the transformers installed has another Trainer than this one is made for."""
    missing = missing_methods(FineTuningTrainer)
    if missing:
        raise BadRequest(
            f"transformers {transformers.__version__}: its Trainer has no {', '.join(missing)}, which fine-tuning here "
            "builds on: pip install -r requirements.txt brings a release that has"
        )


class FineTuningTrainer(Trainer):
    """A Trainer over `Features`. On hpu every batch has one of a few fixed shapes."""

    def __init__(
        self,
        *args: Any,
        task: Task | type[Task],
        device: Device,
        flags: ReferenceFlags,
        pad_to_max_length: bool,
        max_seq_length: int,
        stop: StopRequest,
        **kwargs: Any,
    ):
        training, tokenizer = kwargs["args"], kwargs["processing_class"]
        self.task = task
        self.flags = flags
        self.device = device
        self.by_length = not pad_to_max_length
        padded, cut = layout(device, max_seq_length, pad_to_max_length)
        if training.torch_compile:
            device.load_compile_backend()
            configure_compile(SHAPES_COMPILED, training.gradient_checkpointing)
        kwargs["data_collator"] = Collator(tokenizer.pad_token_id, tokenizer.padding_side, padded, task.padding)
        self._training_collator = PartsCollator(kwargs["data_collator"], cut)
        if flags.use_fused_adam and (fused_adamw := device.fused_adamw()):
            betas = (training.adam_beta1, training.adam_beta2)
            adam = {"lr": training.learning_rate, "betas": betas, "eps": training.adam_epsilon}
            kwargs["optimizer_cls_and_kwargs"] = (fused_adamw, adam)
        here = rank.from_environment()
        self.watchdog = Watchdog(here, flags.hang_timeout, stop, open_store(here), device.compiles)
        self._stopping = StopBetweenSteps(stop, self.watchdog)
        train_dataset = kwargs.get("train_dataset")
        self.record = Record(deciding(training, train_dataset) if train_dataset else None)
        kwargs["callbacks"] = [*kwargs.get("callbacks", ()), self._stopping, self.record]
        kwargs["callbacks"].append(MarkSteps(device))
        if device.fixed_shapes:
            attention_hpu.replace_attention(kwargs["model"], device.fused_sdpa() if flags.fused_sdpa else None)
        # What is computed twice needs the same masks twice, which checkpointing does for torch's own only.
        own = device.uses_host_memory and not (device.compiles or training.gradient_checkpointing)
        kwargs["callbacks"].append(ReseedDropout(attention_cpu.replace_attention(kwargs["model"]) if own else None))
        super().__init__(*args, **kwargs)
        for shown_by_default in (PrinterCallback, ProgressCallback):
            self.remove_callback(shown_by_default)
        self.add_callback(ProgressLines() if training.disable_tqdm else ProgressBar())
        # BERT's loss is a mean over its own batch: it takes **kwargs and passes over `num_items_in_batch`.
        self.model_accepts_loss_kwargs = False
        self._share: Any = 1.0  # of the part at hand in its batch
        self._clipper: Any = None
        self._last_norm: torch.Tensor | None = None  # of the gradient, or the first not finite; on the device
        self._good_steps = torch.zeros(())  # before that one
        self._unread: collections.deque[Unread] = collections.deque()  # whose numbers are on their way from the card
        self._replays = False  # evaluation replays graphs
        self._saved_step: int | None = None  # of the newest checkpoint of this process
        self._tr_loss = torch.zeros((), device=training.device)
        self._step_at_hand: int | None = None
        self._loss_before_step = torch.zeros(())

    def rehearse(self) -> None:
        """Make what a training makes first, and drop it: what cannot be made is known before anything is written."""
        if not len(self.get_train_dataloader()):
            examples = len(cast(Features, self.train_dataset))
            raise BadRequest(
                f"--dataloader_drop_last: {examples} examples are less than a batch: nothing is trained on"
            )
        self.create_optimizer_and_scheduler(num_training_steps=2)
        self.optimizer = self.lr_scheduler = None
        if self.args.torch_compile:
            torch.compile(nn.Identity(), mode=self.args.torch_compile_mode)

    # ---- batches

    def _lengths(self, dataset: Features) -> np.ndarray:
        """What examples cost: with --pad_to_max_length all the same."""
        return dataset.lengths if self.by_length else np.zeros(len(dataset), np.int64)

    @override
    def _get_train_sampler(self, train_dataset: Any = None) -> LengthBatches:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        ranks = self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        batch_size = self.args.train_batch_size * ranks
        self._train_order = LengthBatches(
            self._lengths(dataset), batch_size, seed, ranks, fill=self.device.fixed_shapes
        )
        return self._train_order

    @override
    def get_train_dataloader(self) -> DataLoader:
        whole, self.data_collator = self.data_collator, self._training_collator
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = whole

    @override
    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        """--dataloader_drop_last is about training: an evaluation counts every example."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            return super()._get_dataloader(*args, **kwargs | {"is_training": is_training})
        finally:
            self.args.dataloader_drop_last = drop_last

    @override
    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Amid an epoch that several ranks resume, the sampler is too deep in wrappers for the epoch to reach it.

        A run that is resumed at its last step, amid an epoch, would take one step more.
        """
        if self.state.global_step >= self.state.max_steps:
            return
        self._train_order.set_epoch(kwargs["epoch"])
        self._evaluate_what_was_cut_short(kwargs["trial"], kwargs["ignore_keys_for_eval"])
        return super()._run_epoch(*args, **kwargs)

    def _evaluation_order(self, dataset: Any) -> np.ndarray:
        """Longest first: the batch that needs most memory comes when a failure costs least."""
        return np.argsort(-self._lengths(dataset), kind="stable")

    @override
    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        order = self._evaluation_order(eval_dataset)
        # On hpu the last batch is completed; its copies count a little in the loss, and nowhere else.
        missing = -len(order) % (self.args.eval_batch_size * self.args.world_size) if self.device.fixed_shapes else 0
        return np.concatenate([order, np.resize(order[::-1], missing)]).tolist()

    @override
    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Metrics and predictions come in the order of the data set, whatever the order of evaluation."""
        if self.device.gathers_graphs and self.flags.use_hpu_graphs_for_inference:
            self._replay_graphs()
        back = np.argsort(self._evaluation_order(dataloader.dataset))
        compute_metrics = self.compute_metrics
        if compute_metrics is not None:
            self.compute_metrics = lambda found: compute_metrics(
                EvalPrediction(_reorder(found.predictions, back), _reorder(found.label_ids, back))
            )
        try:
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self.compute_metrics = compute_metrics
        predictions, label_ids = _reorder(output.predictions, back), _reorder(output.label_ids, back)
        return output._replace(predictions=predictions, label_ids=label_ids)

    # ---- loss

    @override
    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Forward and backward of a batch, part by part; returns the batch's mean loss."""
        if self._step_at_hand != self.state.global_step:
            self._step_at_hand, self._loss_before_step = self.state.global_step, self._tr_loss.clone()
        parts: list[dict[str, torch.Tensor]] = inputs["parts"]
        loss: Any = 0.0
        weights = [self.task.weight(part) for part in parts]
        with self._weights_cast_once():
            for number, part in enumerate(parts, 1):
                self._share = weights[number - 1] / sum(weights)
                # The gradients are exchanged once, after the last part.
                with contextlib.nullcontext() if number == len(parts) else self.accelerator.no_sync(model):
                    loss += super().training_step(model, part, num_items_in_batch)
                self.device.mark_step()
        self._share = 1.0
        return loss

    def _weights_cast_once(self) -> contextlib.AbstractContextManager:
        """A context that the autocast of every part lies in: what torch has cast is kept until the outermost ends."""
        in_parts = self.device.uses_host_memory
        return torch.autocast(self.device.type, enabled=False) if in_parts else contextlib.nullcontext()

    @override
    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return sum(super(FineTuningTrainer, self).floating_point_ops(part) for part in inputs["parts"])

    @override
    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The task's loss, times the share of the part at hand in its batch."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = self.task.loss(loss, outputs, inputs) * self._share
        return (loss, outputs) if return_outputs else loss

    # ---- Gaudi

    @override
    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        accelerator_args = super()._build_accelerator_args(**kwargs)
        (ddp,) = accelerator_args["kwargs_handlers"]
        # DDP sorts its buckets anew after the first step of a process, unless parameters may be unused. A ring of three
        # ranks or more adds an element up in an order that goes by its place: a resumed run would differ in last bits.
        args = self.args
        how = args.gradient_checkpointing_kwargs
        reentrant = args.gradient_checkpointing and isinstance(how, dict) and how.get("use_reentrant")
        by_ring = self.device.backend == "gloo" and args.world_size > 2
        keeps_order = by_ring and not reentrant  # which DDP could not follow
        unused = ddp.find_unused_parameters or keeps_order
        ddp = replace(ddp, gradient_as_bucket_view=True, find_unused_parameters=unused)
        accelerator_args["kwargs_handlers"] = [ddp]
        accelerator_args["dynamo_plugin"].dynamic = False  # else the second shape makes sizes unknown
        if self.device.fixed_shapes:
            # Without pinned memory: the card's own software stages what it is given. (transformers would warn of it.)
            accelerator_args["dataloader_config"].non_blocking = True
        return accelerator_args

    @override
    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Its state_dict is on the host, so that a checkpoint written on a card loads anywhere."""
        optimizer = super().create_optimizer(model)
        if self.device.fixed_shapes:
            optimizer.register_state_dict_post_hook(_on_host)
        return optimizer

    @override
    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple:
        outputs = super().prediction_step(*args, **kwargs)
        self.device.mark_step()
        return outputs

    def _replay_graphs(self) -> None:
        """Evaluate by graphs from here on. Amid a training not: a forward pass that is replayed has no gradients."""
        if not (self.is_in_train or self._replays):
            self._replays = True
            hpu.wrap_in_graphs(cast(nn.Module, self.model))

    @override
    def _clip_grad_norm(self, model: nn.Module) -> Any:
        clip_norm = self.device.fused_clip_norm() if self.flags.use_fused_clip_norm else None
        if clip_norm is None:
            return super()._clip_grad_norm(model)
        if self._clipper is None:
            self._clipper = clip_norm(model.parameters(), self.args.max_grad_norm)
        return self._clipper.clip_norm(model.parameters())

    # ---- checkpoints

    @override
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        try:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise unreadable(Path(resume_from_checkpoint), error) from error

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Read by a reader of ours, which takes the files of every mode, Habana's lazy one included."""
        if checkpoint is None:
            return
        parts: tuple[tuple[str, Any], ...] = ((OPTIMIZER_NAME, self.optimizer), (SCHEDULER_NAME, self.lr_scheduler))
        for name, part in parts:
            try:
                saved = tensor_files.load(Path(checkpoint) / name)
                if name == OPTIMIZER_NAME:
                    check_moments(saved, part)
                part.load_state_dict(saved)
            except Exception as error:  # pickle and torch raise many kinds for a file cut short or of another form
                raise unreadable(Path(checkpoint) / name, error) from error

    @override
    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing of a training depends on stored random states: `ReseedDropout` seeds every step."""

    @override
    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """All ranks call it together. A stop amid a step may find the last one saved, or none to save."""
        step, amid_step = self.state.global_step, self._stopping.amid_step
        if not (amid_step and step in (0, self._initial_global_step, self._saved_step)):
            self.watchdog.mark(BUSY)
            loss = self._loss_before_step if amid_step else self._tr_loss
            unlogged = nested_gather(loss, self.args.parallel_mode).mean().item()
            self.record.loss = self.record.loss_before + self._total_loss_scalar + unlogged
            self.record.checksums = {}
            super()._save_checkpoint(model, trial)
            self._saved_step = step
            self._stopping.stop.kept = f"checkpoint-{step}"
        self.watchdog.mark(f"step {step}, saved")

    @override
    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        try:
            return super().train(*args, **kwargs)
        finally:  # an error says itself what ended the training, however long it takes from here
            self.watchdog.mark(BUSY)

    @override
    def end(self) -> None:
        """The run is over."""
        self.watchdog.close()
        super().end()

    @override
    def _save_rng_state(self, output_dir: str) -> None:
        """`trainer_state.json`, which rank 0 writes next, means that the state of every rank is there, and tells what
        the files before it hold."""
        super()._save_rng_state(output_dir)
        self._stopping.meet()
        if self.args.should_save:
            files = [path for path in Path(output_dir).iterdir() if path.suffix in WEIGHTS_AND_MOMENTS]
            self.record.checksums = {path.name: checksum(path) for path in files}

    @override
    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The arguments are stored beside the model, which people publish: without the token of the Hub.

        The weights get the mode of the other files: safetensors leaves them to their owner alone.
        """
        if not self.args.should_save:  # the rank that does may be at it
            return
        if self.device.fixed_shapes and state_dict is None:
            state_dict = weights_on_host(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))
        token, self.args.hub_token = self.args.hub_token, None
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token
        folder = Path(output_dir or str(self.args.output_dir))
        for weights in folder.glob("*.safetensors"):
            weights.chmod((folder / "training_args.bin").stat().st_mode)

    @override
    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        """Whether the run that is resumed was stopped amid an evaluation stands in its state: it was still wanted."""
        begin = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        self.record.take_up(self.state)
        callbacks = cast(dict, self.state.stateful_callbacks)
        control = callbacks.get("TrainerControl", {}).get("args", {})
        is_owed = control.get("should_evaluate") and self.args.eval_strategy != "no"
        self._cut_short_at = resume_from_checkpoint if is_owed else None
        return begin

    def _evaluate_what_was_cut_short(self, trial: Any, ignore_keys: list[str] | None = None) -> None:
        """So that the best checkpoint of a resumed run is that of a run without interruption."""
        checkpoint, self._cut_short_at = self._cut_short_at, None
        if checkpoint and self._determine_best_metric(metrics=self._evaluate(trial, ignore_keys), trial=trial):
            self.state.best_model_checkpoint = checkpoint

    @override
    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> TrainOutput:
        """Loss and time are those of the whole run, not of what was left of it for this process."""
        self._log_what_is_there(wait=True)
        self._evaluate_what_was_cut_short(trial)
        self._total_loss_scalar += self.record.loss_before
        self._initial_global_step = 0
        return super()._finalize_training(trial, num_train_samples, start_time - self.record.seconds_before)

    # ---- divergence

    @override
    def _get_grad_norm(self, model: nn.Module, grad_norm: float | None = None) -> Any:
        """The norm is the same on all ranks, and not finite when any loss or gradient was not."""
        norm = super()._get_grad_norm(model, grad_norm)
        last = torch.as_tensor(norm).detach().reshape(()).float()
        if self._last_norm is None:
            self._last_norm, self._good_steps = last, torch.zeros_like(last)
        else:
            self._last_norm = torch.where(torch.isfinite(self._last_norm), last, self._last_norm)
        self._good_steps += torch.isfinite(self._last_norm)
        if self.device.checks_every_step:
            self._refuse_divergence()
        return norm

    @override
    def _maybe_log_save_evaluate(
        self,
        tr_loss: torch.Tensor,
        grad_norm: Any,
        model: nn.Module,
        trial: Any,
        epoch: float,
        ignore_keys_for_eval: list[str] | None,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        control = self.control
        if self.device.fixed_shapes:
            if control.should_log and self.state.global_step > self._globalstep_last_logged:
                self._note(tr_loss, grad_norm, start_time, learning_rate)
            control.should_log = False
            self._log_what_is_there(wait=control.should_save or control.should_evaluate)
        if control.should_log or control.should_save or control.should_evaluate:
            self._refuse_divergence()  # the host waits for the device here anyway
        try:
            super()._maybe_log_save_evaluate(
                tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate
            )
        except Preempted:  # amid an evaluation
            self._stopping.stopped = self.control.should_training_stop = True
            self._save_checkpoint(model, trial)

    def _note(self, tr_loss: torch.Tensor, grad_norm: Any, start_time: float, learning_rate: float | None) -> None:
        """Let the numbers of a log come to the host while the training goes on."""
        loss = nested_gather(tr_loss, self.args.parallel_mode).mean()
        norm = torch.as_tensor(grad_norm, device=loss.device)
        numbers = [loss, norm, self._last_norm, self._good_steps]
        reading = hpu.Reading(torch.stack([number.detach().reshape(()).float() for number in numbers]))
        step, since = self.state.global_step, self._globalstep_last_logged
        rate = self._get_learning_rate() if learning_rate is None else learning_rate
        self._unread.append(Unread(reading, step, self.state.epoch, step - since, rate, start_time))
        tr_loss -= tr_loss
        self._globalstep_last_logged = step  # the operations so far are added up over ranks at saves, which waits

    def _log_what_is_there(self, wait: bool) -> None:
        """Log under the step that numbers belong to; `wait`: until all are there."""
        while self._unread and (wait or self._unread[0].reading.is_there()):
            unread = self._unread.popleft()
            loss, norm, last_norm, good_steps = unread.reading.values()
            self._refuse_norm(last_norm, good_steps)
            self._total_loss_scalar += loss
            logs = {"loss": loss / unread.steps, "grad_norm": norm, "learning_rate": unread.learning_rate}
            here = self.state.global_step, self.state.epoch
            self.state.global_step, self.state.epoch = unread.step, unread.epoch
            try:
                self.log(logs, unread.start_time)
            finally:
                self.state.global_step, self.state.epoch = here

    def _refuse_divergence(self) -> None:
        """Raises Diverged before a non-finite update reaches a checkpoint."""
        if self._last_norm is not None and not math.isfinite(norm := self._last_norm.item()):
            self._refuse_norm(norm, self._good_steps.item())

    def _refuse_norm(self, norm: float, good_steps: float) -> None:
        if not math.isfinite(norm):
            step = self._initial_global_step + int(good_steps) + 1
            raise Diverged(
                f"step {step}: the gradient norm is {norm}: training has diverged. Nothing was saved after it; try a "
                "lower --learning_rate, a longer --warmup_steps, or fp32"
            )


@dataclass(frozen=True)
class Unread:
    """A log whose loss, gradient norm, last norm and good steps are on their way from the card."""

    reading: hpu.Reading
    step: int
    epoch: float
    steps: int  # that the loss is a sum over
    learning_rate: float
    start_time: float


class StopBetweenSteps(TrainerCallback):
    """After SIGTERM or SIGUSR1 on any rank: save the last optimizer step, then exit 85. Tells the watchdog of progress.

    Ranks agree between the micro-steps of a step, too, which may take minutes: what they have of it is dropped.
    """

    def __init__(self, stop: StopRequest, watchdog: Watchdog):
        self.stop = stop
        self.watchdog = watchdog
        self.stopped = False
        self.amid_step = False
        self._group: dist.ProcessGroup | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._mark(state, "begun")

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._mark(state, "micro-step done")
        if self._agreed():
            self.amid_step = self.stopped = control.should_training_stop = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.watchdog.step()
        self._mark(state, "waiting for all ranks")
        if not float(state.epoch).is_integer():  # else the end of the epoch comes next
            self._stop_training(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stopped:  # amid the epoch: nothing of its end is due
            control.should_evaluate = False
            control.should_save = self.amid_step
        else:
            self._stop_training(state, control)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.watchdog.mark(BUSY)

    def on_predict(  # type: ignore[override]  # the metrics are among the keywords
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.watchdog.mark(BUSY)

    def _mark(self, state: TrainerState, what: str) -> None:
        self.watchdog.mark(f"step {state.global_step + 1}, {what}")

    def _stop_training(self, state: TrainerState, control: TrainerControl) -> None:
        if state.global_step < state.max_steps and self._agreed():
            self.stopped = control.should_save = control.should_training_stop = True

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """An evaluation amid a training is made up for by the run that resumes it."""
        self.watchdog.mark("evaluation")
        if self._agreed():
            raise Preempted("stopped during evaluation; the checkpoints of the training before it are complete")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.watchdog.mark(BUSY)
        if self.stopped:
            self.meet()
            where = "saved: continue with --resume_from_checkpoint" if state.global_step else "nothing to save yet"
            raise Preempted(f"stopped after step {state.global_step}, {where}")

    def meet(self) -> None:
        """Wait for all ranks; their devices go on."""
        if dist.is_initialized():
            dist.barrier(group=self._hosts())

    def _agreed(self) -> bool:
        """Whether any rank was asked to stop: a host-side exchange that never touches the device."""
        if not dist.is_initialized():
            return self.stop.requested
        asked = torch.tensor(int(self.stop.requested))
        dist.all_reduce(asked, dist.ReduceOp.MAX, group=self._hosts())
        return bool(asked)

    def _hosts(self) -> dist.ProcessGroup:
        """The ranks' group on their hosts, made at its first use, which is the same step of all ranks."""
        if self._group is None:
            self._group = dist.new_group(backend="gloo")
        return self._group


class MarkSteps(TrainerCallback):
    """On hpu the optimizer step and the zeroing of gradients are one graph of their own."""

    def __init__(self, device: Device):
        self.device = device

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.device.mark_step()


class ReseedDropout(TrainerCallback):
    """The masks of a step are a function of (seed, step, rank), so that a resumed run repeats them.

    `bits` are those of a cpu's own dropout, None where torch draws the masks.
    """

    def __init__(self, bits: DropoutBits | None):
        self.bits = bits

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        integers = (args.seed, state.global_step, args.process_index)
        torch.manual_seed(fold(integers))
        if self.bits is not None:
            self.bits.reseed(*integers)


def weights_on_host(model: nn.Module) -> dict[str, torch.Tensor]:
    """A model's state_dict on the host; what was one tensor under two names is one there, too.

    A lazy card may name a stale address for a tensor, by which `save_pretrained` would tell which are one.
    """
    copies: dict[int, torch.Tensor] = {}
    return {
        name: copies.setdefault(id(tensor), tensor.detach().cpu())
        for name, tensor in model.state_dict(keep_vars=True).items()
    }


def _on_host(optimizer: torch.optim.Optimizer, state_dict: dict) -> dict:
    """The same state with its tensors on the host."""
    moments = {
        number: {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in values.items()}
        for number, values in state_dict["state"].items()
    }
    return {**state_dict, "state": moments}


def _reorder(arrays: Any, order: np.ndarray) -> Any:
    """Rows of one array, or of each of several, in another order; None stays None."""
    if isinstance(arrays, tuple | list):
        return type(arrays)(_reorder(array, order) for array in arrays)
    return None if arrays is None else arrays[order]
