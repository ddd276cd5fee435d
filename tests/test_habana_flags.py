"""Flags of Habana's releases after 1.1.1: what becomes of each, in both scripts and in what sets their environment."""

import pytest
from pretraining_helpers import make_corpus, script_argv, write_config

from central.habana_flags import translate
from central.runtime import environment
from pretraining.settings import parse


@pytest.mark.parametrize(
    ("words", "ours"),
    [
        (["--autocast"], ["--hmp"]),
        (["--use_autocast_on_fp32"], ["--hmp"]),
        (["--use_lazy_mode=True"], ["--use_lazy_mode"]),
        (["--use_lazy_mode", "true", "--do_train"], ["--use_lazy_mode", "--do_train"]),
        (["--use_lazy_mode", "False"], []),
        (["--use_lazy_mode", "--do_train"], ["--use_lazy_mode", "--do_train"]),
        (["--use_torch_compile"], ["--torch_compile"]),
        (["--enable-tensorboard-logging"], ["--tensorboard"]),
        (["--enable_packed_data_mode", "False", "--seed=1"], ["--seed=1"]),
        (["--use-hpu-graphs=True", "--do_train"], ["--do_train"]),
        (["--use_zero_optimizer", "True"], []),
        (["--json-summary=/a", "--seed", "3"], ["--json-summary=/a", "--seed", "3"]),
    ],
)
def test_words(words, ours):
    assert translate(words)[0] == ours


def test_what_means_nothing_is_said_once_and_only_where_it_was_wanted():
    _, notes = translate(["--profile", "True", "--profile=True", "--use_zero_optimizer", "False", "--autocast"])
    assert notes == ["--profile has no effect here: there is no profiler here"]


def test_a_wrong_value_is_left_for_the_parser_to_refuse():
    assert translate(["--use_lazy_mode=maybe"])[0] == ["--use_lazy_mode=maybe"]


def test_a_line_of_release_1_23_is_understood(tmp_path):
    """The flags of its README's compile line, and those of its parser that 1.1.1 lacks."""
    corpus = make_corpus(tmp_path / "c")
    words = """--autocast --use_torch_compile --use_lazy_mode=False --enable_packed_data_mode False
        --use_zero_optimizer False --profile_steps 2:4 --tensorboard_logdir=/tmp/t --use-hpu-graphs=False
        --no_compiled_autograd --log_memory_usage True --enable-tensorboard-logging""".split()
    settings, notes = parse([*script_argv(corpus, write_config(tmp_path / "config.json"), tmp_path), *words])
    assert (settings.data_type, settings.mode, settings.tensorboard) == ("bf16", "compile", True)
    said = [note.split()[0] for note in notes]
    assert said == [
        "--enable_packed_data_mode",
        "--profile_steps",
        "--tensorboard_logdir",
        "--no_compiled_autograd",
        "--log_memory_usage",
    ]


@pytest.mark.parametrize(
    ("words", "lazy"),
    [(["--use_lazy_mode", "True"], "1"), (["--use_lazy_mode=False"], "0"), (["--use_torch_compile"], "0")],
)
def test_the_environment_follows_the_same_table(monkeypatch, words, lazy):
    monkeypatch.delitem(environment.sys.modules, "torch", raising=False)
    variables = {}
    environment.apply(["--use_habana", "--autocast", *words], variables)
    assert variables["PT_HPU_LAZY_MODE"] == lazy


def test_lazy_and_compiled_contradict_each_other_under_any_name(monkeypatch):
    monkeypatch.delitem(environment.sys.modules, "torch", raising=False)
    with pytest.raises(environment.BadRequest, match="leave out --use_lazy_mode"):
        environment.apply(["--use_habana", "--use_lazy_mode=True", "--use_torch_compile"], {})


@pytest.mark.parametrize(
    ("words", "lazy"),
    [
        ("--use_habana --autocast", True),
        ("--use_habana --enable_packed_data_mode False", True),
        ("--use_habana --autocast --use_torch_compile", False),
        ("--use_habana --autocast --use_lazy_mode=False", False),
        ("--use_habana --hmp", False),  # release 1.1.1: its flag alone decides, and the variable contradicts it
        ("--no_cuda --autocast", False),
    ],
)
def test_in_lines_of_later_releases_the_variable_asks_for_lazy_mode(words, lazy):
    found, notes = translate(words.split(), {"PT_HPU_LAZY_MODE": "1"})
    assert ("--use_lazy_mode" in found) == lazy == any("is taken as --use_lazy_mode" in note for note in notes)
    assert "--use_lazy_mode" not in translate(words.split(), {"PT_HPU_LAZY_MODE": "0"})[0]


def test_a_lazy_line_of_release_1_23_starts_in_lazy_mode(monkeypatch):
    monkeypatch.delitem(environment.sys.modules, "torch", raising=False)
    environment.apply(["--use_habana", "--autocast"], {"PT_HPU_LAZY_MODE": "1"})
    with pytest.raises(environment.BadRequest, match="without --use_lazy_mode, means '0'"):
        environment.apply(["--use_habana", "--hmp"], {"PT_HPU_LAZY_MODE": "1"})
