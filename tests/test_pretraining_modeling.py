"""The network against Hugging Face's, the CPU kernels against plain torch, and law 1 on a single rank."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch
from pretraining_helpers import VOCAB_SIZE, make_columns, write_config

from central.runtime import cpu_bf16
from central.runtime.dropout import DropoutBits, fold
from pretraining.batches import Rows, flat_micro_batch, flat_micro_batches, static_micro_batch
from pretraining.kernels.cpu import Attention, CpuKernels, equal_runs
from pretraining.kernels.plain import PlainKernels
from pretraining.model_stats import batch_flops
from pretraining.modeling import BertConfig, BertForPreTraining, initialise

SMALL = BertConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=64,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
WITH_DROPOUT = dataclasses.replace(SMALL, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
LAYOUTS = {
    "cpu, flat": (CpuKernels, flat_micro_batch),
    "cpu, flat, whole tiles": (CpuKernels, functools.partial(flat_micro_batch, tile=64)),
    "plain, flat": (PlainKernels, flat_micro_batch),
    "plain, static": (PlainKernels, static_micro_batch),
}


def rows_of(columns: dict) -> Rows:
    num_rows, seq_len = columns["input_ids"].shape
    return Rows(
        columns["input_ids"],
        columns["input_mask"],
        columns["segment_ids"],
        np.broadcast_to(np.arange(seq_len, dtype=np.int32), (num_rows, seq_len)),
        columns["masked_lm_positions"],
        columns["masked_lm_ids"],
        np.zeros((num_rows, 1), np.int32),
        columns["next_sentence_labels"][:, None],
        np.ones((num_rows, 1), np.int8),
    )


@pytest.fixture(scope="module")
def rows():
    return rows_of(make_columns(8, 24, 4, seed=3))


def make_model(kernels, config=SMALL, seed=1):
    model = BertForPreTraining(config, kernels)
    initialise(model, seed)
    return model


def step_loss(sums, rows):
    return sums[0] / rows.num_masked + sums[1] / rows.num_sequences


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same_gradients(found, wanted, tolerance=2e-5):
    assert found.keys() == wanted.keys()
    scale = max(float(gradient.norm()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).norm()) <= tolerance * scale, name


def hugging_face(model, rows):
    """Loss and gradients of transformers' BertForPreTraining with the same weights on the same rows."""
    from transformers import BertConfig as HfConfig
    from transformers import BertForPreTraining as HfBert

    peer = HfBert(HfConfig(**model.config.to_hugging_face()))
    own = {
        name: tensor[: model.config.vocab_size] if len(tensor) == model.config.padded_vocab_size else tensor
        for name, tensor in model.state_dict().items()
    }
    peer.load_state_dict(own, strict=False)
    peer.tie_weights()
    labels = np.full(rows.input_ids.shape, -100)
    row, column = np.nonzero(rows.masked_positions)
    labels[row, rows.masked_positions[row, column]] = rows.masked_ids[row, column]

    def long(array):
        return torch.from_numpy(np.array(array, dtype=np.int64))

    out = peer(
        input_ids=long(rows.input_ids),
        attention_mask=long(rows.sequence_ids),
        token_type_ids=long(rows.segment_ids),
        labels=long(labels),
        next_sentence_label=long(rows.next_sentence_labels),
    )
    out.loss.backward()
    return out.loss.item(), {name: p.grad for name, p in peer.named_parameters()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_and_gradients_are_hugging_faces(layout, rows):
    kernels, make_batch = LAYOUTS[layout]
    model = make_model(kernels())
    loss = step_loss(model(make_batch(rows)), rows)
    loss.backward()
    wanted_loss, wanted = hugging_face(model, rows)
    assert loss.item() == pytest.approx(wanted_loss, rel=1e-6)
    found = {name: g[:VOCAB_SIZE] if len(g) > VOCAB_SIZE else g for name, g in gradients(model).items()}
    assert_same_gradients(found, wanted)


def test_padded_vocabulary_rows_take_no_part(rows):
    model = make_model(CpuKernels())
    step_loss(model(flat_micro_batch(rows)), rows).backward()
    assert SMALL.padded_vocab_size > SMALL.vocab_size
    for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
        assert not gradients(model)[name][SMALL.vocab_size :].any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
def test_micro_batch_size_leaves_the_gradient(layout, micro_batch_size, rows):
    kernels, make_batch = LAYOUTS[layout]
    model = make_model(kernels())
    loss = 0.0
    for start in range(0, len(rows), micro_batch_size):
        part = rows.take(slice(start, start + micro_batch_size))
        micro_loss = step_loss(model(make_batch(part)), rows)
        micro_loss.backward()
        loss += micro_loss.item()
    wanted_loss, wanted = hugging_face(model, rows)
    assert loss == pytest.approx(wanted_loss, rel=1e-6)
    assert_same_gradients(
        {n: g[:VOCAB_SIZE] if len(g) > VOCAB_SIZE else g for n, g in gradients(model).items()}, wanted
    )


def test_regrouping_by_length_keeps_every_row(rows):
    model = make_model(CpuKernels())
    total = sum(model(batch).detach() for batch in flat_micro_batches(rows, 3))
    torch.testing.assert_close(total, model(flat_micro_batch(rows)).detach())


@pytest.mark.parametrize("count", range(1, 12))
def test_flat_tokens_fill_whole_tiles(count):
    rows = rows_of(make_columns(count, 24, 4, seed=count))
    batch, fill = flat_micro_batch(rows, tile=64), -rows.num_tokens % 64
    assert len(batch.input_ids) == len(batch.segment_ids) == len(batch.positions) == rows.num_tokens + fill
    assert batch.lengths[count:] == (fill,) * (fill > 0) and sum(batch.lengths) == len(batch.input_ids)
    assert batch.offsets.tolist() == np.cumsum((0, *batch.lengths)).tolist()
    assert not batch.input_ids[rows.num_tokens :].any() and batch.masked_positions.max() < rows.num_tokens


def test_the_longest_rows_come_first(rows):
    """The first micro-batch takes the most memory, and all later ones fit into what it leaves."""
    lengths = [length for batch in flat_micro_batches(rows, 3) for length in batch.lengths]
    assert sorted(lengths, reverse=True) == lengths and sum(lengths) == rows.num_tokens


def packed(rows: Rows, groups: list[list[int]]) -> Rows:
    """The rows put together several to a packed row, written out one token at a time."""
    seq_len = max(sum(np.count_nonzero(rows.sequence_ids[i]) for i in group) for group in groups)
    n, masked, most = len(groups), rows.masked_positions.shape[1], max(map(len, groups))
    out = {name: np.zeros((n, seq_len), np.int32) for name in ("ids", "mask", "segments", "positions")}
    mlm = {name: np.zeros((n, masked * most), np.int32) for name in ("positions", "ids")}
    nsp = {name: np.zeros((n, most), np.int32) for name in ("positions", "labels", "weights")}
    for i, group in enumerate(groups):
        start = used = 0
        for order, row in enumerate(group):
            length = np.count_nonzero(rows.sequence_ids[row])
            span = slice(start, start + length)
            out["ids"][i, span], out["segments"][i, span] = rows.input_ids[row, :length], rows.segment_ids[row, :length]
            out["mask"][i, span], out["positions"][i, span] = order + 1, np.arange(length)
            for position, label in zip(rows.masked_positions[row], rows.masked_ids[row]):
                if position:
                    mlm["positions"][i, used], mlm["ids"][i, used] = start + position, label
                    used += 1
            nsp["positions"][i, order], nsp["labels"][i, order] = start, rows.next_sentence_labels[row, 0]
            nsp["weights"][i, order] = 1
            start += length
    return Rows(*out.values(), *mlm.values(), *nsp.values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packing_leaves_the_gradient(layout, rows):
    kernels, make_batch = LAYOUTS[layout]
    model = make_model(kernels())
    together = packed(rows, [[0, 1, 2], [3], [4, 5], [6, 7]])
    step_loss(model(make_batch(together)), rows).backward()
    _, wanted = hugging_face(model, rows)
    assert_same_gradients(
        {n: g[:VOCAB_SIZE] if len(g) > VOCAB_SIZE else g for n, g in gradients(model).items()}, wanted
    )


@pytest.mark.parametrize(
    ("kernels", "weights", "right"),
    [(CpuKernels(), None, 2), (PlainKernels(), None, 2), (PlainKernels(), torch.tensor([1.0, 0.0, 1.0]), 1)],
)
def test_right_answers_are_counted(kernels, weights, right):
    """Of three positions whose highest score is at their own number, where the weights count them."""
    x = torch.eye(3)
    assert kernels.masked_lm_loss(x, x, torch.zeros(3), torch.tensor([0, 1, 0]), weights)[1].item() == right


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dropout_is_of_what_is_added_and_not_of_what_it_is_added_to(layout, rows):
    """Layers whose halves add nothing give, in training, what they give in evaluation."""
    kernels, make_batch = LAYOUTS[layout]
    model = make_model(kernels(), dataclasses.replace(SMALL, hidden_dropout_prob=0.5))
    model.bert.embeddings.dropout = 0.0
    for layer in model.bert.encoder.layer:
        for half in (layer.attention, layer):
            torch.nn.init.zeros_(half.output.dense.weight)
    assert torch.equal(model.train()(make_batch(rows)), model.eval()(make_batch(rows)))


def test_bf16_kernels_follow_fp32(rows):
    losses = [
        make_model(CpuKernels(dtype))(flat_micro_batch(rows))[0].item() for dtype in (torch.float32, torch.bfloat16)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)


def test_bf16_without_instructions_differs_by_rounding_only(rows, monkeypatch):
    found = {}
    for has_instructions in (True, False):
        monkeypatch.setattr(cpu_bf16, "has_instructions", lambda answer=has_instructions: answer)
        model = make_model(CpuKernels(torch.bfloat16))
        weight = next(iter(model.parameters()))
        copy = model.kernels.copy(weight)
        assert copy.dtype == (torch.bfloat16 if has_instructions else torch.float32)
        assert torch.equal(copy.float(), weight.bfloat16().float())
        losses = []
        for batch in flat_micro_batches(rows, 3):
            loss = step_loss(model(batch), rows)
            loss.backward()
            losses.append(loss.item())
        found[has_instructions] = losses, torch.cat([g.flatten() for g in gradients(model).values()])
    assert found[False][0] == pytest.approx(found[True][0], rel=2e-3)
    assert torch.cosine_similarity(found[False][1], found[True][1], dim=0) > 0.999


def test_bf16_copies_follow_the_weights(rows):
    model = make_model(CpuKernels(torch.bfloat16))
    before = model(flat_micro_batch(rows))[0].item()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert model(flat_micro_batch(rows))[0].item() != before


def test_in_place_gradients_equal_returned_ones(rows):
    found = []
    for in_place in (True, False):
        model = make_model(CpuKernels(torch.bfloat16, in_place=in_place))
        for batch in flat_micro_batches(rows, 3):
            step_loss(model(batch), rows).backward()
        found.append(gradients(model))
    assert_same_gradients(found[0], found[1], tolerance=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_is_a_function_of_the_seed_and_survives_recomputation(dtype, rows):
    found = []
    for recompute in (False, True, True):
        model = BertForPreTraining(WITH_DROPOUT, CpuKernels(dtype), checkpoint_activations=recompute)
        initialise(model, 1)
        model.kernels.reseed(1, 2, 3)
        sums = model(flat_micro_batch(rows))
        step_loss(sums, rows).backward()
        found.append((sums.detach(), gradients(model)))
    for sums, grads in found[1:]:
        assert torch.equal(sums, found[0][0])
        assert all(torch.equal(grads[name], found[0][1][name]) for name in grads)
    model.kernels.reseed(1, 2, 4)
    assert not torch.equal(model(flat_micro_batch(rows)).detach(), found[0][0])


def test_dropout_gradient_is_that_of_its_own_masks():
    """With the masks held fixed the network is a smooth function: its gradient against finite differences in fp32."""
    rows = rows_of(make_columns(3, 12, 2, seed=5))
    model = BertForPreTraining(WITH_DROPOUT, CpuKernels())
    initialise(model, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    model.cls.predictions.bias.data[VOCAB_SIZE:] = -1e4

    def loss():
        model.kernels.reseed(9)
        return step_loss(model(flat_micro_batch(rows)), rows)

    loss().backward()
    generator = torch.Generator().manual_seed(0)
    for name in ("bert.encoder.layer.0.attention.self.query.weight", "bert.encoder.layer.1.intermediate.dense.weight"):
        parameter = dict(model.named_parameters())[name]
        direction = torch.randn(parameter.shape, generator=generator)
        size = 3e-3
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * size)
            values.append(loss().item())
            with torch.no_grad():
                parameter.add_(direction, alpha=-sign * size)
        numeric = (values[0] - values[1]) / (2 * size)
        exact = float((parameter.grad * direction).sum())
        assert numeric == pytest.approx(exact, rel=0.02, abs=2e-2), name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_attention_with_dropout_is_the_formula(dtype, tolerance):
    """With identity values the output is the dropped probabilities themselves, so autograd can repeat the formula."""
    length, heads, p = 8, 2, 0.3
    generator = torch.Generator().manual_seed(4)
    qk = torch.randn(2 * length, 2, heads, length, generator=generator)
    v = torch.eye(length).view(1, length, 1, 1, length).expand(2, -1, -1, heads, -1).reshape(-1, 1, heads, length)
    qkv = torch.cat([qk, v], dim=1).flatten(1).to(dtype).requires_grad_()
    out = Attention.apply(DropoutBits(6), qkv, [(0, 2, length)], heads, p)
    kept = (out.detach() != 0).view(2, length, heads, length).transpose(1, 2)
    again = qkv.detach().float().requires_grad_()
    q, k, values = again.view(2, length, 3, heads, length).permute(2, 0, 3, 1, 4)
    probabilities = torch.softmax(q @ k.transpose(-1, -2) / length**0.5, -1) * kept / (1 - p)
    wanted = (probabilities @ values).transpose(1, 2).reshape(2 * length, -1)
    assert 0.5 < kept.float().mean() < 0.9
    torch.testing.assert_close(out.float(), wanted, rtol=tolerance, atol=tolerance)
    g = torch.randn(out.shape, generator=generator)
    out.backward(g.to(dtype))
    wanted.backward(g)
    torch.testing.assert_close(qkv.grad.float(), again.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropped_share(dtype):
    kept = DropoutBits(3).kept(torch.empty(1000, 1000, dtype=dtype), 0.1)
    assert set(kept.unique().tolist()) == {-1, 0}
    share = float((kept == 0).double().mean())
    assert abs(share - 0.1) < 4 * (0.09 / 1e6) ** 0.5 + 1e-5


def test_padding_is_no_work_done(rows):
    """mfu counts real tokens, whatever the layout adds to them."""
    flat, static = (batch_flops(SMALL, make(rows)) for make in (flat_micro_batch, static_micro_batch))
    assert static == pytest.approx(flat)


def test_equal_runs():
    assert equal_runs((3, 3, 5, 5, 5, 2)) == [(0, 2, 3), (6, 3, 5), (21, 1, 2)]


def test_fold_separates_neighbours():
    seeds = {fold((seed, step, rank)) for seed in range(8) for step in range(8) for rank in range(8)}
    assert len(seeds) == 512 and all(0 <= seed < 2**63 for seed in seeds)


def test_initial_weights_depend_on_the_seed_alone():
    first, second, other = (make_model(PlainKernels(), seed=seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["bert.pooler.dense.weight"], other["bert.pooler.dense.weight"])
    assert float(first["bert.encoder.layer.0.output.dense.weight"].std()) == pytest.approx(0.02, rel=0.1)


def test_training_learns_the_next_token():
    """Rows count upwards: after a few hundred updates most masked tokens are found, far above chance."""
    from pretraining.lamb import Lamb, global_norm

    rows = rows_of(make_columns(256, 16, 3, seed=11))
    model = make_model(CpuKernels(), dataclasses.replace(SMALL, hidden_size=64, num_attention_heads=4))
    optimizer = Lamb(model.parameters(), lr=0.02)
    for step in range(250):
        part = rows.take(np.random.default_rng(step).integers(0, len(rows), 32))
        sums = model(flat_micro_batch(part))
        step_loss(sums, part).backward()
        optimizer.step(global_norm([p.grad for p in model.parameters()]))
        optimizer.zero_grad()
    sums = model(flat_micro_batch(rows))
    assert float(sums[2].detach()) / rows.num_masked > 0.3  # chance is 0.01


def test_what_a_configuration_leaves_out_is_as_hugging_face_has_it():
    from transformers import BertConfig as HfConfig

    peer = HfConfig()
    assert all(getattr(peer, field.name) == field.default for field in dataclasses.fields(BertConfig))


def test_config_errors_name_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"cfg\.json.*hidden_act"):
        BertConfig.from_json(write_config(tmp_path / "cfg.json", hidden_act="swish"))
    with pytest.raises(ValueError, match="not a multiple"):
        BertConfig.from_json(write_config(tmp_path / "cfg.json", num_attention_heads=3))
    for content in (b"{", b"[1, 2]", b"7", b"\xff\xfe{}"):
        (tmp_path / "cfg.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"cfg\.json: not a BERT configuration"):
            BertConfig.from_json(tmp_path / "cfg.json")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", "768"),
        ("hidden_size", 32.0),
        ("num_attention_heads", 0),
        ("num_hidden_layers", -1),
        ("vocab_size", None),
        ("vocab_size", True),
        ("type_vocab_size", 1),
        ("pad_token_id", VOCAB_SIZE),
        ("hidden_dropout_prob", "0.1"),
        ("hidden_dropout_prob", 1.0),
        ("layer_norm_eps", float("nan")),
    ],
)
def test_values_no_model_can_have_are_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=rf"cfg\.json.*{name} {value!r}"):
        BertConfig.from_json(write_config(tmp_path / "cfg.json", **{name: value}))


@pytest.mark.parametrize(
    ("name", "layers", "hidden"),
    [("", 24, 1024), ("base_", 12, 768), ("medium_", 8, 512), ("small_", 4, 512), ("mini_", 4, 256), ("tiny_", 2, 128)],
)
def test_named_sizes(name, layers, hidden):
    from pretraining_helpers import ROOT

    path = ROOT / "pretraining" / f"bert_{name}config.json"
    config = BertConfig.from_json(path)
    assert (config.num_hidden_layers, config.hidden_size) == (layers, hidden)
    assert config.num_attention_heads == hidden // 64 and config.intermediate_size == 4 * hidden
    assert json.loads(path.read_text())["vocab_size"] == 30522
