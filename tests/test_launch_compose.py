"""Words and numbers: batch arithmetic, hosts, cores, mpirun of both versions, environment, scripts."""

import json
import os
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest

from central import files, meeting
from central.errors import BadRequest
from central.launch import batch, child_environment, cli, hcl, hosts, machine, mpi, run_record, supervise
from central.launch.hosts import Layout, plan_layout
from central.launch.machine import Topology, cores_per_rank, this_machine
from central.launch.supervise import Failure, Listener, first_failure

DRY = ["--dry_run", "--mpi", "openmpi4", "--node_topology", "2x28"]
PRETRAINING = "pretraining --model_name_or_path base --data_type fp32 --data_dir /a /b --accumulate_gradients".split()
FINETUNING = "finetuning --model_name_or_path base".split()
FUSED = ["--use_fused_adam", "--use_fused_clip_norm"]  # composed for every device, as the reference does


def lines(capsys, *words):
    status = cli.main([*words, *DRY])
    out, err = capsys.readouterr()
    assert status == 0, err
    return out.splitlines()


def refused(capsys, *words):
    assert cli.main([*words, *DRY]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


# Batch arithmetic


@pytest.mark.parametrize(
    ("size", "world_size", "micro_batch_size", "text"),
    [
        (64, 1, 64, "64 sequences a step = 1 rank x 1 micro-steps x 64 sequences"),
        (48, 2, 4, "48 sequences a step = 2 ranks x 6 micro-steps x 4 sequences"),
    ],
)
def test_a_batch_says_how_it_is_divided(size, world_size, micro_batch_size, text):
    accumulate = size > world_size * micro_batch_size  # one micro-step needs no leave
    assert str(batch.split(size, world_size, micro_batch_size, accumulate)) == text


@pytest.mark.parametrize(("asked", "port"), [(True, "777"), (False, "0")])
@pytest.mark.parametrize("run_id", ["", "abc"])
def test_torchrun_meets_at_the_callers_port_or_any_under_the_runs_id(asked, port, run_id):
    words = mpi.torchrun("python", Layout(3, 3), machine.MeetingPoint("localhost", "777", asked), run_id)
    assert words[words.index("--rdzv_endpoint") + 1] == f"localhost:{port}"
    assert words[words.index("--nproc_per_node") + 1] == "3" and words[words.index("--local_addr") + 1] == "localhost"
    assert words[words.index("--local_addr") + 2 :] == (["--rdzv_id", run_id] if run_id else [])


def test_only_the_hosts_of_an_allocation_are_reached_by_srun():
    here, allocated, named = Layout(8, 8), Layout(4, 2, ("a", "b")), Layout(4, 2, ("a", "b"), "x", by_ssh=True)
    assert [layout.in_slurm for layout in (here, allocated, named)] == [False, True, False]


@pytest.mark.parametrize(
    ("choice", "dry_run", "root", "usual_is_there", "prefix"),
    [
        ("auto", False, None, True, "/found"),
        ("auto", False, "/root", True, "/root"),
        ("auto", True, None, True, mpi.DEFAULT_PREFIX),
        ("openmpi5", False, None, True, mpi.DEFAULT_PREFIX),
        ("openmpi5", False, None, False, "/found"),
        ("openmpi5", True, None, False, mpi.DEFAULT_PREFIX),
    ],
)
def test_where_mpirun_is_installed(monkeypatch, choice, dry_run, root, usual_is_there, prefix):
    """MPI_ROOT, else in a real run where the one found is; with --mpi the usual place goes before that."""
    monkeypatch.setattr(mpi, "_found_prefix", lambda: "/found")
    monkeypatch.setattr(mpi.os.path, "isdir", lambda path: usual_is_there)
    settings = SimpleNamespace(mpi=choice, dry_run=dry_run)
    capture = lambda argv: SimpleNamespace(stdout="mpirun (Open MPI) 5.0.11")  # noqa: E731
    assert mpi.mpirun(settings, {"MPI_ROOT": root} if root else {}, capture) == mpi.Mpi(5, prefix)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 6, 7, 8, 12, 32])
@pytest.mark.parametrize("micro_batch_size", [1, 4, 6, 64])
@pytest.mark.parametrize("global_batch_size", [1, 60, 64, 100, 8192, 65536])
def test_batches_are_exact_or_refused_with_sizes_that_are_exact(global_batch_size, world_size, micro_batch_size):
    def product(steps):
        return steps.world_size * steps.grad_accum_steps * steps.micro_batch_size

    try:
        steps = batch.split(global_batch_size, world_size, micro_batch_size, accumulate=True)
    except ValueError as error:
        unit = world_size * micro_batch_size
        remedies = [int(word) for word in str(error).split("nearest exact: ")[1].split(" or ")]
        assert global_batch_size % unit and all(remedy % unit == 0 for remedy in remedies)
        assert min(abs(remedy - global_batch_size) for remedy in remedies) < unit
        for remedy in remedies:
            assert product(batch.split(remedy, world_size, micro_batch_size, accumulate=True)) == remedy
    else:
        assert product(steps) == global_batch_size == steps.per_rank * world_size


def test_a_rank_never_silently_gets_another_batch_than_asked_for(capsys):
    words = [word for word in PRETRAINING if word != "--accumulate_gradients"]
    err = refused(capsys, *words, "--device", "cpu")
    assert "add --accumulate_gradients (1024 micro-steps), or give --train_batch_size 64" in err
    (first, _) = lines(capsys, *words, "--train_batch_size", "64", "8", "--device", "cpu")
    assert "--train_batch_size=64" in first and "gradient_accumulation_steps" not in first


def test_only_phases_that_run_are_checked(capsys):
    words = ["--train_batch_size", "64", "7", "--phase", "1", "--device", "cpu"]
    assert len(lines(capsys, *PRETRAINING, *words)) == 1


# Phases


def test_base_trains_base(capsys):
    for line in lines(capsys, *PRETRAINING, "--device", "cpu"):
        assert "bert_base_config.json" in line and "--bert_model=bert-base-uncased" in line


@pytest.mark.parametrize(
    ("checkpoints", "first", "second"),
    [
        (("None", "None"), [], ["--resume_from_checkpoint", "--phase1_end_step=7038", "--phase2"]),
        (
            ("None", "/c/ckpt_12.pt"),
            [],
            ["--resume_from_checkpoint", "--init_checkpoint=/c/ckpt_12.pt", "--resume_step", "12", "--phase2"],
        ),
        (
            ("/c/ckpt_7038.pt", "None"),
            ["--resume_from_checkpoint", "--init_checkpoint=/c/ckpt_7038.pt", "--resume_step", "7038"],
            ["--resume_from_checkpoint", "--phase1_end_step=7038", "--phase2"],
        ),
        (("/c/model.bin", "None"), ["--resume_from_checkpoint", "--init_checkpoint=/c/model.bin"], None),
    ],
)
def test_where_phases_start(capsys, checkpoints, first, second):
    found = lines(capsys, *PRETRAINING, "--device", "cpu", "--init_checkpoint", *checkpoints)
    for line, expected in zip(found, (first, second)):
        if expected is not None:
            words = line.split()
            assert words[words.index("--steps_this_run=-1") + 1 :] == expected


def test_resume_step_without_a_checkpoint_is_passed_on(capsys):
    first, _ = lines(capsys, *PRETRAINING, "--device", "cpu", "--resume_from_checkpoint", "--resume_step", "5", "None")
    assert first.endswith("--resume_from_checkpoint --resume_step 5")


def test_a_model_goes_on_from_its_own_weights_in_the_first_phase(capsys, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    words = [word.replace("base", str(tmp_path)) for word in PRETRAINING]
    first, second = lines(capsys, *words, "--device", "cpu")
    assert f"--config_file={tmp_path}/config.json" in first and f"--config_file={tmp_path}/config.json" in second
    assert f"--bert_model={tmp_path.name}" in first
    assert f"--resume_from_checkpoint --init_checkpoint={tmp_path}" in first
    assert "--init_checkpoint" not in second and "--phase1_end_step=7038" in second
    (alone,) = lines(capsys, *words, "--device", "cpu", "--phase", "2")
    assert f"--init_checkpoint={tmp_path}" in alone
    hub = [word.replace("base", "some/bert") for word in PRETRAINING]
    assert "--init_checkpoint=some/bert" in lines(capsys, *hub, "--device", "cpu")[0]


def test_an_untrained_model_is_called_as_the_user_called_it(capsys):
    words = [word.replace("base", "tiny") for word in PRETRAINING]
    assert all("--bert_model=tiny " in line for line in lines(capsys, *words, "--device", "cpu"))


def test_the_root_of_prepared_data_gives_each_phase_its_folder(capsys, tmp_path):
    folders = [tmp_path / f"hdf5_seq_len_{length}_max_pred_20" / "corpus" for length in (128, 512, 1280)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "corpus_training_0.hdf5").touch()
        (folder / "corpus_test_0.hdf5").touch()
    words = [word for word in PRETRAINING if word not in ("/a", "/b")]
    words.insert(words.index("--data_dir") + 1, str(tmp_path))
    found = lines(capsys, *words, "--device", "cpu")
    assert [f"--input_dir={folder}" in line for line, folder in zip(found, folders)] == [True, True]
    other = tmp_path / "hdf5_seq_len_128_max_pred_20" / "other"
    other.mkdir()
    (other / "other_training_0.hdf5").touch()
    err = refused(capsys, *words, "--device", "cpu")
    assert "holds several folders of sequences of 128 tokens" in err and str(other) in err


def test_many_servers_are_told_one_address_and_where_mpirun_lies(capsys, monkeypatch):
    monkeypatch.setenv("MULTI_HLS_IPS", "10.0.0.1,10.0.0.2")
    monkeypatch.delenv("MPI_ROOT", raising=False)
    words = [*PRETRAINING, "--world_size", "16", "--process_per_node", "8", "--device", "cpu", *DRY]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert all(line.count("MASTER_ADDR=") == line.count("MASTER_PORT=") == 1 for line in out.splitlines())
    assert "--prefix /usr/local/openmpi: where Open MPI is on every host; MPI_ROOT names another folder" in err


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("/a/ckpt_7038.pt", 7038),
        ("ckpt_5", 5),
        ("/a/ckpt_5/", 5),
        ("/a/best.pt", None),
        ("ckpt_.pt", None),
        ("a_b", None),
    ],
)
def test_the_step_in_a_checkpoint_name(name, step):
    assert files.checkpoint_step(name) == step


def test_dist_means_8_ranks_in_both_subcommands(capsys):
    finetuning = "finetuning --model_name_or_path base --data_type fp32 --device hpu --dist".split()
    for line in [*lines(capsys, *PRETRAINING, "--device", "hpu", "--dist"), *lines(capsys, *finetuning)]:
        assert " mpirun -n 8 " in line


# Fine-tuning


@pytest.mark.parametrize("task", ["mrpc", "SQuAD", "squad_v2", "sst2"])
def test_a_task_brings_its_own_data_set(capsys, task):
    (line,) = lines(capsys, *"finetuning --model_name_or_path base --data_type fp32 -d cpu -t".split(), task)
    assert f"--dataset_name={task.lower()} " in line
    assert ("run_qa.py" in line) == task.lower().startswith("squad")
    assert ("--version_2_with_negative" in line) == (task == "squad_v2")


def test_local_files_win_over_names(capsys):
    words = "finetuning --model_name_or_path base --data_type fp32 -d cpu --dataset_name x --train_file /a/b.json"
    (line,) = lines(capsys, *words.split())
    assert "--train_file=/a/b.json" in line and "dataset_name" not in line and "--task_name=MRPC" in line


@pytest.mark.parametrize(
    ("device", "present", "absent"),
    [
        ("hpu", ["--hmp", "--use_habana", *FUSED], ["--bf16", "--no_cuda"]),
        ("cpu", ["--bf16", "--no_cuda", *FUSED], ["--hmp", "--use_habana", "--use_lazy_mode"]),
        ("cuda", ["--bf16", *FUSED], ["--hmp", "--no_cuda", "--use_habana"]),
    ],
)
def test_words_of_a_device(capsys, device, present, absent):
    words = f"finetuning --model_name_or_path large --data_type bf16 -d {device}"
    found = lines(capsys, *words.split())[0].split()
    assert set(present) <= set(found) and not set(absent) & set(found)


@pytest.mark.parametrize("mode", ["graph", "compile"])
def test_graph_and_compile_are_one(capsys, mode):
    (line,) = lines(capsys, *f"finetuning --model_name_or_path large --data_type fp32 -d hpu --mode {mode}".split())
    assert "--torch_compile" in line and "PT_HPU_LAZY_MODE=0" in line and "--use_lazy_mode" not in line


@pytest.mark.parametrize("words", [PRETRAINING, [*FINETUNING, "--data_type", "fp32"]], ids=["pre", "fine"])
def test_habanas_attention_is_handed_to_the_script(capsys, words):
    for line in lines(capsys, *words, "--device", "hpu", "--fused_sdpa"):
        assert " --fused_sdpa " in line
    assert not any("fused_sdpa" in line for line in lines(capsys, *words, "--device", "hpu"))


def test_inference_graphs_are_handed_to_the_script_of_fine_tuning(capsys):
    words = [*FINETUNING, "--data_type", "fp32", "--device", "hpu", "--mode", "lazy"]
    (line,) = lines(capsys, *words, "--use_hpu_graphs_for_inference")
    assert " --use_hpu_graphs_for_inference " in line
    assert "hpu_graphs" not in lines(capsys, *words)[0]
    assert "unknown flag --use_hpu_graphs" in refused(capsys, *PRETRAINING, "--use_hpu_graphs_for_inference")


def test_several_seeds_are_several_runs_and_a_summary(capsys):
    words = (
        "finetuning --model_name_or_path base --data_type fp32 -d cpu --do_eval --seeds 3 --seed 7 -o /o --world_size 2"
    )
    *runs, summary = lines(capsys, *words.split())
    for seed, line in zip((7, 8, 9), runs, strict=True):
        assert f"--seed={seed} " in line and f"--output_dir=/o/mrpc/seed_{seed} " in line and " mpirun -n 2 " in line
    assert (
        summary.endswith("central/finetuning/summarize_seeds.py --output_dir /o/mrpc --seeds 7 8 9")
        and "mpirun" not in summary
    )


def test_a_summary_needs_scores(capsys):
    words = "finetuning --model_name_or_path base --data_type fp32 -d cpu --seeds 3"
    assert "--seeds 3 compares scores: add --do_eval" in refused(capsys, *words.split())


# Hosts


def layout(environ=None, **settings):
    asked = {"world_size": 1, "dist": False, "process_per_node": 0, "hostfile": None, **settings}
    return plan_layout(**asked, environ=environ or {})


def test_addresses_count_with_process_per_node_only():
    environ = {"MULTI_HLS_IPS": "10.0.0.1, 10.0.0.2-ib0,node-3"}
    assert layout(environ, world_size=6).hosts == ()
    assert layout(environ, world_size=6, process_per_node=2).hosts == ("10.0.0.1", "10.0.0.2", "node-3")


@pytest.mark.parametrize(
    ("environ", "settings", "remedy"),
    [
        ({"MULTI_HLS_IPS": "a,b"}, {"world_size": 8, "process_per_node": 3}, "--world_size 6"),
        ({"MULTI_HLS_IPS": "a,a"}, {"world_size": 8, "process_per_node": 4}, "twice"),
        ({}, {"world_size": 8, "process_per_node": 4}, "2 hosts: name them in MULTI_HLS_IPS"),
        ({}, {"world_size": 1, "process_per_node": 3}, "3 is more than --world_size 1, all ranks: give --world_size 3"),
        ({"SLURM_JOB_NODELIST": "n[1-3]"}, {"world_size": 8}, "3 hosts"),
        ({"SLURM_JOB_NODELIST": "n[1-3]"}, {"world_size": 2}, "give --world_size 3"),
        ({}, {"hostfile": "/does/not/exist"}, "No such file"),
    ],
)
def test_hosts_and_ranks_must_agree(environ, settings, remedy):
    with pytest.raises(BadRequest, match=remedy):
        layout(environ, **settings)


def test_a_hostfile_in_place_of_addresses(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# ours\nnode1 slots=4\n\nnode2 slots=4 # new\n")
    found = layout({"MULTI_HLS_IPS": "a,b"}, hostfile=str(file))
    assert (found.hosts, found.ranks_per_node, found.world_size) == (("node1", "node2"), 4, 8)
    assert layout(hostfile=str(file), world_size=4, process_per_node=2).world_size == 4


REFUSED = ["", "a slots=x\n", "a slots=2\na slots=2\n", "a slots=2\nb slots=3\n", "a b c\n", "a:4\n"]
REFUSED += [f"a slots={'9' * 5000}\n", "a slots=1٣\n", "Host slots=1\nhost slots=1\n"]


@pytest.mark.parametrize("content", REFUSED)
def test_hostfiles_that_are_refused(tmp_path, content):
    (tmp_path / "hosts").write_text(content)
    with pytest.raises(BadRequest):
        layout(hostfile=str(tmp_path / "hosts"))


def test_slots_written_as_mpich_has_them_are_told_as_they_are_written_here(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("nodea:8\nnodeb:8\n")
    with pytest.raises(BadRequest) as told:
        layout(hostfile=str(file))
    where = f"--hostfile {file}, line"
    assert told.value.problems == (f"{where} 1: write nodea slots=8", f"{where} 2: write nodeb slots=8")
    file.write_text("[fe80::1]\nfe80::2\n")  # addresses
    assert layout(hostfile=str(file)).hosts == ("[fe80::1]", "fe80::2")


def test_long_hostfiles_are_read_in_a_moment_and_refused_in_a_few_lines(tmp_path):
    (tmp_path / "hosts").write_text("\ufeff" + "".join(f"h{n} slots=8\n" for n in range(100_000)))
    assert layout(hostfile=str(tmp_path / "hosts")).world_size == 800_000
    (tmp_path / "hosts").write_text("h slots=x\n" * 100_000)
    with pytest.raises(BadRequest) as refused:
        layout(hostfile=str(tmp_path / "hosts"))
    assert len(refused.value.problems) == 20


def test_a_host_with_too_few_slots_is_named(tmp_path):
    (tmp_path / "hosts").write_text("a slots=4\nb slots=2\n")
    with pytest.raises(BadRequest, match="fewer than --process_per_node 4 slots on b$"):
        layout(hostfile=str(tmp_path / "hosts"), world_size=8, process_per_node=4)


@pytest.mark.parametrize(
    "content", [b"\x7fELF\x00\x01" * 900, "hosta slots=8\n".encode("utf-16"), b"caf\xe9 slots=2\n"]
)
def test_hostfiles_that_are_no_text_are_told_in_one_line(tmp_path, content):
    (tmp_path / "hosts").write_bytes(content)
    with pytest.raises(BadRequest) as refused:
        layout(hostfile=str(tmp_path / "hosts"))
    assert refused.value.problems == (f"--hostfile {tmp_path / 'hosts'}: no text; expected lines `HOST slots=N`",)


def test_a_host_named_twice_is_named(tmp_path):
    (tmp_path / "hosts").write_text("hosta slots=2\nhostb slots=2\nhosta slots=2\n")
    with pytest.raises(BadRequest, match="line 3: names hosta again"):
        layout(hostfile=str(tmp_path / "hosts"))
    with pytest.raises(BadRequest, match="MULTI_HLS_IPS names hostb twice: hosta, hostb, hostb"):
        layout({"MULTI_HLS_IPS": "hosta,hostb,hostb"}, world_size=12, process_per_node=4)


@pytest.mark.parametrize(("path", "fault"), [("/dev/zero", "a device, pipe or socket"), ("/tmp", "Is a directory")])
def test_what_is_no_file_is_not_read(path, fault):
    with pytest.raises(BadRequest, match=f"--hostfile {path}: {fault}"):
        layout(hostfile=path)


@pytest.mark.parametrize("name", ["-oProxyCommand=touch", "a b", "a;b", "--x", "$(a)"])
def test_words_that_are_no_hosts_never_reach_ssh(name):
    with pytest.raises(BadRequest, match="expected names or addresses of hosts"):
        layout({"MULTI_HLS_IPS": f"hosta,{name}"}, world_size=8, process_per_node=4)


@pytest.mark.parametrize("name", ["10.0.0.1", "fe80::1%eth0", "node-1.lan", "node_1", "user@node"])
def test_hosts_by_name_and_address(name):
    assert layout({"MULTI_HLS_IPS": f"hosta,{name}"}, world_size=8, process_per_node=4).hosts == ("hosta", name)


@pytest.mark.parametrize("named", [",,,", " , ", ","])
def test_addresses_that_name_nobody(named):
    with pytest.raises(BadRequest) as refused:
        layout({"MULTI_HLS_IPS": named}, world_size=8, process_per_node=4)
    assert refused.value.problems == (f"MULTI_HLS_IPS={named} names no host: give addresses between commas",)


@pytest.mark.parametrize("text", ["gaudi[a-b]", "gaudi[3-1]", "gaudi[]", "gaudi[1-2-3]", "gaudi[1-999999999]"])
def test_node_lists_that_are_none(text):
    with pytest.raises(BadRequest, match="SLURM_JOB_NODELIST"):
        layout({"SLURM_JOB_NODELIST": text}, world_size=8)


def test_a_version_of_mpirun_beside_torchrun_has_no_effect_and_that_is_said(capsys):
    words = [*FINETUNING, "--data_type=fp32", "--device=cpu", "--world_size=2", "--no_mpirun", *DRY]
    assert cli.main(words) == 0
    assert "--mpi openmpi4 has no effect beside --no_mpirun" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("", ()),
        ("login", ("login",)),
        ("gaudi[01-03,7],login", ("gaudi01", "gaudi02", "gaudi03", "gaudi7", "login")),
        ("a[1-2]b[3-4]", ("a1b3", "a1b4", "a2b3", "a2b4")),
        ("x-[09-11].lan", ("x-09.lan", "x-10.lan", "x-11.lan")),
    ],
)
def test_slurm_node_lists(text, nodes):
    assert hosts.expand_nodelist(text) == nodes


def test_a_node_list_cut_short_is_refused(capsys, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2")
    assert "SLURM_JOB_NODELIST=n[1-2 has brackets" in refused(capsys, *PRETRAINING, "--world_size", "16")


def test_a_node_list_that_is_not_used_is_not_read(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2")
    (tmp_path / "hosts").write_text("a slots=8\nb slots=8\n")
    lines(capsys, *PRETRAINING, "--device", "hpu", "--world_size", "16", "--hostfile", str(tmp_path / "hosts"))


def test_a_slurm_allocation_uses_its_nodes_and_no_ssh(capsys, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_NODELIST", "g[1-2]")
    (line, _) = lines(capsys, *PRETRAINING, "--device", "hpu", "--world_size", "16")
    assert "-H g1:56,g2:56 -n 16" in line and "plm_rsh_args" not in line


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"SLURM_JOB_NODELIST": "g[1-3]", "SLURM_NTASKS": "12"},
            "SLURM gave 3 nodes and 12 tasks, and this run is one rank: --world_size 12 uses all",
        ),
        (
            {"SLURM_JOB_NODELIST": "g[1-3]", "SLURM_NTASKS": "1"},
            "SLURM gave 3 nodes, and this run is one rank: --world_size N, a multiple of 3, uses all",
        ),
        (
            {"SLURM_JOB_NODELIST": "g1", "SLURM_NTASKS": "4"},
            "SLURM gave 4 tasks, and this run is one rank: --world_size 4 uses all",
        ),
        ({"SLURM_JOB_NODELIST": "g1", "SLURM_NTASKS": "1"}, ""),
        ({"SLURM_JOB_NODELIST": "g1"}, ""),
        ({"SLURM_NTASKS": "many"}, ""),
        ({}, ""),
    ],
)
def test_one_rank_in_a_larger_allocation_is_said(capsys, monkeypatch, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.main([*PRETRAINING, "--device", "cpu", *DRY]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "SLURM gave" in line]
    assert len(told) == bool(said) and all(said in line for line in told)
    several = ["--world_size", "12", "--train_batch_size", "768", "96"]
    assert cli.main([*PRETRAINING, "--device", "cpu", *several, *DRY]) == 0
    assert "SLURM gave" not in capsys.readouterr().err


# Cores and mpirun


@pytest.mark.parametrize(
    ("topology", "ranks", "cores"),
    [("2x28", 8, 7), ("2x28", 3, 14), ("2x28", 5, 9), ("2x28", 7, 7), ("2x28", 1, 28), ("1x2", 2, 1), ("2x1", 2, 1)],
)
def test_cores_of_a_rank_fit_its_socket(topology, ranks, cores):
    topology = Topology.parse(topology)
    assert cores_per_rank(topology, ranks) == cores
    assert cores * -(-ranks // topology.sockets) <= topology.cores_per_socket


def test_more_ranks_than_cores_are_not_bound(capsys):
    words = (
        "finetuning --model_name_or_path base --data_type fp32 -d hpu --world_size 80 --dry_run --node_topology 2x28"
    )
    for version in ("openmpi4", "openmpi5"):
        assert cli.main([*words.split(), "--mpi", version]) == 0
        out, err = capsys.readouterr()
        assert "--bind-to none --oversubscribe" in out and "PE=" not in out
        assert err.count("not bound") == 1


def test_mpirun_of_open_mpi_5():
    one = mpi.one_server(mpi.Mpi(5), Layout(8, 8), Topology(2, 28))
    assert (
        one
        == "mpirun -n 8 --bind-to core --map-by slot:PE=7 --rank-by slot --report-bindings --allow-run-as-root".split()
    )
    forwarded = (("A", "x y"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "1"))
    several = Layout(6, 3, ("a", "b"), "x", True)
    many = mpi.many_servers(mpi.Mpi(5, "/p"), several, Topology(2, 28), "3022", forwarded)
    assert many[-4:] == ["ppr:3:node:PE=14", "--rank-by", "slot", "--report-bindings"]
    assert many[many.index("-x") + 1] == "A=x y" and "core" not in many[many.index("--rank-by") :]


@pytest.mark.parametrize(
    ("major", "ranks_per_node", "words"),
    [
        (4, 8, "--map-by ppr:4:socket:PE=7 --rank-by core"),
        (4, 3, "--map-by ppr:3:node:PE=14 --rank-by core"),
        (5, 8, "--map-by ppr:8:node:PE=7 --rank-by slot"),
    ],
)
def test_ranks_of_several_servers_are_put_on_sockets_where_open_mpi_4_can(major, ranks_per_node, words):
    several = Layout(2 * ranks_per_node, ranks_per_node, ("a", "b"), "x", True)
    to_all = ("3022", (("MASTER_ADDR", "a"), ("MASTER_PORT", "1")))
    many = mpi.many_servers(mpi.Mpi(major), several, Topology(2, 28), *to_all)
    assert f" {words} --report-bindings" in " ".join(many)
    unbound = mpi.many_servers(mpi.Mpi(major), several, Topology(1, 2), *to_all)
    assert f"-H a:{ranks_per_node},b:{ranks_per_node} -n" in " ".join(unbound)


def test_without_an_mpirun_or_with_a_blank_in_the_path_no_daemon_is_named():
    assert mpi.daemon_out_of_reach(None, "/py") == {} == mpi.daemon_out_of_reach(mpi.Mpi(5), "/my py")


@pytest.mark.parametrize(("by_ssh", "more"), [(False, {"SLURM_TASKS_PER_NODE": "14(x2)", "DAEMON": "d"}), (True, {})])
def test_what_a_run_tells_its_ranks_and_its_mpirun(by_ssh, more):
    """Of mpirun also: no hostfile of the machine's own; in an allocation slots as SLURM writes them."""
    layout = Layout(4, 2, ("n1", "n2"), by_ssh=by_ssh)
    told = dict(zip(meeting.TOLD, ("mpirun", "4", "2", "run7", "n1,n2")))
    no_hostfile = {"OMPI_MCA_orte_default_hostfile": "none", "PRTE_MCA_prte_default_hostfile": "none"}
    of_run = {"run_id": "run7", "layout": layout, "slots": 14, "daemon": {"DAEMON": "d"}}
    assert child_environment.run_variables(started_by="mpirun", **of_run) == told | no_hostfile | more
    assert child_environment.run_variables(started_by="alone", **of_run) == told | {meeting.LAUNCHER: "alone"}


def test_one_rank_alone_is_told_no_network(capsys):
    for ranks in (1, 2):
        words = ["--device", "cpu", "--world_size", str(ranks), "--train_batch_size", "64", "64"]
        line = lines(capsys, *PRETRAINING, *words, "--batch_size", "8", "8")[0]
        assert ("GLOO_SOCKET_IFNAME=lo" in line) == (ranks > 1), line


@pytest.mark.parametrize("major", [4, 5])
def test_the_daemon_on_the_nodes_of_slurm_does_not_hear_what_slurm_sends_to_all(tmp_path, major):
    ((_, words),) = mpi.daemon_out_of_reach(mpi.Mpi(major), sys.executable).items()
    program = "import signal, sys; print(sorted(map(int, signal.pthread_sigmask(0, []))), *sys.argv[1:])"
    for name in ("orted", "prted"):
        (tmp_path / name).write_text(f"#!{sys.executable}\n{program}\n")
        (tmp_path / name).chmod(0o755)
    path = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run([*words.split(" "), "a", "b c"], env=path, capture_output=True, text=True, check=True).stdout
    assert said == "[1, 2, 15] a b c\n"


@pytest.mark.parametrize(
    ("text", "major"),
    [("mpirun (Open MPI) 5.0.11\n", 5), ("orterun (OpenRTE) 4.1.4", 4), ("HYDRA build details", None), ("", None)],
)
def test_versions_of_mpirun(text, major):
    assert mpi.parse_version(text) == major


def test_this_machine_within_its_cgroup(tmp_path, monkeypatch):
    whole = this_machine(proc=str(tmp_path))  # no group known
    assert 1 <= whole.cores <= os.cpu_count()
    for allowed, cores in ((1, 1), (10**6, whole.cores), (None, whole.cores)):
        monkeypatch.setattr(machine.resources, "processors", lambda proc, allowed=allowed: allowed)
        assert this_machine().cores == cores


# Environment


def test_the_callers_search_path_and_meeting_point_are_kept(capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/my path")
    monkeypatch.setenv("MASTER_PORT", "777")
    (line, _) = lines(capsys, *PRETRAINING, "--device", "cpu")
    assert ":/my path' " in line and "MASTER_PORT=777" in line


def test_what_other_hosts_get():
    environ = {"LD_LIBRARY_PATH": "/l", "HOME": "/h", "HCCL_COMM_ID": "x", "PT_HPU_A": "1", "SECRET": "s"}
    environ |= {"HCCL_OVER_OFI": "1", "HABANA_VISIBLE_MODULES": "0,1"}
    variables = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "PYTHONPATH": "/r", "OMP_NUM_THREADS": "2"}
    found = dict(child_environment.forwarded_variables(environ, variables, "hosta"))
    assert found == {
        **{"LD_LIBRARY_PATH": "/l", "HCCL_COMM_ID": "x", "PT_HPU_A": "1", "PYTHONPATH": "/r"},
        **{"OMP_NUM_THREADS": "2", "MASTER_ADDR": "hosta", "MASTER_PORT": "1"},
        **{"HCCL_OVER_OFI": "1", "HABANA_VISIBLE_MODULES": "0,1"},
    }


def test_threads_of_cpu_ranks(capsys, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    (line, _) = lines(capsys, *PRETRAINING, "--device", "cpu", "--world_size", "8")
    assert "OMP_NUM_THREADS=7 GOMP_SPINCOUNT=10000 " in line
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    (line, _) = lines(capsys, *PRETRAINING, "--device", "cpu", "--world_size", "8")
    assert "OMP_NUM_THREADS=3 GOMP_SPINCOUNT=5 " in line


def test_how_threads_wait_is_left_to_a_caller_who_says_so(capsys, monkeypatch):
    """libgomp takes GOMP_SPINCOUNT before OMP_WAIT_POLICY."""
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    (line, _) = lines(capsys, *PRETRAINING, "--device", "cpu", "--world_size", "8")
    assert "GOMP_SPINCOUNT" not in line


def test_lazy_is_never_left_unset_on_hpu(capsys, monkeypatch):
    monkeypatch.setenv("PT_HPU_LAZY_MODE", "1")
    assert cli.main([*PRETRAINING, "--device", "hpu", "--mode", "eager", *DRY]) == 0
    out, err = capsys.readouterr()
    assert "PT_HPU_LAZY_MODE=0" in out and "PT_HPU_LAZY_MODE=1 is set" in err


def test_op_lists_of_the_user(capsys, monkeypatch, root):
    monkeypatch.setenv("PT_HPU_AUTOCAST_FP32_OPS_LIST", "/mine.txt")
    words = [*FINETUNING, "--data_type", "bf16", "--device", "hpu", *DRY]
    assert cli.main([*words, "--", "--hmp_bf16=/b.txt"]) == 0
    out, err = capsys.readouterr()
    ours = f"{root}/ops_fp32_bert.txt"
    assert " PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST=/b.txt " in f" {out}" and out.endswith("--hmp_bf16=/b.txt\n")
    assert f"PT_HPU_AUTOCAST_FP32_OPS_LIST=/mine.txt is set, but this run takes {ours}" in err
    assert cli.main([*words, "--", "--hmp_fp32", "/mine.txt"]) == 0
    out, err = capsys.readouterr()
    assert "PT_HPU_AUTOCAST_FP32_OPS_LIST=/mine.txt " in out and "is set, but" not in err


def test_settings_of_the_hub_reach_every_host_and_no_token_does(capsys, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_HOME", "HF_TOKEN", "ENABLE_CONSOLE"):
        monkeypatch.setenv(name, "value")
    monkeypatch.setenv("MULTI_HLS_IPS", "10.0.0.1,10.0.0.2")
    (line,) = lines(capsys, *FINETUNING, "--data_type=fp32", "--world_size", "16", "--process_per_node", "8")
    assert "-x HF_HUB_OFFLINE=value" in line and "-x HF_HOME=value" in line and "-x ENABLE_CONSOLE=value" in line
    assert "HF_TOKEN" not in line


HABANAS_IMAGE = {  # what its Dockerfiles set, and a session of sshd does not have
    "HABANA_SCAL_BIN_PATH": "/opt/habanalabs/engines_fw",
    "HABANA_PLUGINS_LIB_PATH": "/opt/habanalabs/habana_plugins",
    "RDMA_CORE_ROOT": "/opt/habanalabs/rdma-core/src",
    "RDMA_CORE_LIB": "/opt/habanalabs/rdma-core/src/build/lib",
    "RDMAV_FORK_SAFE": "1",
    "FI_EFA_USE_DEVICE_RDMA": "1",
    "LD_PRELOAD": "/lib/x86_64-linux-gnu/libtcmalloc.so.4",
    "LD_LIBRARY_PATH": "/opt/amazon/openmpi/lib:/usr/lib/habanalabs",
    "TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD": "1000000000000",
    "PATH": "/opt/amazon/openmpi/bin:/usr/bin",
}
WAYS_OUT = {
    "https_proxy": "http://proxy:3128",
    "NO_PROXY": "localhost,.lan",
    "HF_ENDPOINT": "https://mirror.lan",
    "HF_HOME": "/data/hub",
    "HF_TOKEN_PATH": "/root/.hub token",
    "REQUESTS_CA_BUNDLE": "/etc/ca.pem",
}
OF_THIS_HOST_ALONE = {
    "HF_TOKEN": "hf_abc",
    "http_proxy": "http://me:word@proxy:3128",
    "HABANA_API_KEY": "abc",
    "WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_SIZE": "4",
    "SLURM_SUBMIT_PATH": "/here",
    "PRTE_MCA_prefix_path": "/here",
    "OLDPWD": "/here",
    "HOME": "/root",
    "BASH_FUNC_PATH%%": "() { :; }",
}


def test_the_environment_of_habanas_images_reaches_every_host(capsys, monkeypatch):
    for name, value in {**HABANAS_IMAGE, **WAYS_OUT, **OF_THIS_HOST_ALONE}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("MULTI_HLS_IPS", "10.0.0.1,10.0.0.2")
    words = [*FINETUNING, "--data_type=fp32", "--world_size", "16", "--process_per_node", "8"]
    assert cli.main([*words, *DRY]) == 0
    out, err = capsys.readouterr()
    found = shlex.split(out)
    handed_on = dict(after.split("=", 1) for word, after in zip(found, found[1:]) if word == "-x")
    assert {**HABANAS_IMAGE, **WAYS_OUT}.items() <= handed_on.items()
    assert not handed_on.keys() & OF_THIS_HOST_ALONE.keys()
    assert "hf_abc" not in out + err and "word" not in out + err
    said = [line for line in err.splitlines() if "is not handed to other hosts" in line]
    assert [line.split()[1] for line in said] == ["HABANA_API_KEY", "HF_TOKEN", "http_proxy"]
    assert "HF_TOKEN_PATH" in said[1]


def test_secrets_are_spoken_of_where_there_are_other_hosts_only(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    assert cli.main([*FINETUNING, "--data_type=fp32", *DRY]) == 0
    assert "HF_TOKEN" not in capsys.readouterr().err


def test_a_step_to_resume_is_a_wish_to_resume(capsys):
    one, _ = lines(capsys, *PRETRAINING, "--device", "cpu", "--resume_step", "5", "None")
    assert "--resume_from_checkpoint" in one and "--resume_step 5" in one


def test_local_files_come_together(capsys):
    words = [*FINETUNING, "--data_type=fp32", "--device=cpu"]
    assert "--test_file needs --train_file" in refused(capsys, *words, "--test_file", "t.tsv")
    assert "--do_eval needs --validation_file" in refused(capsys, *words, "--train_file", "t.tsv", "--do_eval")


def test_hcl_configuration():
    assert hcl.configuration(Layout(8, 8), {}) == {"HCL_PORT": 53432, "HCL_COUNT": 8}
    many = hcl.configuration(Layout(4, 2, ("a", "b")), {"HCL_PORT": "5"})
    assert many == {"HCL_PORT": 5, "HCL_RANKS": ["a", "a", "b", "b"]}


def test_a_run_writes_the_hcl_configuration(tmp_path, monkeypatch):
    file = tmp_path / "hcl.json"
    out = str(tmp_path / "out")
    settings = SimpleNamespace(output_dir=out, results_dir=out, lock_name=".lock", log_path=None, restarts=0)
    target = SimpleNamespace(
        layout=Layout(8, 8), device="hpu", environ={"HCL_CONFIG_PATH": str(file)}, ssh_port="22", run_id=""
    )
    monkeypatch.setattr(run_record, "run_record", lambda *_: {})
    monkeypatch.setattr(supervise, "run", lambda *_, **__: 0)
    assert cli._run("pretraining", settings, target, None) == 0
    assert json.loads(file.read_text())["HCL_COUNT"] == 8


def test_hcl_configuration_is_written_on_request_only(tmp_path):
    file = tmp_path / "hcl.json"
    hcl.write_where_asked(Layout(8, 8), "hpu", {})
    hcl.write_where_asked(Layout(8, 8), "cpu", {"HCL_CONFIG_PATH": str(file)})
    assert not file.exists()
    hcl.write_where_asked(Layout(8, 8), "hpu", {"HCL_CONFIG_PATH": str(file)})
    assert "HCL_COUNT" in file.read_text()
    file.unlink()
    for bad in ({"HCL_CONFIG_PATH": str(file), "HCL_PORT": "abc"}, {"HCL_CONFIG_PATH": str(tmp_path / "no" / "f")}):
        with pytest.raises(BadRequest, match="HCL_PORT=abc is no port|HCL_CONFIG_PATH=.*/no/f cannot be written"):
            hcl.write_where_asked(Layout(8, 8), "hpu", bad)
    assert not file.exists()


# Whose fault it was


def heard(text, status=1, stop_requested=False):
    listener = Listener()
    for at in range(0, len(text), 7):
        listener.feed(text.encode()[at : at + 7])
    return first_failure(listener.failures, status, stop_requested)


@pytest.mark.parametrize(
    ("text", "status", "expected"),
    [
        ("\rstep 5 rank 3 on hostb: exit status 2\nrank 0 on hosta: exit status 1\n", 2, Failure(3, "hostb", 2)),
        (
            "rank 0 on a: exit status 1\n"
            "prterun noticed that process rank 3 with PID 12 on node hostb exited on\nsignal 9 (Killed).\n",
            137,
            Failure(3, "hostb", 137),
        ),
        ("  Process name: [[20085,1],1]\n  Exit code:    2\n", 2, Failure(1, "", 2)),
        ("E api.py:900] failed (exitcode: -9) local_rank: 1 (pid: 7) of binary: x\n", 1, Failure(1, "", 137)),
        ("rank 0 on a: exit status 85\n", 205, None),
        ("rank 0 on a: exit status 85\n", 85, Failure(0, "a", 85)),
        ("nothing of interest\n", 1, None),
    ],
)
def test_the_first_failure(text, status, expected):
    assert heard(text, status) == expected
