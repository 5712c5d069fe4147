"""The benchmarks' networks have the published sizes, and BERT computes what `transformers` does."""

from __future__ import annotations

import pytest
import torch

from bench.models import parameter_count
from bench.models.bert import BASE, MINILM_L6, SMALL, Bert, BertClassifier, BertForMaskedTokens
from bench.models.gpt import GPT
from bench.models.llama import LLAMA_1B, TINY, Llama, rotate, rotations
from bench.models.resnet import resnet18, resnet34, resnet50
from bench.models.small import DigitsCNN, DigitsMLP


@pytest.mark.parametrize(
    ("model", "count"),
    [  # as their papers' checkpoints have them
        (resnet18, 11_689_512),
        (resnet50, 25_557_032),
        (lambda: Bert(BASE), 109_482_240),
        (lambda: Bert(MINILM_L6), 22_713_216),
        (lambda: Bert(SMALL), 28_763_648),
        (lambda: GPT(50257, 1024, 12, 12, 768), 124_439_808),
        (lambda: GPT(50257, 1024, 48, 25, 1600), 1_557_611_200),
        (lambda: Llama(LLAMA_1B), 1_235_814_400),
    ],
)
def test_published_sizes(model, count):
    with torch.device("meta"):
        assert parameter_count(model()) == count


def test_bert_is_that_of_transformers():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=90, hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=96, max_position_embeddings=20,
    )  # fmt: skip
    theirs = transformers.BertModel(config).eval()
    size = type(BASE)(vocabulary=90, width=48, layers=3, heads=4, inner=96, positions=20)
    ours = Bert(size).eval()
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.randint(1, 90, (3, 12))
    tokens[0, 7:] = 0  # padding
    expected = theirs(tokens, attention_mask=(tokens != 0).long())
    states = ours(tokens)
    torch.testing.assert_close(states[0, :7], expected.last_hidden_state[0, :7])
    torch.testing.assert_close(states[1:], expected.last_hidden_state[1:])
    torch.testing.assert_close(ours.pooler(states), expected.pooler_output)


def test_padding_changes_nothing():
    torch.manual_seed(0)
    size = type(BASE)(vocabulary=50, width=16, layers=2, heads=2, inner=32, positions=20)
    for mean in (False, True):
        model = BertClassifier(Bert(size), 2, mean=mean).eval()
        tokens = torch.randint(1, 50, (2, 6))
        padded = torch.nn.functional.pad(tokens, (0, 5))
        torch.testing.assert_close(model(tokens), model(padded))


def test_a_masked_model_has_its_decoder_tied():
    size = type(BASE)(vocabulary=50, width=16, layers=1, heads=2, inner=32, positions=20)
    model = BertForMaskedTokens(Bert(size))
    assert model(torch.randint(1, 50, (2, 6))).shape == (2, 6, 50)
    assert sum(p.numel() == 50 * 16 for p in model.parameters()) == 1


def test_llama_sees_no_later_token_and_turns_by_differences():
    torch.manual_seed(0)
    model = Llama(TINY).eval()
    tokens = torch.randint(TINY.vocabulary, (1, 12))
    changed = tokens.clone()
    changed[0, 8] = (changed[0, 8] + 1) % TINY.vocabulary
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[0, :8], after[0, :8])
    assert not torch.allclose(before[0, 8:], after[0, 8:])
    # the product of a query and a key depends on how far apart they are, not on where
    turn = rotations(TINY, 12, torch.device("cpu"))
    query, key = torch.randn(2, 32)
    products = rotate(query.expand(12, 32), turn) @ rotate(key.expand(12, 32), turn).T
    torch.testing.assert_close(products.diagonal(3), products[0, 3].expand(9), rtol=1e-4, atol=1e-4)


def test_resnets_shrink_images_as_published():
    images = torch.randn(2, 3, 64, 64)
    assert resnet18().stem(images).shape == (2, 64, 16, 16)
    assert resnet18()(images).shape == (2, 1000)
    small = resnet34(10, cifar=True)
    assert small.stem(images[..., :32, :32]).shape == (2, 64, 32, 32)
    assert small(images[..., :32, :32]).shape == (2, 10)


def test_cnn_shape_and_buffers():
    model = DigitsCNN()
    assert model(torch.randn(5, 1, 8, 8)).shape == (5, 10)
    assert 50_000 < parameter_count(model) < 100_000
    assert any("running_mean" in name for name, _ in model.named_buffers())


def test_mlp_shape_and_dropout():
    model = DigitsMLP()
    images = torch.randn(5, 1, 8, 8)
    assert model(images).shape == (5, 10)
    assert not torch.equal(model(images), model(images))


def test_gpt_shape_and_start():
    model = GPT(vocabulary=11, context=16, layers=2, heads=2, width=8)
    tokens = torch.randint(11, (3, 16))
    logits = model(tokens)
    assert logits.shape == (3, 16, 11)
    targets = torch.randint(11, (3 * 16,))
    untrained = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets).item()
    assert untrained == pytest.approx(torch.tensor(11.0).log().item(), abs=0.1)
    with pytest.raises(ValueError, match="context is 16"):
        model(torch.zeros(1, 17, dtype=torch.long))


def test_gpt_sees_no_later_token():
    model = GPT(vocabulary=11, context=16, layers=2, heads=2, width=8).eval()
    tokens = torch.randint(11, (1, 16))
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 11
    before, after = model(tokens), model(changed)
    assert torch.equal(before[0, :9], after[0, :9])
    assert not torch.equal(before[0, 9:], after[0, 9:])


def test_gpt_dropout_follows_the_random_stream():
    model = GPT(vocabulary=11, context=16, layers=1, heads=2, width=8)
    tokens = torch.randint(11, (1, 16))
    torch.manual_seed(1)
    first, second = model(tokens), model(tokens)
    torch.manual_seed(1)
    assert torch.equal(first, model(tokens))
    assert not torch.equal(first, second)
