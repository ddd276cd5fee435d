"""central/runtime/hpu.py and what hangs on it, on the emulated Gaudi: cards and ranks, fused kernels, checkpoints."""

import json
import shutil
import sys

import pretraining_helpers
import pytest
from emulated_gaudi import ROOT, Gaudi, free_port

from central.runtime import hpu
from central.runtime.rank import Rank


@pytest.fixture
def gaudi(tmp_path):
    return Gaudi(tmp_path)


def test_nothing_of_habana_is_imported_off_hpu():
    assert not any(name.startswith("habana_frameworks") for name in sys.modules)


def test_no_plugin_is_one_line():
    with pytest.raises(ValueError, match="no package habana_frameworks is installed"):
        hpu.initialize(Rank())


def test_a_rank_alone_takes_any_card():
    environ = {}
    hpu.assign_card(Rank(), environ)
    assert environ == {}


@pytest.mark.parametrize(
    ("given", "card"),
    [({}, "1"), ({"HABANA_VISIBLE_MODULES": "4,6"}, "6"), ({"HLS_MODULE_ID": "7"}, "7")],
)
def test_card_of_a_rank(given, card):
    environ = dict(given)
    hpu.assign_card(Rank(3, 1, 4, 2, "slurm"), environ)
    assert environ["HLS_MODULE_ID"] == card and environ["LOCAL_RANK"] == "1" and environ["RANK"] == "3"


def test_too_few_visible_cards():
    with pytest.raises(ValueError, match="names 1 cards for 2 ranks"):
        hpu.assign_card(Rank(0, 0, 2, 2), {"HABANA_VISIBLE_MODULES": "4"})


OPEN = """
from central.runtime import environment; environment.apply(["--use_habana"])
import sys, torch
from central.runtime import hpu, rank
from central.runtime.device import init_process_group, open_device
here = rank.from_environment()
try:
    device = open_device("hpu", "eager", "fp32", here)
except ValueError as error:
    raise SystemExit(str(error))
init_process_group(device, here)
torch.ones(1, device=device.device)
from hpu_emulator import state
print(f"{here.rank}:{state.module_id}", flush=True)
if torch.distributed.is_initialized():
    torch.distributed.barrier()  # a rank that leaves early can break the other's opening
    torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("cards", "variables", "refusal"),
    [
        (0, {}, "counts no card"),
        (1, {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "2 ranks on this server but 1 cards"),
        (
            8,
            {"PT_HPU_AUTOCAST_FP32_OPS_LIST": "ops.txt", "PT_HPU_LAZY_MODE": "0"},
            "names 'matmull', which no ATen op has",
        ),
    ],
)
def test_refusals(tmp_path, cards, variables, refusal):
    (tmp_path / "ops.txt").write_text("matmull\n")
    done = Gaudi(tmp_path, cards=cards).run(["-c", OPEN], **variables)
    assert done.returncode == 1 and refusal in done.stderr, done.stderr


@pytest.mark.mpi
def test_ranks_and_cards_line_up_under_mpirun(gaudi):
    done = gaudi.run(["-c", OPEN], ranks=2, HABANA_VISIBLE_MODULES="5,3", MASTER_PORT=str(free_port()))
    assert sorted(done.stdout.split()) == ["0:5", "1:3"], done.stderr


def test_ranks_and_cards_line_up_under_torchrun(gaudi):
    script = gaudi.folder / "open.py"
    script.write_text(OPEN)
    argv = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}", str(script)]
    done = gaudi.run(argv)
    assert sorted(done.stdout.split()) == ["0:0", "1:1"], done.stderr


def test_fused_attention_and_its_absence_on_the_first_gaudi(tmp_path):
    program = """
from central.runtime import environment; environment.apply(["--use_habana"])
import torch, torch.nn.functional as F
from central.runtime import hpu, rank
hpu.initialize(rank.Rank())
try:
    attend = hpu.fused_sdpa()
except ValueError as error:
    print(error)
else:
    q, k, v = (torch.randn(2, 3, 8, 4, device="hpu", requires_grad=True) for _ in range(3))
    mask = torch.zeros(2, 1, 1, 8, device="hpu"); mask[..., 5:] = -1e9
    found = attend(q, k, v, mask, 0.0)
    expected = F.scaled_dot_product_attention(q, k, v, mask)
    assert torch.allclose(found, expected, atol=1e-6)
    one, other = (torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (found, expected))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one, other))
    print("equal")
"""
    for generation, words in ((1, "no fused attention"), (2, "equal")):
        gaudi = Gaudi(tmp_path, generation=generation)
        assert words in gaudi.python(program, PT_HPU_LAZY_MODE="0")


def test_fused_optimizers_follow_their_formulas(gaudi):
    """FusedLamb against pretraining/lamb.py on the cpu, FusedAdamW against torch's, clipping against torch's."""
    gaudi.python("""
import torch
from pretraining.lamb import Lamb, global_norm
from habana_frameworks.torch.hpex.normalization import FusedClipNorm
from habana_frameworks.torch.hpex.optimizers import FusedAdamW, FusedLamb
torch.manual_seed(0)
host = [torch.nn.Parameter(torch.randn(6, 5)), torch.nn.Parameter(torch.randn(5))]
for fused, plain in (
    (lambda p: FusedLamb([{"params": p[:1], "weight_decay": 0.01}, {"params": p[1:], "weight_decay": 0.0}], lr=0.1),
     lambda p: Lamb([{"params": p[:1], "weight_decay": 0.01}, {"params": p[1:], "weight_decay": 0.0}], lr=0.1)),
    (lambda p: FusedAdamW(p, lr=0.1, eps=1e-12), lambda p: torch.optim.AdamW(p, lr=0.1, eps=1e-12, weight_decay=0.0)),
):
    cpu = [torch.nn.Parameter(p.detach().clone()) for p in host]
    card = [torch.nn.Parameter(p.detach().to("hpu")) for p in host]
    one, other = plain(cpu), fused(card)
    for step in range(5):
        grads = [torch.randn_like(p) * 3 for p in cpu]
        for p, q, grad in zip(cpu, card, grads):
            p.grad, q.grad = grad.clone(), grad.to("hpu")
        one.step(); other.step()
    for p, q in zip(cpu, card):
        assert torch.allclose(p, q.cpu(), rtol=1e-4, atol=1e-6), (type(other), (p - q.cpu()).abs().max())
for p, q in zip(cpu, card):
    p.grad, q.grad = torch.full_like(p, 2.0), torch.full_like(q, 2.0)
expected = torch.nn.utils.clip_grad_norm_(cpu, 1.0)
found = FusedClipNorm(card, 1.0).clip_norm(card)
assert found.shape == (1,) and torch.allclose(found.cpu(), expected)
assert all(torch.allclose(p.grad, q.grad.cpu(), rtol=1e-5) for p, q in zip(cpu, card))
""")


@pytest.mark.slow
def test_lamb_checkpoints_go_from_hpu_to_cpu_and_back(gaudi):
    """Steps 1-4 on hpu with FusedLamb, 5-8 on cpu, 9-12 on hpu with our LAMB: the losses are those of a run on cpu."""
    folder = gaudi.folder
    corpus = pretraining_helpers.make_corpus(folder / "corpus")
    config = pretraining_helpers.write_config(
        folder / "config.json", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    card = {"no_cuda": False, "use_habana": True}

    def run(out, steps, **flags):
        flags = {"max_steps": 12, "num_steps_per_checkpoint": 4, "steps_this_run": steps, **flags}
        argv = pretraining_helpers.script_argv(corpus, config, out, **flags)
        done = gaudi.run([str(pretraining_helpers.SCRIPT), *argv], PT_HPU_FORCE_TANH_FOR_GELU="0")
        assert done.returncode == 0, done.stderr[-2000:]

    run(folder / "cpu", 12)
    run(folder / "both", 4, use_fused_lamb=True, **card)
    run(folder / "both", 8, resume_from_checkpoint=True)
    run(folder / "both", 12, resume_from_checkpoint=True, use_lazy_mode=True, **card)
    (expected, held_out), (found, found_held_out) = (pretraining_helpers.logged(folder / x) for x in ("cpu", "both"))
    assert sorted(found) == sorted(expected) == list(range(1, 13))
    for step, numbers in expected.items():
        assert found[step]["average_loss"] == pytest.approx(numbers["average_loss"], rel=1e-4), step
    assert found_held_out[1, 12]["eval_mlm_loss"] == pytest.approx(held_out[1, 12]["eval_mlm_loss"], rel=1e-4)
    assert all(report["saved_device_tensors"] == 0 for report in gaudi.reports())
    assert [report["mode"] for report in gaudi.reports()] == ["eager", "lazy"]


@pytest.mark.slow
@pytest.mark.mpi
def test_the_launcher_trains_both_phases_on_hpu(gaudi):
    """One command: two ranks, lazy, bf16 with the shipped lists, FusedLamb; the device is found by itself."""
    folder = gaudi.folder
    config = pretraining_helpers.write_config(folder / "config.json")
    corpora = [pretraining_helpers.make_corpus(folder / f"p{n}", seq_len=n, max_predictions=3) for n in (16, 32)]
    argv = [
        *(str(ROOT / "demo_bert.py"), "pretraining", "--model_name_or_path", "tiny", "--config_file", str(config)),
        *("--data_type", "bf16", "--mode", "lazy", "--world_size", "2", "--dist", "--output_dir", str(folder / "out")),
        *("--data_dir", *map(str, corpora), "--max_seq_length", "16", "32", "--train_batch_size", "8", "8"),
        *("--batch_size", "2", "2", "--accumulate_gradients", "--max_steps", "4", "4", "--save_steps", "2", "2"),
        "--allreduce_post_accumulation",
    ]
    done = gaudi.run(argv)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    reports = gaudi.reports()
    assert [report["mode"] for report in reports] == ["lazy"] * 4
    assert all(report["optimizer_steps"] == 4 and report["missing_mark_steps"] == [] for report in reports)
    newest = json.loads((folder / "out" / "results" / "checkpoints" / "ckpt_8" / "state.json").read_text())
    assert newest["phase"] == 2
    shutil.rmtree(folder / "out")
