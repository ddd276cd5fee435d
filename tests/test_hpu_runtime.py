"""central/runtime/hpu.py and what hangs on it, on the emulated Gaudi: cards and ranks, fused kernels, checkpoints."""

import json
import shutil
import sys

import pretraining_helpers
import pytest
import torch
from emulated_gaudi import ROOT, Gaudi, free_port

from central.runtime import hpu
from central.runtime.rank import Rank
from pretraining.batches import static_micro_batch
from pretraining.dataset import Limits, open_shards, read_shard
from pretraining.kernels.plain import PlainKernels
from pretraining.modeling import BertConfig, BertForPreTraining, decays, initialise

TINY = BertConfig(
    pretraining_helpers.VOCAB_SIZE, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
)


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
from central.runtime.device import open_device
from central.runtime.process_group import init_process_group
here = rank.from_environment()
try:
    device = open_device("hpu", "eager", "fp32", here)
except ValueError as error:
    raise SystemExit(str(error))
init_process_group(device, here)
torch.ones(1, device=device.device)
from hpu_emulator import state
sys.stdout.write(f"{here.rank}:{state.module_id}\\n")  # in one piece, as other ranks write to the same file
sys.stdout.flush()
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


@pytest.fixture
def pretrain(gaudi):
    """A function that pre-trains on a card, `pretrain(name of the output folder, **flags)`, and the folder of all."""
    folder = gaudi.folder
    corpus = pretraining_helpers.make_corpus(folder / "corpus")
    config = pretraining_helpers.write_config(
        folder / "config.json", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )

    def run(name, server=gaudi, ranks=1, **flags):
        flags = {"no_cuda": False, "use_habana": True, **flags}
        argv = pretraining_helpers.script_argv(corpus, config, folder / name, **flags)
        port = str(free_port())
        words = [str(pretraining_helpers.SCRIPT), *argv]
        return server.run(words, ranks, PT_HPU_FORCE_TANH_FOR_GELU="0", MASTER_PORT=port)

    return run


def losses(folder) -> list[float]:
    """One a step, oldest first."""
    training, _ = pretraining_helpers.logged(folder)
    return [numbers["average_loss"] for _, numbers in sorted(training.items())]


def test_fused_attention_is_a_flag_that_the_first_gaudi_refuses(gaudi, pretrain):
    first = Gaudi(gaudi.folder, generation=1)
    refused = pretrain("refused", server=first, fused_sdpa=True)
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.splitlines() == ["error: the first Gaudi has no fused attention: leave out --fused_sdpa"]
    for name, server, flags in (("plain", first, {}), ("fused", gaudi, {"fused_sdpa": True})):
        done = pretrain(name, server=server, max_steps=3, num_steps_per_checkpoint=3, **flags)
        assert done.returncode == 0, done.stderr[-2000:]
    plain, fused = (losses(gaudi.folder / name) for name in ("plain", "fused"))
    assert len(plain) == 3 and fused == pytest.approx(plain, rel=1e-5)


@pytest.mark.mpi
@pytest.mark.parametrize("flat", [True, False], ids=["flat", "ddp"])
def test_gradients_exchanged_in_bf16(gaudi, pretrain, flat):
    """As on other devices, and only where it is asked for: rounded to 8 bits on the way, not more."""
    asked = {"allreduce_post_accumulation_fp16": True, "allreduce_post_accumulation": flat}
    for name, ranks, flags in (("one", 1, {}), ("two", 2, {"train_batch_size": 4, **asked})):
        done = pretrain(name, ranks=ranks, max_steps=4, use_fused_lamb=True, skip_checkpoint=True, **flags)
        assert done.returncode == 0, done.stderr[-2000:]
        assert ("exchanged in bf16" in done.stdout) == (ranks > 1)
    one, two = (losses(gaudi.folder / name) for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-2) and two != pytest.approx(one, rel=1e-7)


@pytest.mark.mpi
@pytest.mark.slow
def test_checkpointed_activations_and_ddp_under_compile(gaudi, pretrain):
    """Both graphs of DistributedDataParallel and of checkpointing: the losses are those of a rank alone."""
    for name, ranks, flags in (("one", 1, {}), ("two", 2, {"train_batch_size": 4})):
        words = {**flags, "torch_compile": True, "checkpoint_activations": True}
        done = pretrain(name, ranks=ranks, max_steps=3, skip_checkpoint=True, **words)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (losses(gaudi.folder / name) for name in ("one", "two"))
    assert len(one) == 3 and two == pytest.approx(one, rel=1e-5)
    assert all(report["recompile_limits"] == report["dynamic_graphs"] == 0 for report in gaudi.reports())


def test_scores_are_of_the_type_of_the_products(gaudi):
    """With the shipped lists: in fp32 the largest tensors of all, rows x heads x length x length, cost twice."""
    lists = {
        "PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST": str(ROOT / "ops_bf16_bert_pt.txt"),
        "PT_HPU_AUTOCAST_FP32_OPS_LIST": str(ROOT / "ops_fp32_bert_pt.txt"),
    }
    printed = gaudi.python(
        """
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from types import SimpleNamespace
from central.runtime import hpu
import habana_frameworks.torch.core
from pretraining.kernels.plain import PlainKernels, attention_mask
from central.finetuning import attention_hpu
class Types(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.shape[1:] == (3, 8, 8):
            print(str(found.dtype).removeprefix("torch."))
        return found
ids = torch.ones(2, 8, dtype=torch.int32, device="hpu")
batch = SimpleNamespace(sequence_ids=ids, lengths=None, attention_mask=attention_mask(ids, torch.bfloat16))
kernels = PlainKernels(dtype=torch.bfloat16)
qkv = torch.randn(16, 36, device="hpu", dtype=torch.bfloat16, requires_grad=True)
q = torch.randn(2, 3, 8, 4, device="hpu", dtype=torch.bfloat16)
with torch.autocast("hpu", dtype=torch.bfloat16), Types():
    kernels.attention(qkv, batch, 3, 0.1, True)
    mask = attention_hpu.additive_mask(2, 8, torch.ones(2, 8, device="hpu", dtype=torch.bool), torch.float32)
    attention_hpu.attention(SimpleNamespace(training=True), q, q, q, mask, 0.1)
print(mask.dtype)
""",
        **lists,
    ).split()
    assert len(printed) > 4 and set(printed) == {"bfloat16", "torch.bfloat16"}, printed


def test_the_mask_is_made_once_for_all_layers(tmp_path, monkeypatch):
    from pretraining.kernels import plain

    made = []
    real = plain.attention_mask
    monkeypatch.setattr(plain, "attention_mask", lambda ids, dtype: made.append(ids.shape) or real(ids, dtype))
    limits = Limits(pretraining_helpers.VOCAB_SIZE, 16, 64, 3)
    shard, *_ = open_shards(pretraining_helpers.make_corpus(tmp_path / "corpus"), "training", limits)
    batch = static_micro_batch(read_shard(shard, limits))
    config = BertConfig(
        pretraining_helpers.VOCAB_SIZE, hidden_size=8, num_hidden_layers=3, num_attention_heads=1, intermediate_size=8
    )
    model = BertForPreTraining(config, PlainKernels())
    initialise(model, seed=1)
    model(batch)
    assert len(made) == 1


def test_what_fine_tuning_asks_of_hpu(gaudi):
    """No worker processes and no pinned memory, no wait for a copy or a step, buckets of 230 MB as views of the
    gradients, graphs of known sizes."""
    script = ROOT / "transformers/examples/pytorch/text-classification/run_glue.py"
    argv = f"--model_name_or_path=x --output_dir={gaudi.folder} --do_train --use_habana --use_fused_adam --hmp".split()
    printed = gaudi.python(f"""
import json, sys
from accelerate import DataLoaderConfiguration
sys.argv[1:] = {argv!r}
sys.path.insert(0, {str(script.parent)!r})
import run_glue
from central.finetuning.arguments import DataArguments, parse
from central.finetuning.trainer import FineTuningTrainer as trainer
request = parse(sys.argv[1:], DataArguments, run_glue.rank.from_environment())
training = request.training
shell = trainer.__new__(trainer)
shell.args, shell.model, shell.device = training, None, request.device
asked = shell._build_accelerator_args(dataloader_config=DataLoaderConfiguration())
(ddp,), loader, compiled = asked["kwargs_handlers"], asked["dataloader_config"], asked["dynamo_plugin"]
names = "dataloader_num_workers dataloader_pin_memory optim logging_nan_inf_filter ddp_bucket_cap_mb bf16".split()
found = [ddp.gradient_as_bucket_view, ddp.bucket_cap_mb, loader.non_blocking, compiled.dynamic]
print(json.dumps([*(getattr(training, name) for name in names), *found]))
print(training.device)
""")
    values, device = printed.splitlines()[-2:]
    assert (
        json.loads(values) == [0, False, "adamw_torch", False, 230, True, True, 230, True, False] and device == "hpu:0"
    )


def test_fused_lamb_clips_alone(gaudi):
    """Its gradients arrive as long as the norm that is reported, which was computed before any clipping."""
    folder = gaudi.folder
    corpus, config = pretraining_helpers.make_corpus(folder / "corpus"), pretraining_helpers.write_config(folder / "c")
    flags = {"no_cuda": False, "use_habana": True, "use_fused_lamb": True, "max_steps": 3}
    printed = gaudi.python(f"""
import sys
import habana_frameworks.torch
from habana_frameworks.torch.hpex.optimizers import FusedLamb
from pretraining.run_pretraining import main
step = FusedLamb.step
def watched(self):
    squares = [float(p.grad.square().sum()) for group in self.param_groups for p in group["params"]]
    print("norm", sum(squares) ** 0.5)
    step(self)
FusedLamb.step = watched
main({pretraining_helpers.script_argv(corpus, config, folder / "out", **flags)!r})
""")
    norms = [float(line.split()[1]) for line in printed.splitlines() if line.startswith("norm ")]
    training, _ = pretraining_helpers.logged(folder / "out")
    assert norms == pytest.approx([numbers["grad_norm"] for _, numbers in sorted(training.items())], rel=1e-4)
    assert max(norms) > 1.5, "no gradient was long enough to be clipped: the test shows nothing"


def test_a_weight_of_norm_zero_moves_with_our_lamb_only(gaudi):
    """FusedLamb gives it the trust ratio 0 for ever. Training never meets one: no decayed weight starts at zero."""
    gaudi.python("""
from functools import partial
import torch
from pretraining.lamb import Lamb
from habana_frameworks.torch.hpex.optimizers import FusedLamb
for kind, moves in ((partial(Lamb, fused=False), True), (FusedLamb, False)):
    weight = torch.nn.Parameter(torch.zeros(3, 2, device="hpu"))
    weight.grad = torch.ones_like(weight)
    kind([weight], lr=0.1, weight_decay=0.01).step()
    assert bool(weight.any()) == moves, kind
""")
    model = BertForPreTraining(TINY, PlainKernels())
    initialise(model, seed=1)
    assert all(parameter.any() for name, parameter in model.named_parameters() if decays(name))


def test_our_lamb_never_makes_the_host_wait(gaudi):
    gaudi.python("""
import torch
from hpu_emulator import state
from pretraining.lamb import Lamb, global_norm
weight = torch.nn.Parameter(torch.ones(3, 2, device="hpu"))
optimizer = Lamb([weight], lr=0.1, fused=False)
weight.grad = torch.ones_like(weight)
before = state.counters()["host_syncs"]
optimizer.step(global_norm([weight.grad]))
assert state.counters()["host_syncs"] == before
""")


def test_ids_are_32_bits_wide_and_the_padding_embedding_has_no_gradient(tmp_path):
    limits = Limits(pretraining_helpers.VOCAB_SIZE, 16, 64, 3)
    shard, *_ = open_shards(pretraining_helpers.make_corpus(tmp_path / "corpus"), "training", limits)
    batch = static_micro_batch(read_shard(shard, limits))
    for name in ("input_ids", "segment_ids", "positions", "masked_positions", "cls_positions", "sequence_ids"):
        assert getattr(batch, name).dtype == torch.int32, name
    model = BertForPreTraining(TINY, PlainKernels())
    initialise(model, seed=1)
    model.bert.embeddings(batch, model.kernels).square().sum().backward()
    gradient = model.bert.embeddings.word_embeddings.weight.grad
    assert (batch.input_ids == 0).any() and not gradient[0].any() and gradient.any()


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
def test_lamb_checkpoints_go_from_hpu_to_cpu_and_back(gaudi, pretrain):
    """FusedLamb in lazy mode, the cpu, FusedLamb in eager, our LAMB in compile and lazy mode, 3 steps each: the losses
    are those of the cpu."""

    def run(name, steps, **flags):
        done = pretrain(name, max_steps=15, num_steps_per_checkpoint=3, steps_this_run=steps, **flags)
        assert done.returncode == 0, done.stderr[-2000:]

    host = {"no_cuda": True, "use_habana": False}
    run("cpu", 15, **host)
    resume = {"resume_from_checkpoint": True}
    run("both", 3, use_fused_lamb=True, use_lazy_mode=True)
    run("both", 6, **resume, **host)
    run("both", 9, **resume, use_fused_lamb=True)
    run("both", 12, **resume, torch_compile=True)
    run("both", 15, **resume, use_lazy_mode=True)
    (expected, held_out), (found, found_held_out) = (
        pretraining_helpers.logged(gaudi.folder / name) for name in ("cpu", "both")
    )
    assert sorted(found) == sorted(expected) == list(range(1, 16))
    for step, numbers in expected.items():
        assert found[step]["average_loss"] == pytest.approx(numbers["average_loss"], rel=1e-4), step
    assert found_held_out[1, 15]["eval_mlm_loss"] == pytest.approx(held_out[1, 15]["eval_mlm_loss"], rel=1e-4)
    assert all(report["saved_device_tensors"] == 0 for report in gaudi.reports())
    assert [report["mode"] for report in gaudi.reports()] == ["lazy", "eager", "eager", "lazy"]


def test_adamw_states_go_from_hpu_to_cpu_and_back(gaudi):
    """Three steps on hpu, three on the cpu, three on hpu: the weights of nine steps on the cpu, bias correction too."""
    gaudi.python("""
import torch
from central.runtime import hpu
torch.manual_seed(0)
start = [torch.randn(4, 3), torch.randn(3)]
grads = [[torch.randn_like(p) for p in start] for _ in range(9)]
settings = {"lr": 0.1, "eps": 1e-12, "weight_decay": 0.0}

def weights(device):
    return [torch.nn.Parameter(p.clone().to(device)) for p in start]

def steps(parameters, optimizer, which):
    for step in which:
        for p, grad in zip(parameters, grads[step]):
            p.grad = grad.to(p.device)
        optimizer.step()
    return optimizer.state_dict()

host = weights("cpu")
steps(host, torch.optim.AdamW(host, **settings), range(9))
saved, values = None, start
for device, which in (("hpu", range(3)), ("cpu", range(3, 6)), ("hpu", range(6, 9))):
    parameters = weights(device)
    with torch.no_grad():
        for p, value in zip(parameters, values):
            p.copy_(value.to(device))
    optimizer = (torch.optim.AdamW if device == "cpu" else hpu.fused_adamw())(parameters, **settings)
    if saved:
        optimizer.load_state_dict(saved)
    saved = steps(parameters, optimizer, which)
    assert {float(values["step"]) for values in saved["state"].values()} == {which[-1] + 1.0}
    values = [p.detach().cpu() for p in parameters]
for p, value in zip(host, values):
    assert torch.allclose(p, value, rtol=1e-4, atol=1e-6), (p - value).abs().max()
""")


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
