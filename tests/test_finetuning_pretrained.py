"""Model folders as people have them: the type of their weights, old names, other forms, damage, code of their own."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from finetuning_fixtures import VOCABULARY
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    TrainingArguments,
    XLNetConfig,
)

from central.errors import BadRequest
from central.finetuning import pretrained
from central.finetuning.arguments import DataArguments, ModelArguments, parse
from central.runtime.rank import Rank

pytest_plugins = ("finetuning_fixtures",)
ROOT = Path(__file__).resolve().parents[1]
UNCASED = "the tokenizer is uncased: it does not tell capitals from small letters"


@pytest.fixture
def folder(tmp_path, tiny_model) -> Path:
    """A copy of the tiny model, to be changed."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def load(folder: Path, auto_class=AutoModelForSequenceClassification, **changes):
    """Model, tokenizer, and what was said."""
    args, said = ModelArguments(str(folder), **changes), []
    config = pretrained.load_config(args, str(folder), 64, id2label={0: "no", 1: "yes"})
    tokenizer = pretrained.load_tokenizer(args, str(folder), said.append)
    model = pretrained.load_model(auto_class, args, str(folder), config, tokenizer, said.append)
    return model, tokenizer, said


def refusal(folder: Path, **changes) -> str:
    with pytest.raises(BadRequest) as refused:
        pretrained.locate(str(folder))
        load(folder, **changes)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def configure(folder: Path, **settings) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def rewrite(folder: Path, change) -> None:
    """Replace the weights by `change` of them."""
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def only_vocabulary(folder: Path, content: bytes) -> None:
    """A folder with a vocab.txt and no settings of the tokenizer."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "vocab.txt").write_bytes(content)


def lines(tokens) -> bytes:
    return ("\n".join(tokens) + "\n").encode()


# ---- types


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_are_fp32_whatever_their_file_has(folder, tiny_model, tmp_path, dtype):
    rewrite(folder, lambda weights: {name: weight.to(dtype) for name, weight in weights.items()})
    configure(folder, dtype=str(dtype).removeprefix("torch."))
    model, _, _ = load(folder)
    assert {weight.dtype for weight in (*model.parameters(), *model.buffers())} <= {torch.float32, torch.int64}
    original = load_file(tiny_model / "model.safetensors")["bert.pooler.dense.weight"]
    assert torch.equal(model.bert.pooler.dense.weight, original.to(dtype).float())
    model.save_pretrained(tmp_path / "saved")
    assert {weight.dtype for weight in load_file(tmp_path / "saved/model.safetensors").values()} == {torch.float32}
    assert json.loads((tmp_path / "saved/config.json").read_text())["dtype"] == "float32"


def test_quantized_weights_are_refused(folder):
    configure(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    assert "quantized" in refusal(folder)


def test_defaults_of_transformers_that_decide_a_training_are_those_that_were_measured(tmp_path):
    """A new release that changes one of these changes results: set the old value in arguments.py, or measure anew."""
    arguments = TrainingArguments(output_dir=str(tmp_path))
    expected = {
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "bf16": False,
        "fp16": False,
        "tf32": None,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "label_smoothing_factor": 0.0,
        "learning_rate": 5e-5,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0,
        "neftune_noise_alpha": None,
        "num_train_epochs": 3.0,
        "per_device_train_batch_size": 8,
        "seed": 42,
        "data_seed": None,
        "torch_compile": False,
        "train_sampling_strategy": "random",
        "warmup_steps": 0,
        "weight_decay": 0.0,
    }
    assert {name: getattr(arguments, name) for name in expected} == expected
    accelerator = arguments.accelerator_config.to_dict()
    assert {name: accelerator[name] for name in ("split_batches", "even_batches", "use_seedable_sampler")} == {
        "split_batches": False,
        "even_batches": True,
        "use_seedable_sampler": True,
    }
    config = BertConfig()
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob, config.initializer_range) == (
        0.1,
        0.1,
        0.02,
    )
    assert (config.hidden_act, config.layer_norm_eps, config.tie_word_embeddings) == ("gelu", 1e-12, True)


def test_variables_of_accelerate_decide_nothing(tmp_path, monkeypatch, capsys):
    """`accelerate config` leaves them in shells: a run in bf16 whose card says float32."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "inductor")
    words = ["--model_name_or_path=m", f"--output_dir={tmp_path}", "--do_train", "--no_cuda"]
    request = parse(words, DataArguments, Rank())
    assert request.training.mixed_precision == "no" and not request.training.torch_compile
    assert "ACCELERATE_DYNAMO_BACKEND, ACCELERATE_MIXED_PRECISION" in capsys.readouterr().out


# ---- names


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"),
    ],
    ids=["module", "gamma"],
)
def test_old_names_are_read_and_the_model_is_saved_under_its_own(folder, tiny_model, tmp_path, rename):
    """transformers 5 would save under the names of the file, which a resume of the Trainer passes over in silence."""
    rewrite(folder, lambda weights: {rename(name): weight for name, weight in weights.items()})
    model, _, said = load(folder)
    assert said == [UNCASED, f"made anew, as {folder} does not have them: classifier.bias, classifier.weight"]
    original = load_file(tiny_model / "model.safetensors")
    taken = {name: weight for name, weight in model.state_dict().items() if name in original}
    assert len(taken) == len(model.state_dict()) - 2
    assert all(torch.equal(weight, original[name]) for name, weight in taken.items())
    model.save_pretrained(tmp_path / "saved")
    assert set(load_file(tmp_path / "saved/model.safetensors")) == set(model.state_dict())


def test_a_file_without_the_prefix_and_with_heads_of_other_tasks_is_taken(folder):
    rewrite(
        folder,
        lambda weights: {
            name.removeprefix("bert."): weight for name, weight in weights.items() if name.startswith("bert.")
        },
    )
    _, _, said = load(folder, AutoModelForQuestionAnswering)
    assert said == [UNCASED, f"made anew, as {folder} does not have them: qa_outputs.bias, qa_outputs.weight"]


# ---- what nobody takes


def with_distances(weights: dict) -> dict:
    name = "bert.encoder.layer.{}.attention.self.distance_embedding.weight"
    return weights | {name.format(layer): torch.zeros(255, 16) for layer in range(2)}


def test_relative_positions_are_refused_by_their_name(folder):
    configure(folder, position_embedding_type="relative_key")
    rewrite(folder, with_distances)
    assert "position_embedding_type 'relative_key'" in refusal(folder)


@pytest.mark.parametrize("change", ["distances", "layers", "without prefix"])
def test_weights_of_the_encoder_that_nobody_takes_are_refused_by_name(folder, change):
    name = "distance_embedding"
    if change == "distances":
        rewrite(folder, with_distances)
    elif change == "layers":  # the file has one more than config.json
        configure(folder, num_hidden_layers=1)
        name = "bert.encoder.layer.1."
    else:
        name = "encoder.layer.2.output.dense.bias"
        rewrite(
            folder,
            lambda weights: (
                {key.removeprefix("bert."): weight for key, weight in weights.items() if key.startswith("bert.")}
                | {name: torch.zeros(32)}
            ),
        )
    said = refusal(folder)
    assert name in said and "no place in the encoder" in said


def test_other_weights_that_nobody_takes_are_named(folder):
    rewrite(folder, lambda weights: weights | {"adapters.0.weight": torch.zeros(4, 4)})
    assert load(folder)[2][-1].endswith("as the model has no place for them: adapters")


@pytest.mark.parametrize("changes", [{}, {"ignore_mismatched_sizes": True}])
def test_weights_of_another_shape_are_named(folder, changes):
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    rewrite(folder, lambda weights: weights | {name: torch.zeros(60, 32)})
    said = refusal(folder, **changes)
    assert f"{name} is [60, 32], the model has [64, 32]" in said and "--ignore_mismatched_sizes" not in said


def test_a_head_of_another_size_may_be_made_anew(folder, tiny_model):
    model = BertForSequenceClassification.from_pretrained(tiny_model, num_labels=5)
    model.save_pretrained(folder)
    said = refusal(folder)
    assert "classifier.weight is [5, 32], the model has [2, 32]" in said and "--ignore_mismatched_sizes" in said
    assert "classifier.bias" in load(folder, ignore_mismatched_sizes=True)[2][-1]


# ---- settings


def test_settings_that_change_what_a_model_returns_are_off(folder):
    configure(folder, output_hidden_states=True, output_attentions=True, return_dict=False)
    model, tokenizer, _ = load(folder)
    outputs = model(**tokenizer("good film", return_tensors="pt"))
    assert set(outputs) == {"logits"}


def test_minus_one_positions_are_no_limit(tmp_path):
    XLNetConfig(vocab_size=50, d_model=32, n_layer=2, n_head=2, d_inner=64).save_pretrained(tmp_path)
    args = ModelArguments(str(tmp_path))
    config = pretrained.load_config(args, str(tmp_path), 4096)
    assert config.max_position_embeddings == -1


def test_a_cased_vocabulary_without_settings_keeps_capitals_and_says_so(folder):
    cased = [*VOCABULARY[:-10], "The", "Film", *"ABCDEFGH"]
    only_vocabulary(folder, lines(cased))
    _, tokenizer, said = load(folder)
    assert tokenizer.tokenize("The Film") == ["The", "Film"] and "capitals are kept" in said[0]
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')  # said by its owner: done
    assert load(folder)[1].tokenize("The Film") == ["the", "film"]


@pytest.mark.parametrize("lowercase", [True, False])
def test_a_tokenizer_file_decides_where_no_setting_does(folder, lowercase):
    """transformers 5 lower-cases then, whatever the file says."""
    (folder / "tokenizer_config.json").unlink()
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"] |= {"lowercase": lowercase, "strip_accents": False}
    path.write_text(json.dumps(content))
    _, tokenizer, _ = load(folder)
    assert tokenizer.tokenize("good FILM") == (["good", "film"] if lowercase else ["good", "[UNK]"])
    normalizer = json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"]
    assert (normalizer["lowercase"], normalizer["strip_accents"]) == (lowercase, False)


def test_an_uncased_vocabulary_without_settings_stays_uncased(folder):
    only_vocabulary(folder, lines(VOCABULARY))
    _, tokenizer, said = load(folder)
    assert tokenizer.tokenize("The Film") == ["the", "film"] and said[0] == UNCASED


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_vocabulary_with_a_byte_order_mark_is_read(folder, line_end):
    only_vocabulary(folder, b"\xef\xbb\xbf" + line_end.join([*VOCABULARY, ""]).encode())
    _, tokenizer, _ = load(folder)
    assert len(tokenizer) == len(set(VOCABULARY)) and tokenizer.pad_token_id == 0
    assert tokenizer("good film")["input_ids"] == [VOCABULARY.index(w) for w in ("[CLS]", "good", "film", "[SEP]")]


# ---- damage and nonsense


@pytest.mark.parametrize("content", [b"", b"\x80\x04 binary", os.urandom(3000)], ids=["empty", "binary", "random"])
def test_a_vocabulary_that_is_none_is_refused(folder, content):
    only_vocabulary(folder, content)
    assert str(folder / "vocab.txt") in refusal(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [("spiece.model", b"x"), ("sentencepiece.bpe.model", b"x")],
)
def test_pieces_alone_are_refused_for_their_real_reason(folder, name, content, monkeypatch):
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda package: None)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    (folder / name).write_bytes(content)
    said = refusal(folder)
    assert name in said and "pip install sentencepiece" in said


def test_a_tokenizer_file_without_its_parts_is_refused_in_words(folder):
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({"version": "1.0"}))
    assert "'added_tokens' is missing in its tokenizer.json" in refusal(folder)


@pytest.mark.parametrize("keep", [0, 7, 5000])
def test_damaged_weights_are_one_line(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert "model.safetensors: is damaged" in refusal(folder)


class Mark:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["code", "text", "empty"])
def test_a_bin_file_of_other_things_is_refused_and_runs_nothing(folder, tmp_path, kind):
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    if kind == "code":
        torch.save({"x": Mark(tmp_path / "mark")}, path)
    else:
        path.write_text("hello" if kind == "text" else "")
    assert "pytorch_model.bin: is damaged" in refusal(folder)
    assert not (tmp_path / "mark").exists()


def test_a_bin_file_that_inflates_is_refused_before_it_is_read(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights | {"zeros": torch.zeros(4_000_000)}, tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "plain") as plain, zipfile.ZipFile(folder / "pytorch_model.bin", "w", 8) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    assert "unpack to" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", "abc"),
        ("hidden_size", 0),
        ("hidden_size", 31),  # no multiple of the heads
        ("num_attention_heads", 0),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 10**400),
        ("vocab_size", 0),
        ("intermediate_size", -3),
        ("max_position_embeddings", "abc"),
        ("hidden_act", "nosuch"),
        ("hidden_dropout_prob", 2.0),
        ("layer_norm_eps", "abc"),
        ("pad_token_id", "x"),
        ("hidden_dropout_prob", float("nan")),
        ("attention_probs_dropout_prob", float("nan")),
        ("classifier_dropout", float("nan")),
        ("hidden_dropout_prob", 1.0),  # nothing of a text would be left
        ("layer_norm_eps", float("nan")),
        ("layer_norm_eps", float("inf")),
        ("layer_norm_eps", -1.0),
        ("initializer_range", 1e30),
        ("num_labels", 10**8),
        ("id2label", {"0": "a", "5": "b"}),
        ("attn_implementation", 3),
    ],
    ids=lambda value: str(value)[:20],
)
def test_nonsense_in_a_configuration_is_one_line_that_names_it(folder, name, value):
    configure(folder, **{name: value})
    with pytest.raises(BadRequest) as refused:
        pretrained.locate(str(folder))
        pretrained.load_config(ModelArguments(str(folder)), str(folder))  # a run asks for the labels, first
        load(folder)
    said = str(refused.value)
    expected = "int" if name == "attn_implementation" else name.split("_")[-1]
    assert str(folder) in said and expected in said
    assert len(said) < 700 and "Traceback" not in said


def test_layers_are_never_computed_in_pieces(folder):
    """A number of pieces that does not divide the longest text of a batch would end a training amid an epoch."""
    configure(folder, chunk_size_feed_forward=7)
    assert load(folder)[0].config.chunk_size_feed_forward == 0


READ = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "model.safetensors", "pytorch_model.bin")


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("what", ["link", "loop", "pipe", "device", "folder"])
def test_a_name_of_a_model_that_is_no_file_is_refused_unread(folder, make_no_file, name, what):
    """transformers passes over it, and takes other settings or waits for ever."""
    path = folder / name
    path.unlink(missing_ok=True)
    make_no_file(path, what)
    said = refusal(folder)
    if name != "config.json":  # without one it is no model at all
        assert said.startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json", "config.json"])
@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"a"', b"\xff{}", b"\xef\xbb\xbf{}", b"[" * 100_000])
def test_a_json_file_that_is_no_object_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    assert refusal(folder).startswith(f"{folder / name}: is no JSON object")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_are_no_floating_numbers_are_refused(folder, dtype, file):
    """Else what is left of them would be trained on in silence."""
    name = "bert.encoder.layer.1.output.dense.weight"
    weights = load_file(folder / "model.safetensors")
    weights[name] = weights[name].to(dtype)
    weights["bert.embeddings.position_ids"] = torch.arange(128)  # in files of older versions
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / file) if file == "model.safetensors" else torch.save(weights, folder / file)
    said = refusal(folder)
    assert said.startswith(f"{folder / file}: 1 weights are ") and name in said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(folder, value):
    name = "bert.embeddings.word_embeddings.weight"

    def change(weights: dict) -> dict:
        weights[name][30, 0] = value  # of a token that no training might see
        return weights

    rewrite(folder, change)
    assert f"1 weights hold NaN or infinity, such as {name}" in refusal(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.zeros(2)], "holds a list"),
        (None, "holds a NoneType"),
        ({"state_dict": {"x": torch.zeros(2)}}, "'state_dict' is a dict"),
        ({0: torch.zeros(2)}, "0 is a Tensor"),
        ({"x": torch.zeros(2, 2).to_sparse()}, "1 weights are torch.sparse_coo"),
    ],
)
def test_a_bin_file_of_another_form_says_what_it_holds(folder, content, said):
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    assert said in refusal(folder)


def test_what_a_file_holds_once_for_two_weights_is_trained_and_saved_as_two(folder, tmp_path):
    one, two = (f"bert.encoder.layer.{layer}.attention.self.query.weight" for layer in (0, 1))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights | {two: weights[one]}, folder / "pytorch_model.bin")
    model = load(folder)[0]
    with torch.no_grad():
        model.state_dict()[two].zero_()
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved/model.safetensors")
    assert torch.equal(saved[one], weights[one]) and not saved[two].any()


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"a": "model-2.safetensors"}, "names model-2.safetensors, which is no file beside it"),
        ({"a": "/dev/zero"}, "names /dev/zero, which is no file beside it"),
        ({"a": "../model-1.safetensors"}, "which is no file beside it"),
        ({"a": 5}, "names 5, which is no file beside it"),
        ({}, "no weight_map in it"),
        (["a"], "no weight_map in it"),
        (None, "no weight_map in it"),
        ({"a": "model-1.safetensors"}, "model-1.safetensors: is damaged"),
    ],
)
def test_an_index_of_weights_that_leads_nowhere_is_named(folder, named, said):
    path = folder / "model.safetensors"
    (folder / "model-1.safetensors").write_bytes(path.read_bytes()[:-1])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": named}))
    path.unlink()
    assert said in refusal(folder)


def test_a_file_of_several_that_inflates_is_refused_before_it_is_read(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    torch.save({"zeros": torch.zeros(4_000_000)}, tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "plain") as plain, zipfile.ZipFile(folder / "part.bin", "w", 8) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"zeros": "part.bin"}}))
    assert "unpack to" in refusal(folder)


@pytest.mark.parametrize("mark", ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
def test_a_vocabulary_without_a_mark_is_refused(folder, mark):
    """transformers would number it after the last token, where the model has learned nothing."""
    only_vocabulary(folder, lines("<x>" if token == mark else token for token in VOCABULARY))
    assert f"its vocabulary has no {mark}" in refusal(folder)


def test_numbers_of_tokens_beyond_the_model_are_refused(folder):
    """Fewer tokens than the model has, some of them with numbers that it does not have."""
    only_vocabulary(folder, "\n\n".join(VOCABULARY).encode())
    assert "they do not belong together" in refusal(folder)


@pytest.mark.parametrize("flag", ["tokenizer_name", "config_name"])
@pytest.mark.parametrize("path", ["/no/such/folder", "./none", "~/none"])
def test_a_path_that_leads_nowhere_is_no_id_of_the_hub(folder, flag, path):
    assert refusal(folder, **{flag: path}) == f"--{flag} {path}: no such folder"


@pytest.mark.parametrize(
    "content",
    ["[1]", "{", "[" * 100_000, '{"num_hidden_layers": 1' + "0" * 5000 + "}"],
    ids=["list", "cut", "nested", "digits"],
)
def test_a_configuration_that_is_none_is_one_line(folder, content):
    (folder / "config.json").write_text(content)
    assert len(refusal(folder)) < 700


def test_a_model_larger_than_memory_is_refused_before_it_is_made(folder):
    configure(folder, hidden_size=2**18, num_attention_heads=2, num_hidden_layers=100)
    assert "GiB of memory are free" in refusal(folder)


# ---- code

CODE = """
open({mark!r}, "w").write("ran")
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast
class Config(BertConfig):
    model_type = "mine"
class Model(BertForSequenceClassification):
    pass
class Tokenizer(BertTokenizerFast):
    pass
"""
LOADER = """
import sys
sys.path.insert(0, {root!r})
from transformers import AutoModelForSequenceClassification
from central.errors import BadRequest
from central.finetuning import pretrained
from central.finetuning.arguments import ModelArguments
for folder in sys.argv[1:]:
    args = ModelArguments(folder)
    try:
        config = pretrained.load_config(args, folder, 64, num_labels=2)
        tokenizer = pretrained.load_tokenizer(args, folder, lambda line: None)
        pretrained.load_model(AutoModelForSequenceClassification, args, folder, config, tokenizer, lambda line: None)
        print("loaded")
    except BadRequest as error:
        print(error)
"""


@pytest.mark.parametrize("answers", ["y\n" * 100, ""], ids=["yes", "silence"])
def test_code_of_a_model_folder_never_runs(tmp_path, tiny_model, answers):
    mark, folders = tmp_path / "mark", []
    for part in ("config", "tokenizer", "model"):
        folders.append(Path(shutil.copytree(tiny_model, tmp_path / part)))
        (folders[-1] / "own.py").write_text(CODE.format(mark=str(mark)))
    configure(folders[0], model_type="mine", auto_map={"AutoConfig": "own.Config"})
    settings = json.loads((folders[1] / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": [None, "own.Tokenizer"]}}
    (folders[1] / "tokenizer_config.json").write_text(json.dumps(settings))
    configure(folders[2], auto_map={"AutoModelForSequenceClassification": "own.Model"})
    answer = subprocess.run(
        [sys.executable, "-c", LOADER.format(root=str(ROOT)), *folders],
        input=answers,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    found = answer.stdout.splitlines()
    assert answer.returncode == 0 and len(found) == 3, answer.stderr
    assert "never run here" in found[0] and "config" in found[0]
    assert found[2] == "loaded"  # transformers has a class of its own for it
    assert not mark.exists()


def test_attention_code_of_the_hub_is_refused(folder):
    configure(folder, attn_implementation="someone/kernels")
    assert "code from the Hub" in refusal(folder)


def test_a_state_of_another_program_beside_a_model_is_left_alone(folder):
    """`datasets` and others leave a state.json of their own; only a pre-training's is compared."""
    for content in ('{"_data_files": []}', "no JSON", "[" * 30_000):
        (folder / "state.json").write_text(content)
        assert pretrained.locate(str(folder)) == str(folder)


def test_short_names_are_those_of_the_launcher():
    assert pretrained.locate("large") == "bert-large-uncased-whole-word-masking"
    assert pretrained.locate("tiny") == "google/bert_uncased_L-2_H-128_A-2"
    assert pretrained.locate("roberta-base") == "roberta-base" and pretrained.locate("a/b") == "a/b"
