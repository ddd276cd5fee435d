"""The way of an NVIDIA card: nothing waits for it within a step, and on a real one the same numbers as on a CPU.

What needs a card is skipped where there is none; `python -m pytest -m cuda` runs it alone.
"""

import copy
import dataclasses
import functools

import pytest
import torch
from pretraining_helpers import make_columns
from test_pretraining_lamb import NoHostSync
from test_pretraining_modeling import SMALL, WITH_DROPOUT, assert_same_gradients, gradients, packed, rows_of, step_loss

from pretraining.batches import flat_micro_batch, static_micro_batch
from pretraining.kernels import cuda as kernels_cuda
from pretraining.kernels.cpu import CpuKernels
from pretraining.kernels.cuda import CudaKernels
from pretraining.kernels.plain import PlainKernels
from pretraining.lamb import Lamb, global_norm
from pretraining.modeling import BertForPreTraining, initialise

needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")


@pytest.fixture(scope="module")
def rows():
    """Several sequences in some rows, one in others."""
    return packed(rows_of(make_columns(8, 24, 4, seed=3)), [[0, 1, 2], [3], [4, 5], [6, 7]])


def make_model(kernels, config=SMALL):
    model = BertForPreTraining(config, kernels)
    initialise(model, 1)
    return model


@pytest.mark.parametrize("is_flash", [True, False])
def test_attention_of_flat_tokens_reads_no_length_from_the_device(rows, monkeypatch, is_flash):
    """The choice of kernel and the kernel itself are stood in for: a CPU has neither."""
    batch, seen = flat_micro_batch(rows), []

    def attention(q, k, v, starts_q, starts_k, max_q, max_k, p):
        seen.append((max_q, max_k, starts_q, starts_k, p))
        out = []
        for own in zip(*(x.split(batch.lengths) for x in (q, k, v))):  # each tokens x heads x size
            scores = torch.einsum("qhd,khd->hqk", *own[:2]) / q.shape[-1] ** 0.5
            out.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), own[2]))
        return torch.cat(out)

    def flash(*words):
        assert words[-2:] == (False, False)
        return attention(*words[:-2]), None, None, None, None

    def efficient(q, k, v, bias, *words):
        assert bias is None and words[-2:] == (0, True)
        return attention(q[0], k[0], v[0], *words[:-2]).unsqueeze(0), None, None, None, None, None

    monkeypatch.setattr(kernels_cuda, "takes_flash", lambda q: is_flash)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", flash)
    monkeypatch.setattr(torch.ops.aten, "_efficient_attention_forward", efficient)
    model, plain = make_model(CudaKernels()), make_model(CpuKernels())
    with NoHostSync():
        loss = step_loss(model(batch), rows)
        loss.backward()
    wanted = step_loss(plain(batch), rows)
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert_same_gradients(gradients(model), gradients(plain))
    longest = max(batch.lengths)
    assert len(seen) == SMALL.num_hidden_layers
    assert all(call[:2] == (longest, longest) and call[2].equal(batch.offsets) for call in seen)


@pytest.mark.parametrize(("training", "p"), [(True, 0.1), (False, 0.0)])
def test_attention_drops_in_training_only(rows, monkeypatch, training, p):
    seen = []
    monkeypatch.setattr(kernels_cuda, "takes_flash", lambda q: True)
    monkeypatch.setattr(torch.ops.aten, "_flash_attention_forward", lambda q, *words: (q, seen.append(words[6])))
    batch = flat_micro_batch(rows)
    CudaKernels().attention(torch.randn(len(batch.input_ids), 96), batch, 2, 0.1, training)
    assert seen == [p]


def test_heads_of_odd_sizes_go_the_plain_way(rows):
    config = dataclasses.replace(SMALL, hidden_size=24, num_attention_heads=2)
    model, plain, batch = make_model(CudaKernels(), config), make_model(CpuKernels(), config), flat_micro_batch(rows)
    for each in (model, plain):
        step_loss(each(batch), rows).backward()
    assert_same_gradients(gradients(model), gradients(plain))


@pytest.mark.parametrize(
    ("dtype", "built", "capability", "flash"),
    [
        (torch.bfloat16, True, (8, 0), True),
        (torch.float16, True, (9, 0), True),
        (torch.float32, True, (9, 0), False),
        (torch.bfloat16, False, (9, 0), False),
        (torch.bfloat16, True, (7, 5), False),
    ],
)
def test_flash_attention_is_for_16_bits_on_cards_since_ampere(monkeypatch, dtype, built, capability, flash):
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: built)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert kernels_cuda.takes_flash(torch.zeros(1, dtype=dtype)) is flash


def test_the_rest_of_a_step_reads_nothing_from_the_device(rows):
    """Forward, loss and backward of the static layout; LAMB's part is in test_pretraining_lamb.py."""
    model = make_model(PlainKernels(), WITH_DROPOUT)
    model.kernels.reseed(1, 2, 3)
    batch = static_micro_batch(rows)
    with NoHostSync():
        (model(batch)[:2] * torch.tensor([0.1, 0.1])).sum().backward()


@pytest.mark.cuda
@needs_card
@pytest.mark.parametrize("make", [flat_micro_batch, static_micro_batch])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_a_card_repeats_the_cpus_loss_and_gradients(rows, make, dtype, tolerance):
    autocast = functools.partial(torch.autocast, "cuda", dtype=dtype, enabled=dtype != torch.float32)
    kernels = CudaKernels if make is flat_micro_batch else PlainKernels
    model, plain = make_model(kernels(autocast)).cuda(), make_model(CpuKernels())
    loss = step_loss(model(make(rows).pinned().to(torch.device("cuda"))), rows)
    loss.backward()
    wanted = step_loss(plain(flat_micro_batch(rows)), rows)
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=tolerance)
    found = {name: gradient.cpu() for name, gradient in gradients(model).items()}
    assert_same_gradients(found, gradients(plain), tolerance)


@pytest.mark.cuda
@needs_card
def test_a_card_never_waits_within_a_step(rows):
    """CUDA itself is asked to fail at any wait: flash attention, dropout, LAMB and all."""
    autocast = functools.partial(torch.autocast, "cuda", dtype=torch.bfloat16)
    model = make_model(CudaKernels(autocast), WITH_DROPOUT).cuda()
    parameters = list(model.parameters())
    optimizer = Lamb(parameters, lr=0.01)
    batch = flat_micro_batch(rows).pinned()
    for strict in (False, True):  # the first step warms up
        torch.cuda.set_sync_debug_mode("error" if strict else "default")
        try:
            model.kernels.reseed(1, 2, 3)
            step_loss(model(batch.to(torch.device("cuda"))), rows).backward()
            optimizer.step(global_norm([parameter.grad for parameter in parameters]))
            optimizer.zero_grad()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@needs_card
@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_lamb_on_a_card_is_the_cpus_and_guards_against_what_is_not_finite(bad):
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(shape, generator=generator) for shape in ((700, 11), (5,), (3, 40))]
    grads = [torch.randn(value.shape, generator=generator) for value in values]
    if bad is not None:
        grads[0][3, 3] = bad
    updated = {}
    for device in ("cpu", "cuda"):
        parameters = [torch.nn.Parameter(value.clone().to(device)) for value in values]
        optimizer = Lamb(parameters, lr=0.1)
        for parameter, grad in zip(parameters, copy.deepcopy(grads)):
            parameter.grad = grad.to(device)
        finite = optimizer.step(global_norm([parameter.grad for parameter in parameters]))
        assert float(finite) == (bad is None)
        updated[device] = [parameter.detach().cpu() for parameter in parameters]
    for before, cpu, card in zip(values, updated["cpu"], updated["cuda"]):
        torch.testing.assert_close(card, cpu, rtol=2e-5, atol=2e-6)
        assert bad is None or torch.equal(card, before)
