"""tests/hpu_emulator: it computes as the CPU does, and is as strict as a Gaudi."""

import json
import subprocess

import pytest
import torch
from emulated_gaudi import EMULATOR, Gaudi, build, free_port


@pytest.fixture
def gaudi(tmp_path):
    return Gaudi(tmp_path)


TRAIN = """
import habana_frameworks.torch.core as htcore
import torch, torch.nn.functional as F
from habana_frameworks.torch.hpex.optimizers import FusedLamb
torch.manual_seed(1)
layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
model = torch.nn.Sequential(torch.nn.Embedding(20, 16), layer, torch.nn.Linear(16, 20))
device = "hpu"
model.to(device)
optimizer = FusedLamb(model.parameters(), lr=0.01)
def step(rows=4, mark=True, scale=1.0, wait=False):
    ids = torch.arange(rows * 8, dtype=torch.int32).reshape(rows, 8) % 20
    card = ids.to(device, non_blocking=True)
    labels = ids.long().flatten().to(device, non_blocking=True)
    loss = F.cross_entropy(model(card).flatten(0, 1), labels) * scale
    if wait: loss.item()
    loss.backward()
    if mark: htcore.mark_step()
    optimizer.step()
    optimizer.zero_grad()
    if mark: htcore.mark_step()
    return loss
"""


def test_says_what_it_is():
    package = (EMULATOR / "habana_frameworks").rglob("*.py")
    for file in (EMULATOR / "README.md", EMULATOR / "device.cpp", EMULATOR / "bin" / "hl-smi", *package):
        assert "TEST DOUBLE" in " ".join(file.read_text().splitlines()[:2]).upper(), file


def test_there_is_a_reason_where_there_is_no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(pytest.skip.Exception, match="needs a C\\+\\+ compiler"):
        Gaudi(tmp_path)


def test_values_and_gradients_are_those_of_the_cpu(gaudi):
    """The same network, weights and dropout masks on both devices: equal to the bit, forward and backward."""
    gaudi.python(
        """
import copy, torch
torch.manual_seed(0)
host = torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
card = copy.deepcopy(host).to("hpu")
batch = torch.randn(3, 7, 32)
torch.manual_seed(7); expected = host(batch); expected.square().mean().backward()
torch.manual_seed(7); found = card(batch.to("hpu")); found.square().mean().backward()
assert found.device == torch.device("hpu:0") and torch.equal(found.cpu(), expected)
for one, other in zip(host.parameters(), card.parameters()):
    assert other.grad.device.type == "hpu" and torch.equal(one.grad, other.grad.cpu())
""",
        PT_HPU_FORCE_TANH_FOR_GELU="0",
    )


def test_autocast_follows_the_lists(gaudi):
    program = """
import torch, torch.nn.functional as F
x, w = torch.randn(4, 4, device="hpu", requires_grad=True), torch.ones(4, device="hpu")
with torch.autocast("hpu", dtype=torch.bfloat16):
    y = x @ x
    results = (y, F.layer_norm(x, (4,), w, w), F.cross_entropy(y, w.long()), y + x, y + y, x * x)
    print(*(result.dtype for result in results))
y.sum().backward()
print(x.grad.dtype, (x @ x).dtype)
"""
    assert gaudi.python(program).replace("torch.", "").split() == [
        *("bfloat16", "bfloat16", "float32", "float32", "bfloat16", "bfloat16"),
        *("float32", "float32"),
    ]
    only_mul = gaudi.folder / "ops.txt"
    only_mul.write_text("mul\n")
    replaced = gaudi.python(program, PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST=str(only_mul))
    assert replaced.replace("torch.", "").split()[:6] == ["float32"] * 5 + ["bfloat16"]


def test_gelu_is_the_tanh_approximation_unless_told_otherwise(gaudi):
    program = """
import torch
x = torch.linspace(-3, 3, 50)
print(float((torch.nn.functional.gelu(x.to("hpu")).cpu() - torch.nn.functional.gelu(x)).abs().max()))
"""
    assert 1e-5 < float(gaudi.python(program)) < 5e-4
    assert float(gaudi.python(program, PT_HPU_FORCE_TANH_FOR_GELU="0")) == 0


def test_saving_copying_and_random_numbers(gaudi):
    gaudi.python("""
import copy, io, torch
model = torch.nn.Linear(4, 4).to("hpu")
assert copy.deepcopy(model).weight.device.type == "hpu"
file = io.BytesIO(); torch.save(model.state_dict(), file)
for place, device in (("cpu", "cpu"), (None, "hpu")):
    file.seek(0)
    assert torch.load(file, map_location=place)["weight"].device.type == device
torch.manual_seed(3); first = torch.rand(5, device="hpu")
state = torch.hpu.get_rng_state(); second = torch.rand(5, device="hpu")
torch.hpu.set_rng_state(state); assert torch.equal(second, torch.rand(5, device="hpu"))
torch.manual_seed(3); assert torch.equal(first, torch.rand(5, device="hpu"))
assert torch.hpu.memory_allocated() > 0 and not hasattr(torch.hpu, "empty_cache")
""")
    assert gaudi.reports()[0]["saved_device_tensors"] == 2


FILES = """
import habana_frameworks.torch, torch
from transformers.trainer_pt_utils import safe_globals
with safe_globals():
    for name in ("tensors.pt", "numpy.pt"):
        try: print(*torch.load(name, weights_only=True))
        except Exception as error: print(type(error).__name__)
"""


def test_lazy_mode_saves_and_loads_otherwise(gaudi):
    """Its files are of protocol 4; its reader knows those, and few classes; `__wrapped__` is torch's own."""
    gaudi.python(
        "import habana_frameworks.torch, numpy, torch\n"
        "weight = torch.nn.Linear(1, 1).to('hpu').weight\n"
        "torch.save({'a': weight}, 'tensors.pt')\n"
        "torch.save({'b': numpy.arange(3, dtype=numpy.uint32)}, 'numpy.pt')\n"
        "try: torch.save.__wrapped__({'a': weight}, 'refused.pt')\n"
        "except RuntimeError as error: assert 'asked for its address' in str(error)\n"
        "else: raise SystemExit('a lazy tensor was read')",
        mode="lazy",
    )
    assert gaudi.python(FILES, mode="lazy").split() == ["a", "RuntimeError"]
    assert gaudi.python(FILES).split() == ["UnpicklingError", "UnpicklingError"]
    restored = "from central.runtime.hpu import restore_torchs_files; restore_torchs_files()\n"
    gaudi.python(
        "import habana_frameworks.torch, numpy, torch\n"
        + restored
        + "torch.save({'a': torch.ones(1)}, 'tensors.pt')\n"
        + "torch.save({'b': numpy.arange(3, dtype=numpy.uint32)}, 'numpy.pt')\n",
        mode="lazy",
    )
    for program, mode in (("import habana_frameworks.torch\n" + restored + FILES, "lazy"), (FILES, "eager")):
        assert gaudi.python(program, mode=mode).split() == ["a", "b"]


@pytest.mark.parametrize("mode", ["lazy", "eager"])
def test_a_clean_loop_has_nothing_to_report(gaudi, mode):
    gaudi.python(TRAIN + "for _ in range(8): step()", mode=mode)
    (report,) = gaudi.reports()
    assert (report["micro_steps"], report["optimizer_steps"]) == (8, 8)
    assert report["recompilations"] == report["pending_operations"] == 0
    assert {sync["micro_step"] for sync in report["synced"]} == {0}, (
        "waits beside those of the model's move to the card"
    )
    assert report["missing_mark_steps"] == [] and report["graphs"] > 0
    # Two of the loop and two of the optimizer's own a step; none counts outside the lazy mode.
    assert report["mark_steps"] == (32 if mode == "lazy" else 0)


FAULTS = {
    "lazy": [
        # (fault, recompilations, host syncs, missing marks)
        ("step(rows=5)", True, 0, 0),
        ("step(scale=0.123)", True, 0, 0),
        ("step(wait=True)", True, 1, 0),
        ("torch.hpu.synchronize()", False, 1, 0),
        ("step(mark=False); step(mark=False); htcore.mark_step()", False, 0, 3),
        ("batch = torch.ones(2, 3, device=device).int(); model(batch); model(batch); htcore.mark_step()", True, 0, 1),
        (
            "batch = torch.ones(2, 3, device=device).int(); model(batch).cpu(); model(batch); htcore.mark_step()",
            True,
            1,
            1,
        ),
        ("torch.ones(3).hpu(); htcore.mark_step()", False, 1, 0),
    ],
    "eager": [
        ("step(rows=5)", True, 0, 0),
        ("step(wait=True)", False, 1, 0),
        ("torch.hpu.current_stream().synchronize(); torch.hpu.Event().synchronize()", False, 2, 0),
        ("x = torch.ones(3, device='hpu'); x[x > 0]", True, 1, 0),
        ("step(mark=False); step(mark=False)", False, 0, 0),
        ("torch.tensor([0.5], device='hpu')", False, 1, 0),
    ],
}


@pytest.mark.parametrize("mode", ["lazy", "eager"])
def test_what_costs_is_counted(gaudi, mode):
    faults = [fault for fault, *_ in FAULTS[mode]]
    program = f"""
import json
from hpu_emulator import state
for _ in range(5): step()
for fault in {faults!r}:
    before = state.counters(), len(state.missing_mark_steps)
    exec(fault)
    after = state.counters(), len(state.missing_mark_steps)
    changes = [after[0][name] - before[0][name] for name in ("recompilations", "host_syncs")]
    print(json.dumps([*changes, after[1] - before[1]]))
"""
    for (fault, recompiles, *counts), line in zip(FAULTS[mode], gaudi.python(TRAIN + program, mode=mode).splitlines()):
        recompilations, *found = json.loads(line)
        assert (recompilations > 0) == recompiles and found == counts, (fault, line)
    (report,) = gaudi.reports()
    assert sum(sync["count"] for sync in report["synced"]) == report["host_syncs"]
    assert "<module>" in report["synced"][0]["where"]


def test_what_is_dropped_unread_is_not_timed(gaudi):
    """Lazy mode never computes it. Outside of a timed stretch nobody is told."""
    gaudi.python(
        """
import habana_frameworks.torch.core as htcore
import torch
a = torch.randn(4, 4, device="hpu")
torch.mm(a, a); htcore.mark_step(); torch.hpu.synchronize()
kept = torch.mm(a, a); htcore.mark_step(); torch.hpu.synchronize()
assert torch.mm(a, a).sum().item() is not None; torch.hpu.synchronize()
torch.mm(a, a, out=kept); htcore.mark_step(); torch.hpu.synchronize()
torch.mm(a, a); htcore.mark_step()
try: torch.hpu.synchronize()
except RuntimeError as error: assert "the result of aten::mm was dropped" in str(error), error
else: raise SystemExit("nothing was timed, and nobody told")
""",
        mode="lazy",
    )


def test_copies_to_the_host_that_nobody_waits_for_are_late(gaudi):
    gaudi.python("""
import torch
event, numbers = torch.hpu.Event(), torch.ones(3, device="hpu").to("cpu", non_blocking=True)
event.record()
assert numbers.isnan().all() and not event.query() and numbers.isnan().all()
assert event.query() and numbers.tolist() == [1, 1, 1]
numbers = torch.ones(3, device="hpu").to("cpu", non_blocking=True); event.record()
event.synchronize(); assert numbers.tolist() == [1, 1, 1]
""")
    assert gaudi.reports()[0]["host_syncs"] == 1


def test_a_lazy_tensor_does_not_tell_its_address(gaudi):
    statements = [
        "parameter = next(model.parameters()); parameter.data_ptr()",
        "parameter.untyped_storage().data_ptr()",
    ]
    assert all("stale" in line for line in refusals(gaudi, statements, mode="lazy"))


def test_graphs_of_inference(gaudi):
    """One a shape; the next call of a shape overwrites what the last one gave; no gradients."""
    gaudi.python(
        """
import habana_frameworks.torch.core as htcore
import torch
from habana_frameworks.torch.hpu import wrap_in_hpu_graph
class Model(torch.nn.Module):
    def forward(self, x): return {"y": x * 2}
model = wrap_in_hpu_graph(Model())
with torch.no_grad():
    first = model(torch.ones(2, device="hpu"))["y"]
    again = model(torch.full((2,), 3.0, device="hpu"))["y"]
    other = model(torch.ones(3, device="hpu"))["y"]
assert first.tolist() == again.tolist() == [6, 6] and other.tolist() == [2, 2, 2]
try: model(torch.ones(2, device="hpu"))
except RuntimeError as error: assert "gradients" in str(error)
else: raise SystemExit("a replayed graph has no gradients")
""",
        mode="lazy",
    )
    assert gaudi.reports()[0]["inference_graphs"] == 2


def refusals(gaudi, statements: list[str], mode: str = "eager") -> list[str]:
    program = f"""
for statement in {statements!r}:
    try: exec(statement); print("nothing")
    except Exception as error: print(" ".join(str(error).split()))
"""
    return gaudi.python(TRAIN + program, mode=mode).splitlines()


def test_what_gaudi_forbids_fails(gaudi):
    expected = {
        "torch.ones(2, device='hpu') * torch.ones(2)": "same device",
        "torch.nn.Linear(2, 2).to('hpu')(torch.ones(1, 2))": "device",
        "torch.index_select(torch.ones(3, device='hpu'), 0, torch.tensor([1]))": "device",
        "torch.ones(2, device='hpu').numpy()": "numpy",
        "torch.hpu.empty_cache()": "empty_cache",
        "from habana_frameworks.torch.hpex import hmp": "hmp",
        "import habana_frameworks.torch.core.hccl": "hccl",
        "import torch.distributed as d; d.init_process_group('hccl', device_id=0)": "device_id",
        "FusedLamb(torch.nn.Linear(2, 2).parameters())": "after the model has moved",
        "optimizer.zero_grad(set_to_none=True)": "set_to_none",
        "torch.hpu.get_rng_state(1)": "one random state",
    }
    for (statement, words), line in zip(expected.items(), refusals(gaudi, list(expected)), strict=True):
        assert words in line, (statement, line)
    statement = "import habana_frameworks.torch.dynamo.compile_backend as c; c._hpu_backend(None, [])"
    assert "PT_HPU_LAZY_MODE=0" in refusals(gaudi, [statement], mode="lazy")[0]


@pytest.mark.parametrize(
    ("program", "refusal", "variables"),
    [
        (
            "import torch, habana_frameworks.torch; torch.ones(1, device='hpu')",
            "PT_HPU_LAZY_MODE is not set",
            {"PT_HPU_LAZY_MODE": None},
        ),
        ("import torch", "no Habana software reads PT_HPU_LAZYMODE", {"PT_HPU_LAZYMODE": "1"}),
        ("import torch, os; os.environ['PT_HPU_LAZY_MODE'] = '1'; torch.ones(1, device='hpu')", "too late", {}),
        ("import torch; torch.ones(1, device='hpu')", "cards and ranks would not line up", {"WORLD_SIZE": "2"}),
        (
            "import torch; torch.ones(1, device='hpu')",
            "not among",
            {"HABANA_VISIBLE_MODULES": "1", "HLS_MODULE_ID": "0"},
        ),
        ("import torch, os; torch.ones(1, device='hpu'); os.fork() or torch.ones(1, device='hpu')", "forked", {}),
    ],
)
def test_environments_that_gaudi_refuses(gaudi, program, refusal, variables):
    done = gaudi.run(["-c", program], **{"PT_HPU_LAZY_MODE": "0", **variables})
    assert refusal in done.stderr, done.stderr[-2000:]


def test_beside_the_plugin_the_cpu_needs_no_variable_and_no_card(gaudi):
    """transformers seeds every device it finds: a run with --no_cuda on a Gaudi server must pass that."""
    gaudi.python("from transformers import set_seed; set_seed(1)", PT_HPU_LAZY_MODE=None)
    assert gaudi.reports() == []


def test_a_card_serves_one_process(gaudi):
    second = (
        "import os, subprocess, sys, torch\n"
        "torch.ones(1, device='hpu')\n"
        "code = 'import torch; torch.ones(1, device=\"hpu\"); from hpu_emulator import state; print(state.module_id)'\n"
        "done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)\n"
        "print(done.stdout, done.stderr)"
    )
    assert gaudi.python(second).split() == ["1"]
    assert [report["module_id"] for report in gaudi.reports()] == [1, 0]
    assert all(report["emulator"].startswith("test double") for report in gaudi.reports())
    assert "a card serves one process only" in gaudi.python(second, HLS_MODULE_ID="3")
    assert "a card serves one process only" in gaudi.python(second, HABANA_VISIBLE_MODULES="2")


def test_compiled_graphs_are_counted(gaudi):
    gaudi.python("""
import torch
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 1)).to("hpu")
expected = model(torch.ones(2, 4, device="hpu"))
compiled = torch.compile(model, backend="hpu_backend", dynamic=False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
for rows in (2, 2, 2, 2, 3):
    loss = compiled(torch.ones(rows, 4, device="hpu"))
    assert torch.allclose(loss[:2], expected)
    loss.sum().backward(); optimizer.step(); optimizer.zero_grad()
""")
    (report,) = gaudi.reports()
    assert [graph["what"].split(" of ")[0].split()[0] for graph in report["recompiled"]].count("compiled") == 2


def test_graphs_of_unknown_sizes_and_giving_up_are_counted(gaudi):
    """What torch does of itself with a second and with a ninth shape."""
    for program, counts in (
        ("torch.compile(model, backend='hpu_backend')", (True, False)),
        ("torch.compile(model, backend='hpu_backend', dynamic=False)", (False, True)),
    ):
        gaudi.python(f"""
import torch
model = torch.nn.Linear(4, 4).to("hpu")
compiled = {program}
torch._dynamo.config.recompile_limit = 3
for rows in range(2, 7):
    compiled(torch.ones(rows, 4, device="hpu"))
""")
        report = gaudi.reports()[-1]
        assert (report["dynamic_graphs"] > 0, report["recompile_limits"] > 0) == counts, report


def test_the_backward_pass_is_compiled_where_it_is_asked_for(gaudi):
    program = """
import torch
layer = torch.nn.Linear(4, 4).to("hpu")
for _ in range(2):
    torch.compile(layer, backend="hpu_backend", dynamic=False)(torch.ones(2, 4, device="hpu")).sum().backward()
from torch._dynamo.utils import counters
print(counters["compiled_autograd"]["captures"])
"""
    assert gaudi.python(program).split() == ["0"]
    assert gaudi.python(program, PT_HPU_ENABLE_COMPILED_AUTOGRAD="1").split() != ["0"]


@pytest.mark.mpi
def test_two_ranks_over_hccl(gaudi):
    out = gaudi.python(
        """
import habana_frameworks.torch, os, torch, torch.distributed as dist
dist.init_process_group("hccl")
tensor = torch.full((2,), float(dist.get_rank() + 1), device="hpu")
dist.all_reduce(tensor)
assert tensor.tolist() == [3, 3]
work = dist.all_reduce(tensor, async_op=True)
assert work.get_future().done() and tensor.isnan().all(), "its future comes before its result"
work.wait()
assert tensor.tolist() == [6, 6]
try:
    dist.all_reduce(torch.ones(1))
except RuntimeError as error:
    assert "cpu" in str(error)
else:
    raise SystemExit("hccl took a tensor of the host")
host = torch.tensor([1]); dist.all_reduce(host, group=dist.new_group(backend="gloo")); assert host.item() == 2
torch.manual_seed(0)
model = torch.nn.parallel.DistributedDataParallel(
    torch.nn.Linear(2, 2).to("hpu"), gradient_as_bucket_view=True, bucket_cap_mb=230
)
model(torch.ones(1, 2, device="hpu") * (dist.get_rank() + 1)).sum().backward()
assert model.module.weight.grad.tolist() == [[1.5, 1.5]] * 2
from hpu_emulator import state
print(f"card{state.module_id}", flush=True)
dist.barrier(); dist.destroy_process_group()
""",
        ranks=2,
        MASTER_PORT=str(free_port()),
        mode="lazy",
    )
    assert sorted(out.split()) == ["card0", "card1"]


# What Habana's bridge 1.19 has in these modules (python_packages/habana_frameworks/torch), as far as the double goes.
HABANAS = {
    "core": "mark_step",
    "distributed.hccl": "initialize_distributed_hpu",
    "dynamo.compile_backend": "",
    "dynamo.compile_backend.experimental": "enable_compiled_autograd",
    "hpex.kernels": "FusedSDPA",
    "hpex.normalization": "FusedClipNorm",
    "hpex.optimizers": "FusedAdamW FusedLamb",
    "hpu": "Event Stream current_device current_stream default_stream device device_count enable_recompute_sdp "
    "get_device_name get_device_properties init is_available is_bf16_supported sdp_kernel set_device stream "
    "synchronize wrap_in_hpu_graph",
    "hpu.memory": "max_memory_allocated mem_get_info memory_allocated memory_reserved memory_stats memory_summary "
    "reset_peak_memory_stats",
    "hpu.metrics": "metric_global",
    "hpu.random": "get_rng_state get_rng_state_all manual_seed manual_seed_all set_rng_state set_rng_state_all",
    "utils._weights_only_unpickler": "Unpickler load",
    "utils.experimental": "synDeviceType",
    "utils.internal": "is_lazy",
}
SIGNATURES = {
    "hpex.optimizers:FusedLamb": "(params, lr=0.001, bias_correction=True, betas=(0.9, 0.999), eps=1e-06, "
    "weight_decay=0.01, amsgrad=False, adam_w_mode=True, grad_averaging=True, set_grad_none=True, max_grad_norm=1.0, "
    "use_lamb=False, fused=False, dtype=None)",
    "hpex.optimizers:FusedAdamW": "(params, lr=0.001, betas=(0.9, 0.999), eps=1e-06, weight_decay=0.0, "
    "bias_correction=True, moments_dtype=None)",
    "hpex.optimizers:FusedLamb.zero_grad": "(self)",
    "hpex.normalization:FusedClipNorm": "(parameters, max_norm)",
    "hpex.normalization:FusedClipNorm.clip_norm": "(self, parameters)",
    "hpex.kernels:FusedSDPA.forward": "(ctx, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, "
    "softmax_mode='None', recompute_mode=None, valid_seq_len=None, seq_padding_type='left', "
    "return_dropout_mask=False, return_attn_probs=False)",
    "distributed.hccl:initialize_distributed_hpu": "(world_size=None, rank=None, local_rank=None)",
    "core:mark_step": "()",
}


def test_names_and_signatures_are_habanas(gaudi):
    printed = gaudi.python(f"""
import importlib, inspect, json, operator, pkgutil, re
import habana_frameworks.torch as package
names, signatures = {{}}, {{}}
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    here, bare = vars(importlib.import_module(module.name)), module.name.removeprefix(package.__name__ + ".")
    own = sorted(n for n, x in here.items() if n[0] != "_" and getattr(x, "__module__", "") == module.name)
    if own or bare in {list(HABANAS)!r}:
        names[bare] = " ".join(own)
for path in {list(SIGNATURES)!r}:
    module, name = path.split(":")
    thing = operator.attrgetter(name)(importlib.import_module(package.__name__ + "." + module))
    signatures[path] = re.sub(" ->.*", "", str(inspect.signature(thing)))
print(json.dumps([names, signatures]))
""")
    assert json.loads(printed) == [HABANAS, SIGNATURES]


def test_hl_smi(gaudi):
    def ask(*words):
        return subprocess.run(
            ["hl-smi", *words], env=gaudi.environment(), capture_output=True, text=True, check=True
        ).stdout

    assert len(ask("-L").splitlines()) == 8
    assert ask("-Q", "index,module_id", "-f", "csv").splitlines()[:2] == ["index, module_id", "0, 0"]
    assert ask("-Q", "name,memory.total", "-f", "csv,noheader,nounits").splitlines()[0] == "HL-225, 98304"


def test_library_is_built_for_this_torch():
    if build.compiler() is None:
        pytest.skip("no g++ on the PATH")
    assert torch.__version__ in build.library().name
