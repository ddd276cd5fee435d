"""central/runtime/tensor_files.py: files of every pickle protocol, and nothing run that a file names."""

import pickle
import random

import numpy as np
import pytest
import torch
from transformers.trainer_pt_utils import safe_globals

from central.runtime import tensor_files


def content() -> dict:
    """All that a checkpoint's files hold: moments, views, numbers, states of random numbers."""
    whole = torch.arange(12.0).reshape(3, 4)
    return {
        "state": {0: {"exp_avg": whole, "column": whole[:, 1], "step": torch.tensor(3.0)}},
        "half": torch.ones(2, 3, dtype=torch.bfloat16).t(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0], "fused": None}],
        "numpy": np.random.RandomState(3).get_state(),
        "python": random.Random(3).getstate(),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "dtype": torch.float32,
    }


def check(found: dict) -> None:
    expected = content()
    state, wanted = found["state"][0], expected["state"][0]
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    assert state["column"].untyped_storage().data_ptr() == state["exp_avg"].untyped_storage().data_ptr()
    assert torch.equal(found["half"], expected["half"]) and found["half"].dtype == torch.bfloat16
    assert isinstance(found["parameter"], torch.nn.Parameter) and found["dtype"] is torch.float32
    assert found["param_groups"] == expected["param_groups"] and found["python"] == expected["python"]
    np.random.RandomState().set_state(found["numpy"])
    assert np.array_equal(found["numpy"][1], expected["numpy"][1])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_read(tmp_path, protocol):
    torch.save(content(), tmp_path / "a.pt", pickle_protocol=protocol)
    check(tensor_files.load(tmp_path / "a.pt"))


def test_what_is_written_torchs_own_reader_takes(tmp_path):
    tensor_files.save(content(), tmp_path / "a.pt")
    with safe_globals():  # as transformers reads the state of random numbers
        check(torch.load(tmp_path / "a.pt", weights_only=True))
    check(tensor_files.load(tmp_path / "a.pt"))


class Runs:
    """An object whose pickle calls what it is given."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_that_a_file_names_is_run(tmp_path, protocol):
    import codecs
    import os

    for number, harm in enumerate(
        (
            Runs(os.mkdir, str(tmp_path / "ran")),
            Runs(codecs.encode, "a", "rot13"),
            Runs(eval, "1"),
            Runs(torch.load, "x"),
        )
    ):
        file = tmp_path / f"{number}.pt"
        torch.save({"x": torch.ones(1), "harm": harm}, file, pickle_protocol=protocol)
        with pytest.raises(pickle.UnpicklingError):
            tensor_files.load(file)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_cut_short_is_an_error(tmp_path, share):
    torch.save(content(), tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "b.pt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises((ValueError, RuntimeError)):
        tensor_files.load(tmp_path / "b.pt")
