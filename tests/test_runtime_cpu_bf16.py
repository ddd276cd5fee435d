"""bf16 products on a CPU without bf16 instructions: the same numbers as with them, computed in fp32."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from central.runtime import cpu_bf16

ROOT = Path(__file__).resolve().parents[1]
BF16 = torch.bfloat16


@pytest.fixture
def replaced():
    library = cpu_bf16.replace_products()
    yield
    library._destroy()


def rounded(x: torch.Tensor) -> torch.Tensor:
    return x.to(BF16).double()


def close(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Within one rounding to bf16 of the exact product."""
    assert found.dtype == BF16
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-3)


def test_products_are_those_of_rounded_operands(replaced):
    torch.manual_seed(0)
    a, b, bias = torch.randn(37, 65), torch.randn(65, 29), torch.randn(29)
    many, others = torch.randn(3, 7, 65), torch.randn(3, 65, 5)
    low = [x.to(BF16) for x in (a, b, bias, many, others)]
    close(low[0] @ low[1], rounded(a) @ rounded(b))
    close(torch.mm(low[0], low[1], out=torch.empty(37, 29, dtype=BF16)), rounded(a) @ rounded(b))
    close(torch.addmm(low[2], low[0], low[1], beta=0.5, alpha=2), 0.5 * rounded(bias) + 2 * rounded(a) @ rounded(b))
    close(low[3] @ low[4], rounded(many) @ rounded(others))
    close(F.linear(low[3], low[1].t(), low[2]), rounded(many) @ rounded(b) + rounded(bias))
    close(torch.baddbmm(low[4][:1, :7], low[3], low[4]), rounded(others)[:1, :7] + rounded(many) @ rounded(others))
    assert torch.equal(a @ b, torch.mm(a, b))  # fp32 stays what it was
    torch.testing.assert_close((a @ b).double(), a.double() @ b.double(), rtol=1e-4, atol=1e-4)


def test_nothing_of_a_product_is_added_up_in_bf16(replaced):
    ones = torch.ones(1, 4096, dtype=BF16)  # a sum kept in bf16 stops at 256
    assert (ones @ ones.t()).item() == 4096


def test_autocast_and_gradients_go_the_same_way(replaced):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(33, 17), torch.randn(5, 33)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    close(out.detach(), rounded(x) @ rounded(layer.weight).t() + rounded(layer.bias))
    out.backward(torch.ones_like(out))
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(layer.weight.grad.double(), rounded(x).sum(0).expand(17, 33), rtol=2**-7, atol=1e-2)


def test_losses_and_gradients_of_a_bert_differ_from_torchs_bf16_by_rounding_only():
    """Against torch's own bf16, with dropout, whose masks are the same."""
    from transformers import BertConfig, BertForSequenceClassification

    from central.finetuning.attention_cpu import replace_attention

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=100, **sizes)).train()
    bits, ids, labels = replace_attention(model), torch.randint(0, 100, (16, 32)), torch.randint(0, 2, (16,))

    def loss_and_gradient(dtype):
        bits.reseed(1)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == BF16):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])

    loss, gradient = loss_and_gradient(BF16)
    library = cpu_bf16.replace_products()
    try:
        ours, our_gradient = loss_and_gradient(BF16)
    finally:
        library._destroy()
    exact_loss, _ = loss_and_gradient(torch.float32)
    assert ours == pytest.approx(loss, rel=5e-3) and ours != exact_loss
    assert torch.nn.functional.cosine_similarity(gradient, our_gradient, dim=0) > 0.999


PROGRAM = """
import json, sys, torch
sys.path.insert(0, {root!r})
from central.runtime import cpu_bf16
from central.runtime.device import open_device
from central.runtime.rank import Rank
device = open_device("cpu", "eager", "bf16", Rank())
replaced = cpu_bf16.use_fp32_arithmetic() is not None  # what open_device did
print(json.dumps([device.remarks(), device.tile, replaced, device.matrix_peak()]))
"""


@pytest.mark.parametrize(("limit", "emulated"), [("AVX2", True), ("AVX512_CORE", True), ("ALL", None)])
def test_a_cpu_without_the_instructions_is_recognised_and_said_in_one_line(limit, emulated):
    """AVX-512 alone has none either: oneDNN takes twice as long as in fp32 there and calls it supported."""
    program = PROGRAM.format(root=str(ROOT))
    environ = {**os.environ, "ONEDNN_MAX_CPU_ISA": limit, "OMP_NUM_THREADS": "1"}
    answer = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True)
    assert answer.returncode == 0 and not answer.stderr, answer.stderr
    remarks, tile, replaced, peak = json.loads(answer.stdout.splitlines()[-1])
    if emulated is None:
        emulated = not cpu_bf16.has_instructions()
    assert remarks == ([cpu_bf16.REMARK] if emulated else [])
    assert tile == (1 if emulated else 64)  # no kernels of oneDNN to compile
    assert replaced == emulated
    assert peak > 0
