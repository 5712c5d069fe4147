"""Units are the parameters of a model, each once, in order of depth."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from salsa_fused import FusedSaLSa, settings
from salsa_fused.units import transformer_units, units_by_depth

SMALL = {
    "hidden_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 32,
    "max_position_embeddings": 16,
}
SMALL_DISTILBERT = {"dim": 8, "n_heads": 2, "hidden_dim": 8, "vocab_size": 32}


class Encoder(nn.Module):
    """BERT's structure without its arithmetic."""

    def __init__(self, layers: int, head: bool = True) -> None:
        super().__init__()
        if head:  # registered first: the order of registration is not the depth
            self.classifier = nn.Linear(4, 2)
        self.embeddings = nn.ModuleDict({"words": nn.Embedding(5, 4), "norm": nn.LayerNorm(4)})
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(layers)
        )


def names_in(model: nn.Module, units: list[dict]) -> list[list[str]]:
    """Every unit's parameter names; asserts that each parameter is in exactly one unit."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    listed = [parameter for unit in units for parameter in unit["params"]]
    assert len(listed) == len(set(listed)) == len(names) and set(listed) == set(names)
    return [[names[parameter] for parameter in unit["params"]] for unit in units]


def layers_in(names: list[str]) -> list[int]:
    found = [re.search(r"\.(?:layer|layers|h)\.(\d+)\.", name) for name in names]
    assert all(found) or not any(found), names
    return sorted({int(match.group(1)) for match in found if match})


TEN_UNITS = [[], [0, 1], [2], [3, 4], [5], [6, 7], [8], [9, 10], [11], []]


def test_ten_units_of_twelve_layers():
    model = Encoder(12)
    units = transformer_units(model)
    names = names_in(model, units)
    assert [layers_in(unit) for unit in names] == TEN_UNITS
    assert [unit["name"] for unit in units] == [
        "embeddings",
        *("layers 0-1", "layer 2", "layers 3-4", "layer 5"),
        *("layers 6-7", "layer 8", "layers 9-10", "layer 11"),
        "head",
    ]
    assert names[0] == ["embeddings.words.weight", "embeddings.norm.weight", "embeddings.norm.bias"]
    assert names[-1] == ["classifier.weight", "classifier.bias"]


@pytest.mark.parametrize("n", [3, 4, 7, 10, 26])
def test_any_number_of_layers(n):
    for layers in range(1, 25):
        model = Encoder(layers)
        units = [layers_in(unit) for unit in names_in(model, transformer_units(model, n))]
        blocks = units[1:-1]
        assert len(blocks) == min(n - 2, layers) and units[0] == units[-1] == []
        assert [layer for block in blocks for layer in block] == [*range(layers)]
        assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


def test_no_head_no_unit():
    model = Encoder(12, head=False)
    units = transformer_units(model)
    names_in(model, units)
    assert [unit["name"] for unit in units][-1] == "layer 11" and len(units) == 9


def test_frozen_parameters_are_included():
    model = Encoder(12)
    model.embeddings.requires_grad_(False)
    units = transformer_units(model)
    names_in(model, units)
    assert len(units) == 10


def test_wrapped_models_have_the_same_units():
    model = Encoder(6)
    expected = transformer_units(model)
    for wrapped in (nn.Sequential(model), nn.DataParallel(model)):
        units = transformer_units(wrapped)
        assert [unit["name"] for unit in units] == [unit["name"] for unit in expected]
        for ours, theirs in zip(units, expected):
            assert len(ours["params"]) == len(theirs["params"])
            assert all(a is b for a, b in zip(ours["params"], theirs["params"]))


def test_a_wrapper_may_be_called_as_it_likes():
    model = nn.ModuleDict({"embedder": Encoder(4)})
    names = names_in(model, transformer_units(model))
    assert names[-1] == ["embedder.classifier.weight", "embedder.classifier.bias"]


def test_a_head_of_several_modules_is_not_the_layers():
    model = Encoder(4)
    model.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(3))
    assert layers_in(names_in(model, transformer_units(model))[-1]) == []


def test_tied_and_shared_parameters_count_once_where_they_come_first():
    model = Encoder(4)
    model.decoder = nn.Linear(4, 5)
    model.decoder.weight = model.embeddings["words"].weight
    model.encoder.layer[3] = model.encoder.layer[2]
    names = names_in(model, transformer_units(model))
    assert "embeddings.words.weight" in names[0] and "decoder.bias" in names[-1]
    assert [layers_in(unit) for unit in names[1:-1]] == [[0], [1], [2]]


@pytest.mark.parametrize(
    "model, message",
    [
        (nn.Linear(2, 2), "Linear has no recognisable layers"),
        (nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2)), "no recognisable layers"),
        (nn.ModuleDict({"a": nn.ModuleList([nn.Linear(2, 2), nn.LayerNorm(2)])}), "recognisable"),
        (nn.ModuleDict({"layer": nn.ModuleList([nn.Linear(2, 2)])}), "no embeddings outside"),
        (nn.ModuleDict({"a": Encoder(3), "b": Encoder(2)}), "'a.encoder.layer' and 'b.encoder"),
    ],
)
def test_models_without_layers_are_told_the_way_out(model, message):
    with pytest.raises(ValueError, match=message) as error:
        transformer_units(model)
    assert "units_by_depth(model, n)" in str(error.value)


@pytest.mark.parametrize("n", [2, 0, -1, 10.0, True, None])
def test_bad_n(n):
    with pytest.raises(ValueError, match=r"n must be an integer of at least 3 \(embeddings"):
        transformer_units(Encoder(2), n)


@pytest.mark.parametrize("units", [transformer_units, units_by_depth])
def test_bad_model(units):
    with pytest.raises(TypeError, match=r"model must be an nn\.Module, got generator"):
        units(Encoder(2).parameters(), 3)
    with pytest.raises(ValueError, match=r"model \(ReLU\) has no parameters"):
        units(nn.ReLU(), 3)


# Units by depth


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))


@pytest.mark.parametrize("n", range(1, 7))
def test_units_by_depth(n):
    model = mlp()
    units = units_by_depth(model, n)
    names = names_in(model, units)
    assert [name for unit in names for name in unit] == [
        name for name, _ in model.named_parameters()
    ]
    assert len(units) == n and max(map(len, names)) - min(map(len, names)) <= 1


def test_names_of_units_by_depth():
    assert [unit["name"] for unit in units_by_depth(mlp(), 3)] == [
        "0.weight to 0.bias",
        "2.weight to 2.bias",
        "4.weight to 4.bias",
    ]
    assert units_by_depth(mlp(), 6)[0]["name"] == "0.weight"


def test_units_by_depth_count_shared_and_frozen_ones_once():
    model = mlp()
    model[4].weight = model[2].weight = nn.Parameter(torch.zeros(3, 3), requires_grad=False)
    names_in(model, units_by_depth(model, 5))


@pytest.mark.parametrize("n", [0, -1, 1.0, True, None])
def test_bad_n_by_depth(n):
    with pytest.raises(ValueError, match="n must be an integer of at least 1"):
        units_by_depth(mlp(), n)


def test_more_units_than_tensors():
    with pytest.raises(ValueError, match=r"n must be at most 6, .* of Sequential, got 7"):
        units_by_depth(mlp(), 7)


# The groups are ordinary ones


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW, FusedSaLSa])
def test_any_optimizer_takes_them(optimizer_class):
    for model, units in ((Encoder(12), transformer_units), (mlp(), lambda m: units_by_depth(m, 3))):
        model.register_parameter("frozen", nn.Parameter(torch.ones(2), requires_grad=False))
        groups = units(model)
        optimizer = optimizer_class(groups, lr=0.1)
        assert [group["name"] for group in optimizer.param_groups] == [g["name"] for g in groups]

        def closure(model=model):
            return sum(p.square().sum() for p in model.parameters() if p.requires_grad)

        before = closure().item()
        if optimizer_class is FusedSaLSa:
            optimizer.step(closure)
        else:
            closure().backward()
            optimizer.step()
        assert closure().item() < before and model.frozen.tolist() == [1.0, 1.0]
        optimizer.load_state_dict(optimizer.state_dict())


def test_published_distribution_is_one_factor_per_unit():
    assert max(settings.LR_DISTRIBUTION) == 1.0
    assert [3.0 * factor for factor in settings.LR_DISTRIBUTION] == pytest.approx(
        [1.0, 1.0, 0.3, 0.7, 1.0, 1.0, 1.0, 1.0, 1.0, 3.0], rel=1e-15
    )
    units = transformer_units(Encoder(12))
    assert len(settings.LR_DISTRIBUTION) == len(units)
    for unit, factor in zip(units, settings.LR_DISTRIBUTION):
        unit["lr"] = factor
    optimizer = FusedSaLSa(units)
    assert [group["lr"] for group in optimizer.param_groups] == [*settings.LR_DISTRIBUTION]


# Real architectures, from a configuration: nothing is downloaded


def hugging_face(name: str, layers: int) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    kind = re.sub(r"(For|Model).*", "", name)
    if kind == "DistilBert":
        config = transformers.DistilBertConfig(n_layers=layers, **SMALL_DISTILBERT)
    else:
        config = getattr(transformers, f"{kind}Config")(num_hidden_layers=layers, **SMALL)
    return getattr(transformers, name)(config)


@pytest.mark.parametrize("layers", [6, 12])
@pytest.mark.parametrize(
    "name, head",
    [
        ("BertModel", ["pooler"]),
        ("BertForSequenceClassification", ["bert.pooler", "classifier"]),
        ("BertForMaskedLM", ["cls"]),  # its decoder is tied to the word embeddings
        ("RobertaForSequenceClassification", ["classifier"]),
        ("DistilBertModel", None),
        ("DistilBertForSequenceClassification", ["pre_classifier", "classifier"]),
        ("ElectraForSequenceClassification", ["classifier"]),
    ],
)
def test_hugging_face_models(name, head, layers):
    model = hugging_face(name, layers)
    units = transformer_units(model)
    names = names_in(model, units)
    if head is not None:
        assert units[-1]["name"] == "head"
        assert {name for name in names[-1] if not name.startswith(tuple(head))} == set()
        assert all(any(name.startswith(part) for name in names[-1]) for part in head)
        names.pop()
    expected = TEN_UNITS[:-1] if layers == 12 else [[], [0], [1], [2], [3], [4], [5]]
    assert [layers_in(unit) for unit in names] == expected
    assert all("embeddings" in name for name in names[0])


def test_encoder_and_decoder_are_two_stacks():
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    with pytest.raises(ValueError, match=r"'decoder\.block' and 'encoder\.block'"):
        transformer_units(transformers.T5ForConditionalGeneration(config))
