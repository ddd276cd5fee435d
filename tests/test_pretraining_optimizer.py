"""A second optimizer takes its own class and a line in the table: here AdamW, trained, saved and resumed."""

from types import SimpleNamespace

import pytest
import torch
from pretraining_helpers import make_columns
from test_pretraining_modeling import SMALL, rows_of, step_loss

from central.runtime.device import open_device
from central.runtime.exits import BadRequest
from central.runtime.rank import Rank
from pretraining import checkpoint, optimizer
from pretraining.batches import flat_micro_batch
from pretraining.kernels.cpu import CpuKernels
from pretraining.lamb import Lamb, global_norm
from pretraining.modeling import BertForPreTraining, decays, initialise

CPU = open_device("cpu", "eager", "fp32", Rank())


class AdamW(torch.optim.AdamW):
    """torch's, clipped by the norm; all that a second optimizer needs."""

    moments = ("exp_avg", "exp_avg_sq")

    def step(self, norm):
        self.grad_scale = norm.clamp(min=1.0)  # what gradients are divided by
        self.found_inf = 1 - torch.isfinite(norm).float()
        super().step()
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            torch.autograd.graph.increment_version(group["params"])  # torch's fused kernel does not

    def resume_at(self, step):
        for group in self.param_groups:
            group["step"] = step
            for parameter in group["params"]:
                self.state[parameter]["step"] = torch.tensor(float(step))


@pytest.fixture
def adamw(monkeypatch):
    make = lambda groups, lr, device: AdamW(groups, lr=lr, fused=True)  # noqa: E731
    monkeypatch.setitem(optimizer.OPTIMIZERS, "adamw", make)


def make_model():
    model = BertForPreTraining(SMALL, CpuKernels())
    initialise(model, 1)
    return model


def trained(model, updates, steps):
    rows, losses = rows_of(make_columns(8, 24, 4, seed=3)), []
    for _ in range(steps):
        loss = step_loss(model(flat_micro_batch(rows)), rows)
        loss.backward()
        updates.step(global_norm([p.grad for p in model.parameters()]))
        updates.zero_grad()
        losses.append(loss.item())
    return losses


def test_a_second_optimizer_trains_and_resumes_to_the_bit(adamw, tmp_path):
    model = make_model()
    updates = optimizer.build("adamw", model, 0.01, CPU)
    before = trained(model, updates, 3)
    assert before[-1] < before[0]
    saver = checkpoint.CheckpointWriter(tmp_path, 3)
    saver.save(model, updates, {"phase": 1, "step": 3, "global_step": 3}, {})
    saver.wait()
    wanted = trained(model, updates, 3)

    resumed = make_model()
    checkpoint.load_weights(resumed, checkpoint.read_weights(tmp_path / "ckpt_3"), tmp_path)
    saved = checkpoint.read_moments(tmp_path / "ckpt_3")
    others = optimizer.build("adamw", resumed, 0.01, CPU)
    checkpoint.check_moments(saved, others, resumed, tmp_path / "ckpt_3")
    checkpoint.load_moments(others, resumed, saved)
    assert trained(resumed, others, 3) == wanted


def test_a_gradient_that_is_not_finite_changes_nothing(adamw):
    model = make_model()
    updates = optimizer.build("adamw", model, 0.01, CPU)
    trained(model, updates, 1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    updates.step(torch.tensor(float("nan")))
    assert all(torch.equal(parameter, kept) for parameter, kept in zip(model.parameters(), before))


def test_matrices_decay_and_biases_do_not():
    model = make_model()
    updates = optimizer.build("lamb", model, 0.01, CPU)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in updates.param_groups:
        assert {decays(names[parameter]) for parameter in group["params"]} == {group["weight_decay"] > 0}
    assert [group["weight_decay"] for group in updates.param_groups] == [0.01, 0.0]


def test_the_fused_lamb_of_a_device_is_ours_where_there_is_none():
    assert type(optimizer.build("fused_lamb", make_model(), 0.01, CPU)) is Lamb

    class Habanas(Lamb):
        def step(self):
            self.seen = [parameter.grad for group in self.param_groups for parameter in group["params"]]

    device = SimpleNamespace(fused_lamb=lambda: Habanas, has_fused_adamw=False)
    updates = optimizer.build("fused_lamb", make_model(), 0.01, device)
    updates.step(torch.tensor(1.0))
    assert isinstance(updates, Habanas) and updates.seen and updates.moments == Lamb.moments
    assert {group["lr"] for group in updates.param_groups} == {0.01}


@pytest.mark.parametrize("has_kernel", [True, False])
def test_lamb_takes_the_rate_and_the_kernel_of_the_device(monkeypatch, has_kernel):
    device = SimpleNamespace(fused_lamb=lambda: None, has_fused_adamw=has_kernel)
    for name in ("lamb", "fused_lamb"):
        model = make_model()
        updates = optimizer.build(name, model, 0.02, device)
        assert {group["lr"] for group in updates.param_groups} == {0.02}
        calls = []
        monkeypatch.setattr(torch, "_fused_adamw_", lambda *_words, **_named: calls.append(name))  # noqa: B023
        trained(model, updates, 1)
        assert bool(calls) == has_kernel


def test_the_state_of_another_optimizer_is_refused(tmp_path):
    model = make_model()
    updates = optimizer.build("lamb", model, 0.01, CPU)
    trained(model, updates, 1)
    saver = checkpoint.CheckpointWriter(tmp_path, 3)
    saver.save(model, updates, {"phase": 1, "step": 1, "global_step": 1}, {})
    saver.wait()
    saved = checkpoint.read_moments(tmp_path / "ckpt_1")
    with pytest.raises(BadRequest, match="momentum of .* is no tensor"):
        checkpoint.check_moments(saved, SimpleNamespace(moments=("momentum",)), model, tmp_path / "ckpt_1")
