"""Options as fields of a dataclass: types, flags, help, and what is said of words that are none."""

import dataclasses
from pathlib import Path

import pytest

from central import options
from central.errors import BadRequest
from central.options import (
    HANG_TIMEOUT,
    LEARNING_RATE,
    MAX_STEPS,
    SEED,
    choice,
    count,
    handed_on,
    maybe,
    option,
    path,
    switch,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Script:
    """As a training script has them."""

    lr: float = option(*LEARNING_RATE, 5e-5, flag="learning_rate")
    max_steps: int = option(*MAX_STEPS, 1000)
    hang_timeout: float = option(*HANG_TIMEOUT, 300)
    json_summary: str = option(path, "100% of the log", "log.json", flag="json-summary")
    config_file: str = option(path, "BERT's configuration")
    hmp: bool = option(switch, "bf16", False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launcher:
    """As the launcher has them: some for each phase."""

    learning_rate: tuple = option(*LEARNING_RATE, (6e-3, 4e-3), "-r", group="Schedule", hand_on="learning_rate")
    start: tuple = option(maybe(path), "where a phase starts", (None, None), hand_on="init_checkpoint")
    seed: int = option(*SEED, 42, hand_on="seed")
    hang_timeout: float | None = option(*HANG_TIMEOUT, None, hand_on="hang_timeout")
    fused: bool = option(switch, "hpu", False, hand_on="fused_sdpa")
    world_size: int = option(count, "ranks", 1)
    script_args: tuple[str, ...] = ()  # no option


def test_words_become_fields_in_both_spellings():
    script = options.parse(
        Script, "--config_file=c.json --learning-rate 1e-3 --max_steps 7038.0 --json-summary=x/l.json --hmp".split()
    )
    assert script == Script(
        config_file="c.json", lr=1e-3, max_steps=7038, hang_timeout=300, json_summary="x/l.json", hmp=True
    )
    assert isinstance(script.max_steps, int)
    assert options.parse(Script, ["--config_file", "c", "--json_summary", "l"]).json_summary == "l"
    with pytest.raises(dataclasses.FrozenInstanceError):
        script.lr = 1


def test_every_problem_is_told_with_the_words_of_its_flag():
    with pytest.raises(BadRequest) as caught:
        options.parse(Script, "--learning_rate -1 --max_steps 1.5 --hmpp --hang_timeout nan".split())
    assert caught.value.problems == (
        "--learning_rate -1: expected a number above 0",
        "--max_steps 1.5: expected a whole number from 1",
        "--hang_timeout nan: expected a number of seconds, 0 for never",
        "unknown flag --hmpp; did you mean --hmp?",
        "--config_file is required",
    )


@pytest.mark.parametrize("word", ["0", "1.5", "inf", "nan", "1e400", "-3", "", "x", "²"])
def test_what_is_no_count(word):
    with pytest.raises(ValueError, match="a whole number from 1"):
        count(word)


def test_a_type_and_a_help_stand_once_for_launcher_and_script():
    for cls, default in ((Script, "5e-05"), (Launcher, "0.006 0.004")):
        text = options.settings_parser(cls).format_help()
        assert LEARNING_RATE[1] in text and default in text
    assert "--json-summary, --json_summary PATH" in options.settings_parser(Script).format_help()
    assert "100% of the log" in options.settings_parser(Script).format_help()


def test_the_launcher_hands_on_what_is_set_to_the_script_by_its_name_there():
    settings = options.parse(
        Launcher, "-r 1 2 --start None b --fused --world_size 3 --hang_timeout 5.0".split(), script_args=("x",)
    )
    assert settings.script_args == ("x",)
    assert handed_on(settings) == ["--seed=42", "--hang_timeout=5", "--fused_sdpa"]
    assert handed_on(settings, 1) == ["--learning_rate=1.0"]
    assert handed_on(settings, 2) == ["--learning_rate=2.0", "--init_checkpoint=b"]
    assert handed_on(Launcher()) == ["--seed=42"]


def test_headings_come_in_the_order_asked_for():
    text = options.settings_parser(Launcher, ["Schedule"], prog="p", epilog="the end").format_help()
    assert text.index("Schedule:") < text.index("--learning_rate") and text.rstrip().endswith("the end")


def test_a_choice_is_taken_in_any_case_and_names_its_nearest():
    assert choice("lazy", "eager")("LAZY") == "lazy"
    with pytest.raises(ValueError, match="did you mean eager"):
        choice("lazy", "eager")("eagre")


def test_options_need_the_standard_library_only():
    source = Path(options.__file__).read_text()
    assert "import typing" not in source and "\nfrom typing" not in source  # slow, and loaded for a checker only
