"""What the pre-training benchmarks share: rows, the two sides of a comparison, interleaved timing, the machine."""

import dataclasses
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from central.launch.machine import processor
from central.runtime.device import Device, open_device
from central.runtime.rank import Rank
from pretraining.batches import Rows, flat_micro_batches
from pretraining.dataset import Limits, ShardReader, open_shards
from pretraining.kernels.choice import open_kernels
from pretraining.kernels.cpu import CpuKernels
from pretraining.lamb import Lamb, global_norm
from pretraining.modeling import BertConfig, BertForPreTraining, decays, initialise


def config_of(size: str, **changes) -> BertConfig:
    name = {"large": "bert_config.json"}.get(size, f"bert_{size}_config.json")
    return dataclasses.replace(BertConfig.from_json(ROOT / "pretraining" / name), **changes)


def load_rows(input_dir: str | None, count: int, config: BertConfig, seq_len: int, masked: int) -> Rows:
    """The first rows, in training order, of a folder of shards; without one, random tokens in rows filled to 90 %."""
    if input_dir:
        limits = Limits(config.vocab_size, seq_len, config.max_position_embeddings, masked)
        return ShardReader(open_shards(Path(input_dir), "training", limits), 42, limits).read(0, count)
    rng = np.random.default_rng(0)
    lengths = np.where(rng.random(count) < 0.8, seq_len, rng.integers(seq_len // 4, seq_len + 1, count))
    columns = np.arange(seq_len)
    real = columns < lengths[:, None]
    ids = np.where(real, rng.integers(1000, config.vocab_size, (count, seq_len)), 0).astype(np.int32)
    positions = np.zeros((count, masked), np.int32)
    for row, length in enumerate(lengths):
        chosen = rng.permutation(np.arange(1, length))[: min(masked, round(0.15 * length))]
        positions[row, : len(chosen)] = np.sort(chosen)
    return Rows(
        ids,
        real.astype(np.int8),
        ((columns >= lengths[:, None] // 2) & real).astype(np.int8),
        np.broadcast_to(columns.astype(np.int32), ids.shape),
        positions,
        np.where(positions > 0, rng.integers(1000, config.vocab_size, positions.shape), 0).astype(np.int32),
        np.zeros((count, 1), np.int32),
        rng.integers(0, 2, (count, 1)),
        np.ones((count, 1), np.int8),
    )


class Side:
    """One side of a comparison: a model and its loop over the optimizer steps cut from `rows`, each step's rows new.

    The optimizer is the engine's LAMB on both sides: the comparison is of the network and of the loop.
    """

    name: str

    def __init__(self, rows: Rows, micro_batch_size: int, micro_steps: int, device: Device):
        self.device = device
        size = micro_batch_size * micro_steps
        cut = [rows.take(slice(first, first + size)) for first in range(0, len(rows), size)]
        self.steps = [(step, self.micro_batches(step, micro_batch_size)) for step in cut]
        self.done = 0

    def micro_batches(self, rows: Rows, size: int) -> list:
        raise NotImplementedError

    def forward_backward(self, rows: Rows, micro_batches: list) -> torch.Tensor:
        """Gradients of one step; its loss, still on the device."""
        raise NotImplementedError

    def warm_up(self) -> None:
        """One micro-batch and an update, so that moments and gradients have their memory."""
        rows, micro_batches = self.steps[0]
        self.forward_backward(rows, micro_batches[:1])
        self.update()

    def step(self) -> float:
        loss = self.forward_backward(*self.steps[self.done % len(self.steps)]).item()
        self.update()
        self.device.synchronize()
        self.done += 1
        return loss

    def update(self) -> None:
        self.optimizer.step(global_norm([p.grad for p in self.model.parameters()]))
        self.optimizer.zero_grad()


class Ours(Side):
    """The engine's own model and kernels: no padding, head on masked positions."""

    name = "ours"

    def __init__(self, config: BertConfig, rows: Rows, micro_batch_size: int, micro_steps: int, device: Device):
        super().__init__(rows, micro_batch_size, micro_steps, device)
        self.kernels = open_kernels(device)
        self.model = BertForPreTraining(config, self.kernels)
        initialise(self.model, 1)
        self.model.to(device.device)
        named = list(self.model.named_parameters())
        groups = [[p for n, p in named if decays(n)], [p for n, p in named if not decays(n)]]
        self.optimizer = Lamb([{"params": groups[0]}, {"params": groups[1], "weight_decay": 0.0}], lr=1e-4)

    def micro_batches(self, rows: Rows, size: int) -> list:
        batches = flat_micro_batches(rows, size, self.device.tile)
        return [batch.pinned() if self.device.pins_batches else batch for batch in batches]

    def forward_backward(self, rows: Rows, micro_batches: list) -> torch.Tensor:
        self.kernels.reseed(42, self.done, 0)
        loss = 0.0
        for batch in micro_batches:
            sums = self.model(batch.to(self.device.device))
            part = sums[0] / rows.num_masked + sums[1] / rows.num_sequences
            part.backward()
            loss += part.detach()
        return loss


class HuggingFace(Side):
    """transformers' BertForPreTraining in the usual loop: padded batches, head over every position."""

    name = "Hugging Face"

    def __init__(
        self,
        config: BertConfig,
        rows: Rows,
        micro_batch_size: int,
        micro_steps: int,
        device: Device,
        attention: str = "sdpa",
    ):
        import transformers

        super().__init__(rows, micro_batch_size, micro_steps, device)
        transformers.logging.set_verbosity_error()
        settings = transformers.BertConfig(**config.to_hugging_face(), attn_implementation=attention)
        self.model = transformers.BertForPreTraining(settings)
        own = BertForPreTraining(config, CpuKernels())
        initialise(own, 1)
        weights = {
            n: p[: config.vocab_size] if len(p) == config.padded_vocab_size else p for n, p in own.named_parameters()
        }
        self.model.load_state_dict(weights, strict=False)
        self.model.tie_weights()
        self.model.train().to(device.device)
        self.optimizer = Lamb(self.model.parameters(), lr=1e-4)

    def micro_batches(self, rows: Rows, size: int) -> list:
        labels = np.full(rows.input_ids.shape, -100)
        row, column = np.nonzero(rows.masked_positions)
        labels[row, rows.masked_positions[row, column]] = rows.masked_ids[row, column]
        columns = {
            "input_ids": rows.input_ids,
            "attention_mask": rows.sequence_ids,
            "token_type_ids": rows.segment_ids,
            "labels": labels,
            "next_sentence_label": rows.next_sentence_labels,
        }
        tensors = {name: torch.from_numpy(np.array(values, np.int64)) for name, values in columns.items()}
        if self.device.type == "cuda":
            tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
        return [
            {name: tensor[first : first + size] for name, tensor in tensors.items()}
            for first in range(0, len(rows), size)
        ]

    def forward_backward(self, rows: Rows, micro_batches: list) -> torch.Tensor:
        loss = 0.0
        for batch in micro_batches:
            part = self.loss_of(batch) / len(micro_batches)
            part.backward()
            loss += part.detach()
        return loss

    def loss_of(self, batch: dict) -> torch.Tensor:
        moved = {name: tensor.to(self.device.device, non_blocking=True) for name, tensor in batch.items()}
        with self.device.autocast():
            return self.model(**moved).loss


def losses_without_dropout(config: BertConfig, rows: Rows, device: Device) -> tuple[float, float]:
    """The loss of the same rows and weights on both sides, dropout off."""
    off = dataclasses.replace(config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    # One micro-batch: the usual loop takes the mean of micro-batch means, which is another number.
    ours, peer = (side(off, rows, len(rows), 1, device) for side in (Ours, HuggingFace))
    with torch.no_grad():
        sums = ours.model(ours.steps[0][1][0].to(device.device))
        loss = float(sums[0] / rows.num_masked + sums[1] / rows.num_sequences)
        return loss, float(peer.loss_of(peer.steps[0][1][0]))


def interleaved(functions: dict, repeats: int) -> dict[str, list[float]]:
    """Wall times (s) of each function, taken in turn."""
    times = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return times


def spread(times: list[float]) -> str:
    return f"median {statistics.median(times):.3g} s, {min(times):.3g} to {max(times):.3g}"


def opened(device: str, data_type: str) -> Device:
    """The device with what the engine sets up for it, for both sides."""
    return open_device(device, "eager", data_type, Rank())


def machine() -> str:
    model = processor()
    load = Path("/proc/loadavg").read_text().split()[0]
    threads, day = torch.get_num_threads(), time.strftime("%Y-%m-%d")
    if torch.cuda.is_available():
        model += f", {torch.cuda.get_device_name()}"
    return f"{model}, {threads} threads, torch {torch.__version__}, load {load}, {day}"
