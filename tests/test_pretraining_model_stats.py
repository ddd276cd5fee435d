"""What a model costs: operations as torch counts them on Hugging Face's network, and the network's parameters."""

import dataclasses
import re
from functools import partial

import pytest
import torch
from pretraining_helpers import make_columns
from test_pretraining_modeling import SMALL, WITH_DROPOUT, make_model, rows_of
from torch.utils.flop_counter import FlopCounterMode

from central.runtime.device import Cpu
from central.runtime.exits import BadRequest
from pretraining.batches import flat_micro_batch, static_micro_batch
from pretraining.kernels.cpu import CpuKernels
from pretraining.kernels.plain import PlainKernels
from pretraining.model_stats import batch_flops, check_memory, count_parameters, sequence_flops, training_bytes

OTHER = dataclasses.replace(
    SMALL, vocab_size=64, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80
)


def counted(config, sequences: int, tokens: int) -> int:
    """Operations of a forward and backward of transformers' network, its masked-LM head at every token."""
    from transformers import BertConfig as HfConfig
    from transformers import BertForPreTraining as HfBert

    settings = {**config.to_hugging_face(), "attn_implementation": "eager"}
    network = HfBert(HfConfig(**settings))
    ids = torch.randint(5, config.vocab_size, (sequences, tokens))
    with FlopCounterMode(display=False) as counter:
        network(ids, labels=ids, next_sentence_label=torch.zeros(sequences, dtype=torch.long)).loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("config", [SMALL, OTHER], ids=["small", "other"])
@pytest.mark.parametrize("tokens", [7, 20])
def test_operations_are_those_that_torch_counts(config, tokens):
    classifier = 3 * 2 * config.hidden_size * 2  # h x 2 of the next-sentence head, which we leave out
    assert counted(config, 3, tokens) == 3 * (sequence_flops(config, tokens, tokens) + classifier)


@pytest.mark.parametrize("make", [flat_micro_batch, static_micro_batch])
def test_a_batch_costs_what_its_sequences_cost(make):
    rows = rows_of(make_columns(6, 24, 4, seed=8))
    lengths, masked = (rows.sequence_ids != 0).sum(1), (rows.masked_positions != 0).sum(1)
    wanted = sum(sequence_flops(SMALL, int(n), int(m)) for n, m in zip(lengths, masked))
    assert batch_flops(SMALL, make(rows)) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("config", [SMALL, OTHER], ids=["small", "other"])
def test_parameters_are_those_of_the_network(config):
    assert count_parameters(config) == sum(p.numel() for p in make_model(CpuKernels(), config).parameters())


def bytes_held(kernels, config, micro_batch) -> int:
    """Bytes beside the weights that autograd holds after a forward pass."""
    model, held = make_model(kernels, config), {}
    weights = {parameter.data_ptr() for parameter in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage  # kept, so that no other gets its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(micro_batch)
    return sum(storage.nbytes() for storage in held.values())


@pytest.mark.parametrize(
    ("kernels", "make"),
    [
        (CpuKernels(torch.bfloat16), flat_micro_batch),
        (PlainKernels(partial(torch.autocast, "cpu", torch.bfloat16), dtype=torch.bfloat16), static_micro_batch),
    ],
    ids=["cpu", "plain"],
)
@pytest.mark.parametrize("sizes", [(32, 64), (64, 256)])
def test_a_layer_keeps_what_is_reckoned_with(kernels, make, sizes):
    """In bf16 and with dropout, which takes most; the rows are full. Copies of weights are the last few percent."""
    config = dataclasses.replace(WITH_DROPOUT, hidden_size=sizes[0], intermediate_size=sizes[1])
    columns = make_columns(4, 64, 4, seed=1)
    columns["input_mask"][:] = 1
    micro_batch = make(rows_of(columns))
    one, three = (bytes_held(kernels, dataclasses.replace(config, num_hidden_layers=n), micro_batch) for n in (1, 3))
    reckoned = kernels.bytes_kept(2, *sizes, scores=config.num_attention_heads * 64)
    assert (three - one) / 2 / (4 * 64) == pytest.approx(reckoned, rel=0.05)


@pytest.mark.parametrize("data_type", ["fp32", "bf16"])
def test_rows_take_what_is_reckoned_with(data_type):
    """What 8 more full rows make autograd hold is most of it; temporaries are the rest."""
    device = Cpu(torch.device("cpu"), "eager", data_type)
    columns = make_columns(16, 64, 4, seed=1)
    columns["input_mask"][:] = 1
    rows = rows_of(columns)
    batches = {size: flat_micro_batch(rows.take(slice(size))) for size in (8, 16)}
    held = {size: bytes_held(CpuKernels(device.dtype), WITH_DROPOUT, batch) for size, batch in batches.items()}
    reckoned = {size: training_bytes(WITH_DROPOUT, device, size, 64, 4) for size in batches}
    assert 1 < (reckoned[16] - reckoned[8]) / (held[16] - held[8]) < 1.4


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_micro_batch_that_fits_is_named_for_ranks_that_share_the_memory(monkeypatch, ranks):
    monkeypatch.setattr(Cpu, "available_memory", lambda self: 16 << 20)
    device = Cpu(torch.device("cpu"), "eager", "fp32")
    with pytest.raises(BadRequest) as error:
        check_memory(SMALL, device, 4096, 64, 4, ranks, data_bytes=0)
    fits = int(re.search(r"a micro-batch of (\d+) fits", str(error.value))[1])
    room = (16 << 20) / ranks
    assert training_bytes(SMALL, device, fits, 64, 4) <= room < training_bytes(SMALL, device, fits + 1, 64, 4)
