"""The rival of race.py: Hugging Face's BertForPreTraining in the usual loop, one process on a CPU.

    python benchmarks/race_peer.py --config_file CONFIG --input_dir SHARDS --output_dir OUT --max_steps 300

Usual are the Dataset and DataLoader that shuffle and stack row by row, attention by torch's sdpa, the head over every
position, torch's fused AdamW with a linear warm-up and decay, and gradients clipped at 1. No torch.compile.
In its favour: batches are cut to their longest row, micro-batches may be as small as is fastest, freed memory is kept
as our engine keeps it, rows are all in memory, a loss is read where it is printed only, checkpoints hold weights alone.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np
import torch
import transformers
from torch.utils.data import DataLoader, Dataset

from central.runtime.device import open_device
from central.runtime.rank import Rank

COLUMNS = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions", "masked_lm_ids", "next_sentence_labels")
IGNORED = -100  # a label that is no masked word
NOT_DECAYED = ("bias", "LayerNorm.weight")


class Rows(Dataset):
    """The rows of all training shards of a folder, as the model takes them."""

    def __init__(self, folder: Path):
        shards = [h5py.File(path) for path in sorted(folder.glob("*_training_*.hdf5"))]
        self.columns = [np.concatenate([shard[name][:] for shard in shards]) for name in COLUMNS]

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids, mask, segments, positions, masked_ids, following = (column[index] for column in self.columns)
        labels = np.full(len(ids), IGNORED)
        used = positions != 0
        labels[positions[used]] = masked_ids[used]
        row = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments, "labels": labels}
        row["next_sentence_label"] = following
        return {name: torch.from_numpy(np.asarray(values, np.int64)) for name, values in row.items()}


def micro_batches(loader: DataLoader) -> Iterator[dict[str, torch.Tensor]]:
    """One epoch after another, each batch cut to its longest row."""
    while True:
        for batch in loader:
            longest = int(batch["attention_mask"].sum(1).max())
            yield {name: values[:, :longest] if values.dim() == 2 else values for name, values in batch.items()}


def open_model(config_file: Path) -> transformers.BertForPreTraining:
    """With fresh weights."""
    config = transformers.BertConfig.from_json_file(config_file)
    config._attn_implementation = "sdpa"
    return transformers.BertForPreTraining(config).train()


def open_optimizer(model: torch.nn.Module, lr: float) -> torch.optim.AdamW:
    """Weight decay for matrices only."""
    named = list(model.named_parameters())
    groups = [
        {"params": [p for name, p in named if not name.endswith(NOT_DECAYED)], "weight_decay": 0.01},
        {"params": [p for name, p in named if name.endswith(NOT_DECAYED)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_file", type=Path, required=True)
    parser.add_argument("--input_dir", type=Path, required=True, help="folder of training shards")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder of ckpt_<step> folders")
    parser.add_argument("--train_batch_size", type=int, default=64, help="rows of an optimizer step")
    parser.add_argument("--gradient_accumulation_steps", type=int, default=1)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--warmup_proportion", type=float, default=0.1)
    parser.add_argument("--max_steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--bf16", action="store_true", help="autocast")
    parser.add_argument("--log_freq", type=int, default=10, help="steps")
    parser.add_argument("--num_steps_per_checkpoint", type=int, default=100)
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(args.seed)
    device = open_device("cpu", "eager", "bf16" if args.bf16 else "fp32", Rank())
    model = open_model(args.config_file)
    optimizer = open_optimizer(model, args.learning_rate)
    schedule = transformers.get_linear_schedule_with_warmup(
        optimizer, round(args.warmup_proportion * args.max_steps), args.max_steps
    )
    micro_steps = args.gradient_accumulation_steps
    size = args.train_batch_size // micro_steps
    batches = micro_batches(DataLoader(Rows(args.input_dir), batch_size=size, shuffle=True, drop_last=True))
    for step in range(1, args.max_steps + 1):
        for _ in range(micro_steps):
            with device.autocast():
                loss = model(**next(batches)).loss / micro_steps
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        last = step == args.max_steps
        if last or step % args.log_freq == 0:
            print(f"step {step}/{args.max_steps}  loss {loss.item() * micro_steps:.4f}", flush=True)
        if last or step % args.num_steps_per_checkpoint == 0:
            model.save_pretrained(args.output_dir / f"ckpt_{step}")


if __name__ == "__main__":
    main()
