"""LAMB against the paper's lines in plain fp64, and the schedule against a table."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pretraining.lamb import Lamb, Numbers, _fused_direction, _plain_direction, global_norm, square_sum, trust_ratio
from pretraining.schedule import poly_warmup

SHAPES = [(7, 5), (5,), (300, 11), (1, 1)]


def plain_lamb(params, grads_of_steps, *, lr, decays, eps=1e-6, betas=(0.9, 0.999), max_norm=1.0):
    """NVIDIA's variant, as formulas on fp64 copies."""
    params = [p.double() for p in params]
    m, v = [torch.zeros_like(p) for p in params], [torch.zeros_like(p) for p in params]
    for t, grads in enumerate(grads_of_steps, start=1):
        grads = [g.double() for g in grads]
        norm = sum((g**2).sum() for g in grads).sqrt()
        clip = max(1.0, float(norm / max_norm))
        for i, g in enumerate(grads):
            g = g / clip
            m[i] = betas[0] * m[i] + (1 - betas[0]) * g
            v[i] = betas[1] * v[i] + (1 - betas[1]) * g**2
            update = (m[i] / (1 - betas[0] ** t)) / ((v[i] / (1 - betas[1] ** t)).sqrt() + eps)
            ratio = 1.0
            if decays[i]:
                update = update + decays[i] * params[i]
                p_norm, u_norm = params[i].norm(), update.norm()
                ratio = p_norm / u_norm if p_norm > 0 and u_norm > 0 else 1.0
            params[i] = params[i] - lr[t - 1] * ratio * update
    return params


def setup(seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    grads = [[scale * torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(5)]
    return params, grads


def optimizer_for(params, decays=(0.01, 0.0, 0.01, 0.0)):
    return Lamb([{"params": [p], "weight_decay": d} for p, d in zip(params, decays)], lr=1.0)


def run(params, grads_of_steps, rates, decays=(0.01, 0.0, 0.01, 0.0)):
    optimizer = optimizer_for(params, decays)
    for grads, lr in zip(grads_of_steps, rates):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for p, g in zip(params, grads):
            p.grad = g.clone()
        optimizer.step(global_norm([p.grad for p in params]))
    return optimizer


@pytest.mark.parametrize("scale", [1.0, 1e-3])  # clipped and not
def test_lamb_is_the_plain_formula(scale):
    params, grads = setup(scale=scale)
    rates = [0.1, 0.05, 0.2, 0.01, 0.1]
    wanted = plain_lamb([p.detach().clone() for p in params], grads, lr=rates, decays=[0.01, 0, 0.01, 0])
    run(params, grads, rates)
    for found, expected in zip(params, wanted):
        torch.testing.assert_close(found.detach().double(), expected, rtol=2e-5, atol=2e-6)


def test_trust_ratio_is_one_for_zero_weights():
    params, grads = setup()
    with torch.no_grad():
        params[0].zero_()
    wanted = plain_lamb([p.detach().clone() for p in params], grads, lr=[0.1] * 5, decays=[0.01, 0, 0.01, 0])
    run(params, grads, [0.1] * 5)
    torch.testing.assert_close(params[0].detach().double(), wanted[0], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("weight_square", "update_square", "ratio"),
    [(0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (0.0, 0.0, 1.0), (1.0, 4.0, 0.5), (0.25, 0.01, 5.0), (1e-8, 1e-4, 0.01)],
)
def test_trust_ratio_is_the_quotient_of_norms_but_for_zero(weight_square, update_square, ratio):
    found = trust_ratio(torch.tensor(weight_square), torch.tensor(update_square))
    assert found.dtype == torch.float32 and float(found) == pytest.approx(ratio)


def at_offset(tensor, offset):
    """A copy that begins `offset` elements into its memory, as a view of a bucket does."""
    room = torch.empty(tensor.numel() + offset)
    return room[offset:].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("offset", [1, 3, 8, 13])
def test_lamb_goes_by_values_wherever_gradients_and_weights_lie(offset):
    shapes = [(70001,), (31, 1025), (1024,)]
    torch.manual_seed(1)
    weights, gradients = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    found = {}
    for place in (0, offset):
        params = [torch.nn.Parameter(at_offset(weight, place)) for weight in weights]
        for p, gradient in zip(params, gradients):
            p.grad = at_offset(gradient, place)
        norm = global_norm([p.grad for p in params])
        Lamb(params, lr=0.1).step(norm)
        found[place] = [norm, *params, *(square_sum(at_offset(weight, place)) for weight in weights)]
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[offset]))


def test_lamb_repeats_to_the_bit_and_resumes_from_its_state():
    first, grads = setup()
    second, third = copy.deepcopy(first), copy.deepcopy(first)
    run(first, grads, [0.1] * 5)
    run(second, grads, [0.1] * 5)
    half = run(third, grads[:2], [0.1] * 2)
    resumed = optimizer_for(third)
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    for gs in grads[2:]:
        for p, g in zip(third, gs):
            p.grad = g.clone()
        for group in resumed.param_groups:
            group["lr"] = 0.1
        resumed.step(global_norm([p.grad for p in third]))
    for a, b, c in zip(first, second, third):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_plain_operations_and_the_fused_kernel_agree():
    """The way of hpu, which has no kernel for torch's fused AdamW, against the way of cpu and cuda."""
    found = []
    for direction in (_plain_direction, _fused_direction):
        generator = torch.Generator().manual_seed(3)
        p, grad, m, v = (torch.randn(40, 9, generator=generator) for _ in range(4))
        one, clip = torch.tensor(1.0), torch.tensor(1.7)
        by = Numbers(torch.tensor(4.0), one, clip, one, (0.9, 0.999), 1e-6, 0.01)
        minus_update, *squares = direction(p, grad, m, v.abs_(), by)
        found.append([minus_update, m, v, *(square.float() for square in squares)])
    for plain, fused in zip(*found):
        torch.testing.assert_close(plain, fused, rtol=2e-5, atol=2e-6)


def test_state_is_laid_out_as_fused_lamb_does():
    params, grads = setup()
    state = run(params, grads[:1], [0.1]).state_dict()
    assert all(set(values) == {"exp_avg", "exp_avg_sq"} for values in state["state"].values())
    wanted = {
        "lr",
        "bias_correction",
        "betas",
        "eps",
        "weight_decay",
        "grad_averaging",
        "max_grad_norm",
        "step",
        "params",
    }
    assert all(set(group) == wanted and group["step"] == 1 for group in state["param_groups"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_gradient_changes_nothing(bad):
    params, grads = setup()
    optimizer = run(params, grads[:2], [0.1] * 2)
    before = copy.deepcopy([p.detach() for p in params]), copy.deepcopy(optimizer.state_dict()["state"])
    for p, g in zip(params, grads[2]):
        p.grad = g.clone()
    params[2].grad[3, 3] = bad
    finite = optimizer.step(global_norm([p.grad for p in params]))
    assert float(finite) == 0.0
    assert all(torch.equal(p, b) for p, b in zip(params, before[0]))
    for index, moments in optimizer.state_dict()["state"].items():
        assert all(torch.equal(moments[name], before[1][index][name]) for name in moments)


class NoHostSync(TorchDispatchMode):
    """Fails at every operation that would make the host wait for the device; notes the names of all."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        self.names.add(name)
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")), name
        return function(*args, **(kwargs or {}))


def test_a_step_never_waits_for_the_device():
    params, grads = setup()
    optimizer = optimizer_for(params)
    for p, g in zip(params, grads[0]):
        p.grad = g.clone()
    with NoHostSync() as noted:
        optimizer.step(global_norm([p.grad for p in params]))
    assert any("_fused_adamw_" in name for name in noted.names)  # one pass over memory, where the device has it
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoHostSync():
        params[0].sum().item()


def test_lamb_converges_on_least_squares():
    generator = torch.Generator().manual_seed(1)
    x, truth = torch.randn(64, 8, generator=generator), torch.randn(8, 1, generator=generator)
    w = torch.nn.Parameter(torch.randn(8, 1, generator=generator))
    optimizer = Lamb([w], lr=0.05, weight_decay=0.0)
    for _ in range(300):
        optimizer.zero_grad()
        ((x @ w - x @ truth) ** 2).mean().backward()
        optimizer.step()
    assert float((w.detach() - truth).norm() / truth.norm()) < 0.05


def test_square_sum_of_a_long_tensor():
    x = torch.randn(5_000_000, generator=torch.Generator().manual_seed(2)).mul_(0.02)
    assert float(square_sum(x)) == pytest.approx(float(x.double().pow(2).sum()), rel=5e-9)


def test_schedule_table():
    """lr = base * p / w below w, else base * (1 - p)^0.5, p = step / total (README's phase 1 in small)."""
    rates = [
        poly_warmup(step, base_lr=0.006, warmup_proportion=0.25, total_steps=8, degree=0.5) for step in range(1, 10)
    ]
    wanted = [0.003, 0.006 * 0.75**0.5, 0.006 * 0.625**0.5, 0.006 * 0.5**0.5, 0.006 * 0.375**0.5]
    assert rates[:5] == pytest.approx(wanted)
    assert rates[7] == 0.0 and rates[8] == 0.0
    assert poly_warmup(1, base_lr=1.0, warmup_proportion=0.0, total_steps=4) == pytest.approx(0.75**0.5)
    with pytest.raises(ValueError, match="warmup_proportion 1"):
        poly_warmup(1, base_lr=1.0, warmup_proportion=1.0, total_steps=4)
