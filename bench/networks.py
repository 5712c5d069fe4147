"""BERT, GPT-2, Llama and ResNets of published sizes: those of `transformers`, giving logits.

What `transformers` needs for a model it loads when that is first built: that takes seconds.
"""

from typing import Any

import torch
import transformers
from torch import Tensor, nn

PADDING = 0  # the token that fills rows up; it is not attended to
GPT2_VOCABULARY = 50257
BERT_SIZES: dict[str, dict[str, int]] = {
    "base": {},
    "small": {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
              "intermediate_size": 2048},  # Turc et al. 2019, "BERT-Small"
    "MiniLM-L6": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
}  # fmt: skip
LLAMA_SIZES: dict[str, dict[str, Any]] = {
    "1B": {"vocab_size": 128_256, "hidden_size": 2048, "num_hidden_layers": 16,
           "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192},
    "7B": {"tie_word_embeddings": False},
    "tiny": {"vocab_size": 8192, "hidden_size": 256, "num_hidden_layers": 4,
             "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 1024},
}  # fmt: skip


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class Logits(nn.Module):
    """Tokens, or images -> the logits alone; with `padded`, padding is not attended to."""

    def __init__(self, model: nn.Module, *, padded: bool = False) -> None:
        super().__init__()
        self.model, self.padded = model, padded

    def forward(self, inputs: Tensor) -> Tensor:
        how = {"attention_mask": inputs != PADDING} if self.padded else {}
        return self.model(inputs, **how).logits


def bert_config(size: str = "base", **other: Any) -> Any:
    return transformers.BertConfig(**{**BERT_SIZES[size], **other})


def bert(config: Any) -> Any:
    return transformers.BertModel(config)


def masked_bert(config: Any) -> nn.Module:
    """Tokens (batch, time) -> logits (batch, time, vocabulary): what BERT is pre-trained for."""
    return Logits(transformers.BertForMaskedLM(config), padded=True)


class MeanClassifier(nn.Module):
    """Tokens (batch, time) -> logits (batch, classes), from the mean of all states.

    Sentence embeddings are trained for it; BERT's pooler has no part in it and is left out.
    """

    def __init__(self, bert: Any, classes: int = 2) -> None:
        super().__init__()
        self.bert = bert
        bert.pooler = None
        self.dropout = nn.Dropout(bert.config.hidden_dropout_prob)
        self.classifier = nn.Linear(bert.config.hidden_size, classes)
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        shown = tokens != PADDING
        states = self.bert(tokens, attention_mask=shown).last_hidden_state
        weights = shown.unsqueeze(-1).to(states.dtype)
        return self.classifier(self.dropout((states * weights).sum(1) / weights.sum(1)))


def gpt(
    vocabulary: int, context: int = 64, layers: int = 4, heads: int = 4, width: int = 64,
    dropout: float = 0.1,
) -> nn.Module:  # fmt: skip
    """GPT-2 (Radford et al. 2019) after nanoGPT: the exact GELU, and nanoGPT's first weights."""
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_positions=context, n_layer=layers, n_head=heads, n_embd=width,
        activation_function="gelu", attn_pdrop=dropout, embd_pdrop=dropout, resid_pdrop=dropout,
        use_cache=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # its own first weights are not used
        model = transformers.GPT2LMHeadModel(config)
    # The same numbers for a seed as in nanoGPT: made as layers, then drawn anew in two rounds.
    made: list[Any] = [nn.Embedding(vocabulary, width), nn.Embedding(context, width)]
    for _ in range(layers):
        sizes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
        made += [nn.Linear(*size) for size in sizes]
    made.append(nn.Linear(width, vocabulary, bias=False))  # tied: drawn, and not used
    for layer in made:
        nn.init.normal_(layer.weight, std=0.02)
    for layer in made[3:-1:2]:  # the last of each residual branch; 2 * layers branches add up
        nn.init.normal_(layer.weight, std=0.02 / (2 * layers) ** 0.5)
    named = model.transformer.named_parameters()
    weights = [weight for name, weight in named if weight.dim() == 2]
    with torch.no_grad():
        for weight, layer in zip(weights, made[:-1], strict=True):
            weight.copy_(layer.weight if isinstance(layer, nn.Embedding) else layer.weight.T)
    return Logits(model)


def llama(size: str) -> nn.Module:
    """Llama (arXiv 2302.13971); the sizes "1B" and "tiny" as Llama 3.2 (arXiv 2407.21783)."""
    rope = {"rope_type": "default", "rope_theta": 500_000.0}
    how = {"tie_word_embeddings": True, "rms_norm_eps": 1e-5, "rope_parameters": rope}
    config = transformers.LlamaConfig(**{**how, **LLAMA_SIZES[size], "use_cache": False})
    return Logits(transformers.LlamaForCausalLM(config))


def resnet(depth: int) -> nn.Module:
    """Images (batch, 3, height, width) -> (batch, 1000); the stride is the 3x3's."""
    how: Any = {"num_labels": 1000, "depths": [2, 2, 2, 2] if depth == 18 else [3, 4, 6, 3]}
    if depth < 50:
        how |= {"hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}
    return Logits(transformers.ResNetForImageClassification(transformers.ResNetConfig(**how)))
