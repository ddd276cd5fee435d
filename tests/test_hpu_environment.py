"""central/runtime/environment.py and the shipped op lists: what a script sets before torch, and what it refuses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from central.runtime import environment
from central.runtime.exits import BadRequest

ROOT = Path(__file__).resolve().parents[1]
LISTS = [ROOT / f"ops_{data_type}_{name}.txt" for data_type in ("bf16", "fp32") for name in ("bert", "bert_pt")]


def in_new_process(code: str, *argv: str, **variables: str) -> subprocess.CompletedProcess:
    """Run `code` with `argv`, in an environment that holds no Gaudi variable but `variables`."""
    environ = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run([sys.executable, "-c", code, *argv], env=environ, capture_output=True, text=True, cwd=ROOT)


def applied(*argv: str, **variables: str) -> dict[str, str]:
    """The PT_HPU_* variables after `apply` in a process that has not imported torch."""
    code = (
        "import os, sys; from central.runtime import environment; environment.apply_or_exit()\n"
        "assert 'torch' not in sys.modules\n"
        "print(*(f'{k}={v}' for k, v in os.environ.items() if k.startswith('PT_HPU')), sep='\\n')"
    )
    done = in_new_process(code, *argv, **variables)
    assert done.returncode == 0, done.stderr
    found = dict(line.split("=", 1) for line in done.stdout.split())
    if found:
        assert found.pop("PT_HPU_AUTOLOAD") == "1"
    return found


@pytest.mark.parametrize(
    "argv", [[], ["--no_cuda", "--use_lazy_mode"], ["--use_habana=False"], ["--hmp", "--hmp_bf16=x"]]
)
def test_nothing_is_set_without_hpu(argv):
    assert applied(*argv) == {}


def test_modes_and_lists():
    assert applied("--use_habana") == {"PT_HPU_LAZY_MODE": "0"}
    assert applied("--use_habana", "--use_lazy_mode") == {"PT_HPU_LAZY_MODE": "1"}
    compiled = {"PT_HPU_LAZY_MODE": "0", "PT_HPU_ENABLE_COMPILED_AUTOGRAD": "1"}
    assert applied("--use_habana", "--torch_compile", "True", "--output_dir", "o") == compiled
    kept = {"PT_HPU_ENABLE_COMPILED_AUTOGRAD": "0"}
    assert applied("--use_habana", "--torch_compile", **kept) == {**compiled, **kept}
    lists = {
        "PT_HPU_LAZY_MODE": "1",
        "PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST": str(ROOT / "ops_bf16_bert_pt.txt"),
        "PT_HPU_AUTOCAST_FP32_OPS_LIST": str(ROOT / "ops_fp32_bert_pt.txt"),
    }
    files = ["--hmp_bf16=./ops_bf16_bert_pt.txt", "--hmp_fp32", "./ops_fp32_bert_pt.txt"]
    assert applied("--hmp", *files, "--use_lazy_mode", "--use_habana") == lists
    assert applied("--use_habana", "--hmp", "--hmp_bf16=", "--hmp_fp32=") == {"PT_HPU_LAZY_MODE": "0"}


def test_equal_values_of_the_launcher_agree(tmp_path):
    link = tmp_path / "ops.txt"
    link.symlink_to(ROOT / "ops_bf16_bert.txt")
    values = {"PT_HPU_LAZY_MODE": "0", "PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST": str(link)}
    assert applied("--use_habana", "--hmp_bf16=ops_bf16_bert.txt", **values) == values


def test_autoload_of_the_caller_stays():
    environ = {"PT_HPU_LAZY_MODE": "0"}
    environment.apply(["--use_habana"], environ)
    assert environ == {"PT_HPU_LAZY_MODE": "0"}, "torch is imported already: the plugin would not be loaded by it"
    code = "from central.runtime import environment as e; v = {'PT_HPU_AUTOLOAD': '0'}; e.apply(['--use_habana'], v); print(v)"  # noqa: E501
    assert "'PT_HPU_AUTOLOAD': '0'" in in_new_process(code).stdout


def test_ranks_are_named_before_the_plugin_names_them():
    """Habana's names under mpirun leave out how many ranks a server has: all of them would seem to be on it."""
    counts = {"RANK": "9", "LOCAL_RANK": "1", "SIZE": "16", "LOCAL_SIZE": "8"}
    environ = {"PT_HPU_LAZY_MODE": "0", **{f"OMPI_COMM_WORLD_{name}": value for name, value in counts.items()}}
    environment.apply(["--use_habana"], environ)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    assert [environ[name] for name in names] == ["9", "1", "16", "8"]


def test_every_problem_is_told_at_once(tmp_path):
    dead = tmp_path / "dead.txt"
    dead.write_text("add\niadd\ntruediv\n")
    done = in_new_process(
        "from central.runtime import environment; environment.apply_or_exit()",
        *("--use_habana", "--use_lazy_mode", "--torch_compile", f"--hmp_bf16={dead}", "--hmp_fp32=/no/such/file"),
        PT_HPU_LAZY_MODE="0",
    )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 5 and all(line.startswith("error: ") for line in lines)
    assert "leave out --use_lazy_mode" in lines[0]
    assert "line 2" in lines[1] and "'iadd' is now named 'add'" in lines[1]
    assert "line 3" in lines[2] and "'true_divide'" in lines[2]
    assert "/no/such/file" in lines[3]
    assert "PT_HPU_LAZY_MODE" in lines[4] and "'0'" in lines[4] and "'1'" in lines[4]


def test_too_late_after_torch():
    with pytest.raises(BadRequest, match="PT_HPU_LAZY_MODE=1 comes too late, torch has been imported"):
        environment.apply(["--use_habana", "--use_lazy_mode"], environ={})
    environment.apply(["--use_habana", "--use_lazy_mode"], environ={"PT_HPU_LAZY_MODE": "1"})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("cross_entropy\n", "now named 'cross_entropy_loss'"),
        ("add\r\nmm\n", "'add\\\\r' is not one bare op name"),
        ("# our ops\n", "not one bare op name"),
        (" linear\n", "not one bare op name"),
        ("add_\n", "in-place and out forms"),
        ("mm_out", "name 'mm'"),
    ],
)
def test_lines_that_habana_would_pass_over(tmp_path, text, problem):
    file = tmp_path / "ops.txt"
    file.write_bytes(text.encode())
    with pytest.raises(BadRequest, match=problem):
        environment.apply(["--use_habana", f"--hmp_bf16={file}"], environ={"PT_HPU_LAZY_MODE": "0"})


def test_a_pipe_or_device_is_no_list(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(BadRequest, match=f"--hmp_fp32 {path}: is no regular file"):
            environment.apply(["--use_habana", f"--hmp_fp32={path}"], environ={"PT_HPU_LAZY_MODE": "0"})


@pytest.mark.parametrize("file", LISTS, ids=lambda file: file.name)
def test_shipped_lists_name_living_ops_once(file):
    names = file.read_text().splitlines()
    assert environment.op_list_problems("--hmp", file) == []
    assert [name for name in names if not hasattr(torch.ops.aten, name)] == []
    assert len(set(names)) == len(names)


def test_shipped_lists_keep_what_matters():
    """A list replaces Habana's own: the matrix products stay in bf16, losses and divisions by counts in fp32."""
    for name in ("bert", "bert_pt"):
        bf16 = set((ROOT / f"ops_bf16_{name}.txt").read_text().split())
        fp32 = set((ROOT / f"ops_fp32_{name}.txt").read_text().split())
        assert {"scaled_dot_product_attention", "mean", "baddbmm", "bmm", "linear", "matmul", "softmax"} <= bf16
        assert {"embedding", "nll_loss", "cross_entropy_loss", "log_softmax", "true_divide", "div"} <= fp32
        # `add` promotes by default: in bf16 it would round the sum of the two losses to 1/16 at a loss of 11.
        assert not bf16 & (fp32 | {"add", "mul"})
