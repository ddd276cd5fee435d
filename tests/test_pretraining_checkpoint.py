"""Checkpoints: complete or absent, Hugging Face's, kept few, and weights from elsewhere."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from pretraining_helpers import ROOT, SPECIAL, VOCAB_SIZE, environment, small_disk, write_vocabulary

from central.runtime import tensor_files
from central.runtime.checkpoints import is_complete, is_ours, list_checkpoints, newest_checkpoint, read_state
from central.runtime.exits import BadRequest
from pretraining import checkpoint
from pretraining.convert import Inert, convert
from pretraining.kernels.cpu import CpuKernels
from pretraining.lamb import Lamb, global_norm
from pretraining.modeling import BertConfig, BertForPreTraining, initialise
from pretraining.vocabulary import find_vocabulary

CONFIG = BertConfig(
    vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
)


def make_model(seed=1, config=CONFIG):
    model = BertForPreTraining(config, CpuKernels())
    initialise(model, seed)
    return model


def stepped(model, seed=0):
    """An optimizer over the model that has done one step on random gradients."""
    optimizer = Lamb(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step(global_norm([p.grad for p in model.parameters()]))
    return optimizer


def state(step, phase=1):
    return {"phase": phase, "step": step, "global_step": step, "data": {"rows_read": 0}, "settings": {}}


def saved(folder, step=1, phase=1, model=None, optimizer=None, texts=None):
    model = model or make_model()
    saver = checkpoint.CheckpointWriter(folder, limit=100)
    saver.save(model, optimizer or stepped(model), state(step, phase), texts or {})
    saver.wait()
    return folder / f"ckpt_{step}"


def test_a_checkpoint_is_a_hugging_face_folder(tmp_path):
    from transformers import AutoTokenizer
    from transformers import BertForPreTraining as HfBert

    write_vocabulary(tmp_path)
    vocabulary = find_vocabulary(None, tmp_path)
    model = make_model()
    folder = saved(tmp_path / "out", model=model, texts=vocabulary.files())
    peer, loading = HfBert.from_pretrained(folder, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    own = dict(model.named_parameters())
    for name, parameter in peer.named_parameters():
        assert torch.equal(parameter, own[name][: len(parameter)]), name
    assert peer.cls.predictions.decoder.weight is peer.bert.embeddings.word_embeddings.weight
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == VOCAB_SIZE and tokenizer("w1 w2").input_ids[1:3] == [6, 7]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_of_a_checkpoint_have_the_mode_of_the_umask(tmp_path, umask):
    """safetensors leaves its files to their owner alone."""
    before = os.umask(umask)
    try:
        folder = saved(tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o666 & ~umask}


def test_saving_and_loading_is_exact(tmp_path):
    model = make_model()
    optimizer = stepped(model)
    folder = saved(tmp_path, model=model, optimizer=optimizer)
    other = make_model(seed=2)
    checkpoint.load_weights(other, checkpoint.read_weights(folder), folder)
    resumed = Lamb(other.parameters(), lr=0.5)
    checkpoint.load_moments(resumed, other, checkpoint.read_moments(folder))
    for a, b in zip(model.parameters(), other.parameters()):
        assert torch.equal(a[:VOCAB_SIZE], b[:VOCAB_SIZE])
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[a][name][:VOCAB_SIZE], resumed.state[b][name][:VOCAB_SIZE])
    assert resumed.param_groups[0]["step"] == 1
    assert other.cls.predictions.bias[VOCAB_SIZE:].tolist() == [-10000.0] * (CONFIG.padded_vocab_size - VOCAB_SIZE)


def test_saving_copies_before_it_returns(tmp_path):
    model = make_model()
    before = model.bert.pooler.dense.weight.detach().clone()
    saver = checkpoint.CheckpointWriter(tmp_path, 3)
    saver.save(model, Lamb(model.parameters()), state(1), {})
    with torch.no_grad():
        model.bert.pooler.dense.weight.zero_()
    saver.wait()
    assert torch.equal(checkpoint.read_weights(tmp_path / "ckpt_1")["bert.pooler.dense.weight"], before)


def test_the_newest_and_the_last_of_each_phase_are_kept(tmp_path):
    model = make_model()
    optimizer = stepped(model)
    saver = checkpoint.CheckpointWriter(tmp_path, limit=2)
    for step, phase in ((1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)):
        saver.save(model, optimizer, state(step, phase), {})
    saver.wait()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["ckpt_3", "ckpt_5", "ckpt_6"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt"])
def test_a_file_cut_short_is_no_checkpoint(tmp_path, file):
    older, newer = saved(tmp_path, 1), saved(tmp_path, 2)
    whole = (newer / file).read_bytes()
    (newer / file).write_bytes(whole[: len(whole) // 2])
    assert not is_complete(newer) and newest_checkpoint(tmp_path) == older
    with pytest.raises(ValueError, match=f"{file} has .* bytes instead of"):
        read_state(newer)


def test_a_lost_vocabulary_is_copied_back_and_a_folder_named_by_hand_has_none_before_it(tmp_path):
    folder = saved(tmp_path)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("[PAD]\n")
    stored = json.loads((folder / "state.json").read_text())
    sizes = stored["files"] | {"vocab.txt": 6}
    (folder / "state.json").write_text(json.dumps({"files": sizes, "global_step": 1}))
    assert is_complete(folder)
    folder = folder.rename(tmp_path / "my_model")
    (folder / "vocab.txt").unlink()
    with pytest.raises(ValueError, match="vocab.txt is missing: copy the model's vocab.txt into it$"):
        read_state(folder)
    assert not is_complete(folder)
    (folder / "vocab.txt").write_text("[PAD]\n")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="has 0 bytes instead of [0-9]+: copy it again from where it was written$"):
        read_state(folder)


@pytest.mark.parametrize("how", ["nested", "pipe"])
def test_a_state_that_is_none_is_no_checkpoint(tmp_path, how):
    folder = saved(tmp_path)
    (folder / "state.json").unlink()
    if how == "pipe":
        os.mkfifo(folder / "state.json")
    else:
        (folder / "state.json").write_text('{"files": ' + "[" * 30_000 + "]" * 30_000 + "}")
    assert not is_complete(folder) and not is_ours(folder)
    with pytest.raises(ValueError, match=f"{folder}: not a whole checkpoint"):
        read_state(folder)


def test_a_state_of_another_program_is_not_ours(tmp_path):
    folder = saved(tmp_path)
    assert is_ours(folder)
    (folder / "state.json").write_text('{"_data_files": [], "_split": "train"}')
    assert not is_ours(folder)


def test_newest_checkpoint_of_every_kind_of_folder(tmp_path):
    out = tmp_path / "run"
    newest = saved(out / "results" / "checkpoints", 12)
    saved(out / "results" / "checkpoints", 9)
    assert newest_checkpoint(out) == newest_checkpoint(out / "results" / "checkpoints") == newest
    assert newest_checkpoint(newest) == newest
    plain = tmp_path / "plain"
    plain.mkdir()
    assert newest_checkpoint(plain) is None
    (plain / "config.json").write_text("{}")
    assert newest_checkpoint(plain) == plain


def test_nothing_is_ever_replaced(tmp_path):
    """A name that is taken costs the new checkpoint; going back puts the names beyond aside before that."""
    older = saved(tmp_path, 4, model=make_model(seed=1))
    before = {path.name: path.read_bytes() for path in older.iterdir()}
    with pytest.raises(BadRequest, match=r"ckpt_4: this checkpoint could not be written .*older ones are whole"):
        saved(tmp_path, 4, model=make_model(seed=2))
    assert {path.name: path.read_bytes() for path in older.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt_4"]
    saved(tmp_path, 6, phase=2)
    assert checkpoint.set_aside(tmp_path, 3) == ["ckpt_4 is kept as ckpt_4.1", "ckpt_6 is kept as ckpt_6.1"]
    saved(tmp_path, 4, model=make_model(seed=2))
    assert checkpoint.set_aside(tmp_path, 3) == ["ckpt_4 is kept as ckpt_4.2"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "ckpt_4.1").iterdir()} == before
    assert checkpoint.set_aside(tmp_path, 3) == []


KILLED = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import torch
torch.set_num_threads(1)
from pathlib import Path
from test_pretraining_checkpoint import *
big = make_model(config=BertConfig(vocab_size=8000, hidden_size=256, num_hidden_layers=2, num_attention_heads=4))
folder = Path({folder!r})
optimizer, saver = stepped(big), checkpoint.CheckpointWriter(folder, 2)
first = max([checkpoint_step(path) for path in list_checkpoints(folder)], default=0) + 1
for step in range(first, first + 1000):
    saver.save(big, optimizer, state(step), {{}})
    print(step, flush=True)
"""


def test_killed_while_saving(tmp_path):
    """kill -9 at random moments of continuous saving: what bears a checkpoint's name is whole, the rest is swept."""
    rng = random.Random(3)
    for _ in range(3):
        script = KILLED.format(root=str(ROOT), tests=str(ROOT / "tests"), folder=str(tmp_path))
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment())
        for _ in range(4):
            process.stdout.readline()
        time.sleep(rng.random() * 0.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = list_checkpoints(tmp_path)
        assert found and all(is_complete(path) for path in found)
        checkpoint.read_weights(found[-1]), checkpoint.read_moments(found[-1])
        checkpoint.sweep(tmp_path)
        assert all(path.name.startswith("ckpt_") for path in tmp_path.iterdir())


def test_a_full_disk_costs_the_new_checkpoint_only(tmp_path):
    """A real full file system: a small tmpfs, where the machine lets us mount one."""
    with small_disk(tmp_path / "small", megabytes=1) as small:
        model = make_model()
        size = sum(path.stat().st_size for path in saved(small, 1, model=model).iterdir())
        (small / "filler").write_bytes(b"x" * (os.statvfs(small).f_bavail * os.statvfs(small).f_frsize - size // 2))
        saver = checkpoint.CheckpointWriter(small, 3)
        saver.save(model, stepped(model), state(2), {})
        with pytest.raises(BadRequest, match=r"ckpt_2: the disk is full.*older ones are whole"):
            saver.wait()
        assert [path.name for path in list_checkpoints(small)] == ["ckpt_1"] and is_complete(small / "ckpt_1")
        assert not list(small.glob(".*"))
        (small / "filler").unlink()
        saver.save(model, stepped(model), state(2), {})
        saver.wait()
        assert is_complete(small / "ckpt_2")


def test_weights_of_another_size_are_refused(tmp_path):
    folder = saved(tmp_path)
    deeper = BertConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64
    )
    with pytest.raises(BadRequest, match="no weight bert.encoder.layer.2.*another size"):
        checkpoint.load_weights(make_model(config=deeper), checkpoint.read_weights(folder), folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda weight: weight.to(torch.int8), "holds int8"),
        (lambda weight: weight != 0, "holds bool"),
        (lambda weight: weight.to(torch.complex64), "holds complex64"),
        (lambda weight: weight.to(torch.float8_e4m3fn), "holds float8_e4m3fn"),
        (lambda weight: weight * float("nan"), "holds NaN or infinity"),
    ],
)
def test_weights_that_are_no_finite_floating_numbers_are_refused(tmp_path, change, said):
    """Else what is left of them would be trained on in silence."""
    folder, name = saved(tmp_path), "bert.encoder.layer.1.output.dense.weight"
    weights = checkpoint.read_weights(folder)
    weights[name] = change(weights[name])
    with pytest.raises(BadRequest, match=f"{name} {said}"):
        checkpoint.load_weights(make_model(), weights, folder)


@pytest.mark.parametrize("name", ["/dev/zero", "../model.safetensors", "missing.safetensors"])
def test_an_index_that_names_no_file_beside_it_is_refused_unread(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(BadRequest, match=f"names {name}, which is no file beside it"):
        convert(tmp_path, make_model())


def reference_pt(path, model, optimizer=None, prefix=""):
    """A file as the reference and NVIDIA save it: padded to 8 rows, their names, objects of their classes within."""
    weights = {f"{prefix}{name}": parameter.detach().clone() for name, parameter in model.named_parameters()}
    weights[f"{prefix}cls.predictions.decoder.weight"] = weights[f"{prefix}bert.embeddings.word_embeddings.weight"]
    content = {"model": weights, "files": [3, "a.hdf5"], "epoch": 2, "data_loader": Unsafe()}
    if optimizer is not None:
        content["optimizer"] = optimizer.state_dict()
    torch.save(content, path)
    return path


class Unsafe:
    """Pickles to a call that would leave a mark, as a harmful file would."""

    mark = "/nowhere"

    def __reduce__(self):
        return (os.system, (f"touch {Unsafe.mark}",))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_pt_of_the_reference_is_read_and_runs_nothing(tmp_path, prefix):
    from pretraining.modeling import decays

    Unsafe.mark = str(tmp_path / "ran")
    model = make_model()
    named = list(model.named_parameters())
    groups = [{"params": [p for n, p in named if decays(n)]}, {"params": [p for n, p in named if not decays(n)]}]
    optimizer = Lamb(groups, lr=0.01)
    for _, parameter in named:
        parameter.grad = torch.randn(parameter.shape)
    optimizer.step()
    path = reference_pt(tmp_path / "ckpt_7038.pt", model, optimizer, prefix)
    other = make_model(seed=2)
    found = convert(path, other)
    assert not (tmp_path / "ran").exists() and not found.notes
    checkpoint.load_weights(other, found.weights, path)
    resumed = Lamb(other.parameters(), lr=0.01)
    checkpoint.load_moments(resumed, other, found.moments)
    assert resumed.param_groups[0]["step"] == 1
    for (name, a), b in zip(named, other.parameters()):
        assert torch.equal(a[:VOCAB_SIZE], b[:VOCAB_SIZE]), name
        assert torch.equal(optimizer.state[a]["exp_avg"][:VOCAB_SIZE], resumed.state[b]["exp_avg"][:VOCAB_SIZE]), name
    assert found.weights["bert.embeddings.word_embeddings.weight"].shape == (VOCAB_SIZE, 32)


def test_an_optimizer_state_of_another_kind_is_said(tmp_path):
    model = make_model()
    foreign = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    foreign.step()
    found = convert(reference_pt(tmp_path / "a.pt", model, foreign), model)
    assert found.moments is None and "moments begin at zero" in found.notes[0]


def test_restricted_reading_makes_foreign_objects_inert(tmp_path):
    Unsafe.mark = str(tmp_path / "ran")
    torch.save(
        {"x": Unsafe(), "half": torch.ones(2, 3).half().t(), "p": torch.nn.Parameter(torch.arange(3.0))},
        tmp_path / "a.pt",
    )
    content = tensor_files.load(tmp_path / "a.pt", foreign=Inert)
    assert not (tmp_path / "ran").exists()
    assert torch.equal(content["half"], torch.ones(3, 2).half()) and content["p"].tolist() == [0.0, 1.0, 2.0]
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"x": Unsafe()}))
    with pytest.raises(BadRequest, match=r"b\.pt: not a checkpoint"):
        convert(tmp_path / "b.pt", make_model())


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        ("BertModel", "masked-LM head and next-sentence head"),
        ("BertForMaskedLM", "next-sentence head and pooler"),
        ("BertForSequenceClassification", "masked-LM head and next-sentence head"),
        ("BertForPreTraining", None),
    ],
)
def test_hugging_face_folders_of_every_kind(tmp_path, kind, note):
    import transformers

    config = transformers.BertConfig(**CONFIG.to_hugging_face())
    peer = getattr(transformers, kind)(config)
    peer.save_pretrained(tmp_path)
    model = make_model()
    fresh = model.cls.seq_relationship.weight.detach().clone()
    found = convert(tmp_path, model)
    checkpoint.load_weights(model, found.weights, tmp_path)
    encoder = peer if kind == "BertModel" else peer.bert
    for name, parameter in encoder.named_parameters():
        assert torch.equal(dict(model.bert.named_parameters())[name][: len(parameter)], parameter), name
    if note is None:
        assert not found.notes and torch.equal(model.cls.seq_relationship.weight, peer.cls.seq_relationship.weight)
    else:
        assert found.notes == (f"{tmp_path}: has no {note}: made anew",)
        assert torch.equal(model.cls.seq_relationship.weight, fresh)


def test_a_vocabulary_is_what_hugging_face_reads_of_its_files(tmp_path):
    from transformers import AutoTokenizer

    (source := tmp_path / "source").mkdir()
    write_vocabulary(source)
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    found = find_vocabulary(None, source)
    assert found.tokenizer_config == settings
    for name, text in found.files().items():
        (tmp_path / name).write_text(text)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert list(found.tokens) == tokenizer.convert_ids_to_tokens(range(VOCAB_SIZE))
    assert found.special_ids() == {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}


def test_folders_without_weights_are_named(tmp_path):
    with pytest.raises(BadRequest, match=r"no model\.safetensors"):
        convert(tmp_path, make_model())
    (tmp_path / "model.safetensors").write_bytes(b"123")
    with pytest.raises(BadRequest, match="cannot be read"):
        convert(tmp_path, make_model())


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", [b"", b"[1, 2]", {"epoch": 3}, {"weight_map": 7}, [1, 2]])
def test_files_that_hold_something_else_are_named(tmp_path, name, content):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif name.endswith(".json"):
        (tmp_path / name).write_text(json.dumps(content))
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(BadRequest, match="cannot be read|holds no model weights") as refused:
        convert(tmp_path, make_model())
    (problem,) = refused.value.problems
    assert str(tmp_path) in problem and "\n" not in problem


@pytest.mark.parametrize("kind", ["pt", "folder"])
def test_weights_that_inflate_are_refused_before_they_are_read(tmp_path, kind):
    torch.save({"zeros": torch.zeros(4_000_000)}, tmp_path / "plain")
    path = tmp_path / ("ckpt_1.pt" if kind == "pt" else "pytorch_model.bin")
    with zipfile.ZipFile(tmp_path / "plain") as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    with pytest.raises(BadRequest, match="unpack to 15"):
        convert(path if kind == "pt" else tmp_path, make_model())


def test_a_pt_without_weights_is_named(tmp_path):
    for content in ({"epoch": 3}, {"model": {}}, [1, 2], torch.ones(3)):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(BadRequest, match=r"a\.pt: holds no model weights"):
            convert(tmp_path / "a.pt", make_model())


def test_fused_lambs_state_is_read(tmp_path):
    """FusedLamb keeps lr and betas as NVIDIA does and may hold its step as a tensor."""
    model = make_model()
    optimizer = stepped(model)
    optimizer.param_groups[0]["step"] = torch.tensor(7)
    folder = saved(tmp_path, model=model, optimizer=optimizer)
    other = make_model()
    resumed = Lamb(other.parameters())
    checkpoint.load_moments(resumed, other, checkpoint.read_moments(folder))
    assert resumed.param_groups[0]["step"] == 7
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == VOCAB_SIZE
