"""Dropout and attention on the CPU: torch's function where nothing is dropped, the right one where it is."""

import copy

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaForQuestionAnswering,
)

from central.finetuning.attention_cpu import AttentionWithDropout, BitDropout, replace_attention
from central.runtime.dropout import Dropout, DropoutBits

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_scales_the_rest_and_sends_gradients_the_same_way(dtype):
    x = torch.full((500, 401), 2.0, dtype=dtype, requires_grad=True)
    y = Dropout.apply(DropoutBits(1), x, 0.1)
    dropped = y == 0
    assert abs(dropped.float().mean().item() - 0.1) < 0.002
    assert torch.allclose(y[~dropped].float(), torch.tensor(2 / 0.9), rtol=1e-2)
    y.sum().backward()
    assert torch.equal(x.grad == 0, dropped)
    by_row, by_column = dropped.float().mean(1), dropped.float().mean(0)
    assert by_row.std() < 0.02 and by_column.std() < 0.02  # no stripes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_finer_than_the_bits(dtype):
    x = torch.ones(400, 100, dtype=dtype)
    assert (Dropout.apply(DropoutBits(1), x, 1e-12) == 0).sum() < 5
    assert (Dropout.apply(DropoutBits(1), x, 1 - 1e-12) == 0).sum() > 39995


def test_masks_are_a_function_of_the_seeds():
    x = torch.ones(64, 64)
    bits = DropoutBits()

    def mask(*seeds):
        bits.reseed(*seeds)
        return Dropout.apply(bits, x, 0.5)

    assert torch.equal(mask(1, 2, 3), mask(1, 2, 3))
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not torch.equal(mask(1, 2, 3), mask(*other))


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5])
def test_attention_and_its_gradients_by_the_formula(p):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 8, requires_grad=True) for _ in range(3))
    mask = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    mask[1, :, :, 5:] = False
    bits = DropoutBits(5)
    out = AttentionWithDropout.apply(bits, q, k, v, mask, p, 0.3)
    g = torch.randn_like(out)
    found = torch.autograd.grad(out, (q, k, v), g)
    bits.reseed(5)
    kept = bits.kept(torch.empty(6, 7, 7), p).view(2, 3, 7, 7) != 0
    scores = (0.3 * q @ k.transpose(2, 3)).masked_fill(~mask, torch.finfo(torch.float32).min)
    expected = (torch.softmax(scores, -1) * kept / (1 - p) @ v).transpose(1, 2)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected, (q, k, v), g))


def models(dropout):
    options = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    yield BertForSequenceClassification(BertConfig(**SIZES, **options))
    yield RobertaForQuestionAnswering(RobertaConfig(**SIZES, **options, pad_token_id=1, max_position_embeddings=40))


def batch(model):
    ids = torch.randint(2, 50, (3, 11), generator=torch.Generator().manual_seed(0))
    attention_mask = torch.ones_like(ids)
    attention_mask[2, 8:] = 0
    if hasattr(model, "classifier"):
        return {"input_ids": ids, "attention_mask": attention_mask, "labels": torch.tensor([0, 1, 1])}
    ends = {"start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([2, 4, 3])}
    return {"input_ids": ids, "attention_mask": attention_mask, **ends}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_dropout_a_model_gives_what_it_gave(dtype):
    for model in models(dropout=0.0):
        other = copy.deepcopy(model)
        replace_attention(other)
        losses, grads = [], []
        for each in (model, other):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = each.train()(**batch(model)).loss
            loss.backward()
            losses.append(loss.detach())
            grads.append(torch.cat([p.grad.flatten() for p in each.parameters() if p.grad is not None]))
        torch.testing.assert_close(losses[0], losses[1])
        torch.testing.assert_close(grads[0], grads[1])
        assert list(other.state_dict()) == list(model.state_dict())


def test_a_vanishing_dropout_is_no_dropout():
    for model in models(dropout=0.1):
        with_bits = copy.deepcopy(model)
        replace_attention(with_bits)
        for module in (*model.modules(), *with_bits.modules()):
            if isinstance(module, torch.nn.Dropout):
                module.p = 1e-9
        expected, found = (each.train()(**batch(model)).loss for each in (model, with_bits))
        torch.testing.assert_close(found, expected)


def test_dropout_in_a_model_is_as_strong_as_torchs():
    """The mean and spread of the loss over masks are those of torch's own dropout."""
    (model, _) = models(dropout=0.3)
    other = copy.deepcopy(model)
    replace_attention(other)
    assert sum(isinstance(module, BitDropout) for module in other.modules()) == sum(
        type(module) is torch.nn.Dropout for module in model.modules()
    )
    with torch.no_grad():
        torch.manual_seed(0)
        mine, theirs = (torch.stack([m.train()(**batch(model)).logits for _ in range(400)]) for m in (other, model))
    assert (mine.mean(0) - theirs.mean(0)).abs().max() < 5 * (theirs.std(0) / 20 * 2**0.5).max()
    assert 0.85 < (mine.std(0) / theirs.std(0)).mean() < 1.15


def test_all_masks_come_from_the_stream_that_is_returned():
    for model in models(dropout=0.3):
        bits = replace_attention(model)
        losses = []
        for seed in (1, 1, 2):
            bits.reseed(seed)
            losses.append(model.train()(**batch(model)).loss.item())
        assert losses[0] == losses[1] != losses[2]


def test_evaluation_and_saved_configuration_are_untouched(tmp_path):
    for model in models(dropout=0.1):
        expected = model.eval()(**batch(model))[1]
        replace_attention(model)
        torch.testing.assert_close(model.eval()(**batch(model))[1], expected)
        model.save_pretrained(tmp_path)
        assert "cpu_dropout" not in (tmp_path / "config.json").read_text()


def test_a_causal_model_stays_causal():
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, attn_pdrop=0.5, resid_pdrop=0, embd_pdrop=0)
    model = GPT2ForSequenceClassification(config)
    replace_attention(model)
    model.train()
    hidden = []
    for last in (3, 4):
        torch.manual_seed(0)
        hidden.append(model.transformer(torch.tensor([[1, 2, last]])).last_hidden_state[0, 0])
    torch.testing.assert_close(*hidden)


def test_a_window_of_attention_stays_one():
    """Its mask differs from query to query. Dropout is there and drops next to nothing."""
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    options = {"local_attention": 4, "attention_dropout": 2e-9, "pad_token_id": 0, "intermediate_size": 64}
    model = ModernBertModel(ModernBertConfig(**sizes, **options))
    ids = torch.randint(2, 50, (2, 24), generator=torch.Generator().manual_seed(0))
    expected = model.eval()(ids, torch.ones_like(ids))[0]
    replace_attention(model)
    torch.testing.assert_close(model.train()(ids, torch.ones_like(ids))[0], expected, rtol=1e-3, atol=1e-4)
