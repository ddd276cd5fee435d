"""A step of LAMB over the parameters of BERT base against torch's fused AdamW, interleaved.

python benchmarks/pretraining_lamb.py
"""

import argparse
import statistics

import torch
from pretraining_common import config_of, interleaved, machine, spread

from pretraining.lamb import Lamb, global_norm
from pretraining.modeling import BertForPreTraining, decays, initialise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    model = BertForPreTraining(config_of(args.size), kernels=None)
    initialise(model, 1)
    named = list(model.named_parameters())
    copies = [torch.nn.Parameter(p.detach().clone()) for _, p in named]
    generator = torch.Generator().manual_seed(0)
    for (_, p), copy in zip(named, copies):
        p.grad = torch.randn(p.shape, generator=generator) * 1e-3
        copy.grad = p.grad.clone()
    groups = [[p for n, p in named if decays(n)], [p for n, p in named if not decays(n)]]
    lamb = Lamb([{"params": groups[0]}, {"params": groups[1], "weight_decay": 0.0}], lr=1e-4)
    adamw = torch.optim.AdamW(copies, lr=1e-4, fused=True)
    norm = global_norm([p.grad for _, p in named])
    functions = {
        "LAMB": lambda: lamb.step(norm),
        "fused AdamW": adamw.step,
        "global norm": lambda: global_norm([p.grad for p in copies]),
    }
    interleaved(functions, 2)  # warm-up
    times = interleaved(functions, args.repeats)
    print(machine())
    print(f"{sum(p.numel() for _, p in named) / 1e6:.1f} M parameters in {len(named)} tensors")
    for name, values in times.items():
        print(f"{name}: {spread(values)}")
    ratio = statistics.median(times["LAMB"]) / statistics.median(times["fused AdamW"])
    print(f"LAMB takes {ratio:.2f} times fused AdamW")


if __name__ == "__main__":
    main()
