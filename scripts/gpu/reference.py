"""The Backpack and its GPT-2 baseline in PyTorch. The other scripts compare `backpack` with them.

Parameters have the Hugging Face names, so `load` reads the output of `backpack export`, a
checkpoint or a fixture. Needs torch 2.9 or newer, and runs on CPUs and GPUs.
"""

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

SIZES = {"micro": (384, 6, 6), "mini": (640, 8, 8), "small": (768, 12, 12)}


@dataclass
class Shape:
    """The architecture and the sizes of a model."""

    architecture: str = "backpack"  # or "gpt2"
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_positions: int = 512
    vocab_size: int = 50264
    num_senses: int = 16
    sense_intermediate_scale: int = 4
    n_inner: int | None = None
    layer_norm_epsilon: float = 1e-5
    scale_attn_by_inverse_layer_idx: bool = True
    dropout: float = 0.0

    @classmethod
    def of_size(cls, size: str, **changes):
        width, layers, heads = SIZES[size]
        return cls(n_embd=width, n_layer=layers, n_head=heads, **changes)

    @classmethod
    def load(cls, folder: Path):
        saved = json.loads((folder / "config.json").read_text())
        known = {f.name: saved[f.name] for f in fields(cls) if f.name in saved}
        architecture = "backpack" if "num_senses" in saved else "gpt2"
        return cls(**known, architecture=architecture)

    def hugging_face(self) -> dict:
        """Returns the content of config.json, which `backpack` reads."""
        sizes = {f.name: getattr(self, f.name) for f in fields(self)}
        del sizes["architecture"], sizes["dropout"]
        if self.architecture == "gpt2":
            del sizes["num_senses"], sizes["sense_intermediate_scale"]
        classes = {"backpack": "BackpackGPT2LMHeadModel", "gpt2": "GPT2LMHeadModel"}
        dropout = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), self.dropout)
        return {
            **sizes,
            **dropout,
            "model_type": "gpt2",
            "architectures": [classes[self.architecture]],
            "activation_function": "gelu_new",
            "initializer_range": 0.02,
            "scale_attn_weights": True,
            "reorder_and_upcast_attn": False,
            "tie_word_embeddings": True,
            "torch_dtype": "float32",
            "bos_token_id": self.vocab_size - 1,
            "eos_token_id": self.vocab_size - 1,
        }

    def flops_per_token(self, length: int) -> float:
        """Returns FLOPs per token as `backpack bench` counts them: 6 per weight of a product, and
        attention and mixing as if they were not causal."""
        with torch.device("meta"):
            parameters = sum(p.numel() for p in build(self).parameters())
        flops = 6 * (parameters - self.n_positions * self.n_embd)
        flops += 12 * self.n_layer * self.n_embd * length
        if self.architecture == "backpack":
            flops += 6 * (1 + self.num_senses) * length * self.n_embd
        return float(flops)


class Conv1D(nn.Module):
    """x W + b with W stored as [inputs, outputs], as in Hugging Face's GPT-2."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return F.linear(x, self.weight.t(), self.bias)


class Mlp(nn.Module):
    def __init__(self, inputs: int, inner: int, outputs: int):
        super().__init__()
        self.c_fc = Conv1D(inputs, inner)
        self.c_proj = Conv1D(inner, outputs)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Attention(nn.Module):
    def __init__(self, c: Shape, layer: int):
        super().__init__()
        self.c_attn = Conv1D(c.n_embd, 3 * c.n_embd)
        self.c_proj = Conv1D(c.n_embd, c.n_embd)
        self.heads, self.dropout = c.n_head, c.dropout
        divisor = layer + 1 if c.scale_attn_by_inverse_layer_idx else 1
        self.scale = (c.n_embd // c.n_head) ** -0.5 / divisor

    def forward(self, x):
        b, t, d = x.shape
        query, key, value = (
            part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).split(d, 2)
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True, scale=self.scale
        )
        return self.c_proj(y.transpose(1, 2).reshape(b, t, d))


class Block(nn.Module):
    def __init__(self, c: Shape, layer: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(c.n_embd, eps=c.layer_norm_epsilon)
        self.attn = Attention(c, layer)
        self.ln_2 = nn.LayerNorm(c.n_embd, eps=c.layer_norm_epsilon)
        self.mlp = Mlp(c.n_embd, c.n_inner or 4 * c.n_embd, c.n_embd)
        self.drop = nn.Dropout(c.dropout)

    def forward(self, x):
        x = x + self.drop(self.attn(self.ln_1(x)))
        return x + self.drop(self.mlp(self.ln_2(x)))


class Trunk(nn.Module):
    """GPT-2 without its output head."""

    def __init__(self, c: Shape):
        super().__init__()
        self.wte = nn.Embedding(c.vocab_size, c.n_embd)
        self.wpe = nn.Embedding(c.n_positions, c.n_embd)
        self.drop = nn.Dropout(c.dropout)
        self.h = nn.ModuleList(Block(c, layer) for layer in range(c.n_layer))
        self.ln_f = nn.LayerNorm(c.n_embd, eps=c.layer_norm_epsilon)

    def forward(self, ids):
        x = self.drop(self.wte(ids) + self.wpe.weight[: ids.shape[1]])
        for block in self.h:
            x = block(x)
        return self.ln_f(x)


class SenseBlock(nn.Module):
    def __init__(self, c: Shape):
        super().__init__()
        self.ln_1 = nn.LayerNorm(c.n_embd, eps=c.layer_norm_epsilon)
        self.ln_2 = nn.LayerNorm(c.n_embd, eps=c.layer_norm_epsilon)
        self.mlp = Mlp(c.n_embd, 4 * c.n_embd, c.n_embd)


class SenseNetwork(nn.Module):
    def __init__(self, c: Shape):
        super().__init__()
        self.ln = nn.LayerNorm(c.n_embd, eps=c.layer_norm_epsilon)
        self.block = SenseBlock(c)
        self.final_mlp = Mlp(c.n_embd, c.sense_intermediate_scale * c.n_embd, c.num_senses * c.n_embd)
        self.drop = nn.Dropout(c.dropout)

    def forward(self, embeddings):
        x = self.drop(embeddings)
        x = x + self.drop(self.ln(x))
        x = x + self.drop(self.block.mlp(self.block.ln_1(x)))
        return self.final_mlp(self.block.ln_2(x))


class SenseWeights(nn.Module):
    def __init__(self, c: Shape):
        super().__init__()
        self.c_attn = nn.Linear(c.n_embd, 2 * c.n_embd)
        self.senses = c.num_senses

    def forward(self, hidden):
        b, t, d = hidden.shape
        query, key = (
            part.view(b, t, self.senses, -1).transpose(1, 2)
            for part in self.c_attn(hidden).split(d, 2)
        )
        scores = (query @ key.transpose(2, 3)).float() * (d // self.senses) ** -0.5
        future = torch.ones(t, t, dtype=torch.bool, device=hidden.device).triu(1)
        return scores.masked_fill(future, float("-inf")).softmax(-1)


class BackpackParts(nn.Module):
    def __init__(self, c: Shape):
        super().__init__()
        self.gpt2_model = Trunk(c)
        self.sense_network = SenseNetwork(c)
        self.sense_weight_net = SenseWeights(c)


class LanguageModel(nn.Module):
    """A Backpack or a GPT-2 with its loss. `mix` selects how senses are summed: "product" is one
    matrix product over all (word, sense) pairs, as in `backpack`; "senses" is one product per
    sense, as in the published code."""

    def __init__(self, c: Shape, mix: str = "product"):
        super().__init__()
        self.shape, self.mix = c, mix
        if c.architecture == "backpack":
            self.backpack = BackpackParts(c)
        else:
            self.transformer = Trunk(c)

    @property
    def trunk(self) -> Trunk:
        is_backpack = self.shape.architecture == "backpack"
        return self.backpack.gpt2_model if is_backpack else self.transformer

    def senses(self, ids):
        """Returns the senses [B, T, L, D] of ids [B, T]."""
        c = self.shape
        flat = self.backpack.sense_network(self.trunk.wte(ids))
        return flat.view(*ids.shape, c.num_senses, c.n_embd)

    def contextualization(self, ids):
        return self.backpack.sense_weight_net(self.trunk(ids))

    def hidden(self, ids):
        """Returns the input [B, T, D] of the head for ids [B, T]."""
        if self.shape.architecture == "gpt2":
            return self.trunk(ids)
        weights, senses = self.contextualization(ids), self.senses(ids)
        b, t, num_senses, d = senses.shape
        weights = weights.to(senses.dtype)
        if self.mix == "senses":
            return (weights @ senses.transpose(1, 2)).sum(1)
        pairs = t * num_senses
        return weights.permute(0, 2, 3, 1).reshape(b, t, pairs) @ senses.reshape(b, pairs, d)

    def forward(self, ids):
        return F.linear(self.hidden(ids), self.trunk.wte.weight)

    def loss(self, ids, targets):
        return F.cross_entropy(self(ids).float().flatten(0, 1), targets.flatten())


def build(c: Shape, **options) -> LanguageModel:
    return LanguageModel(c, **options)


@torch.no_grad()
def initialize(model: LanguageModel, seed: int) -> LanguageModel:
    """Initializes the model with the published distribution. The random numbers differ from those
    of `backpack`."""
    generator = torch.Generator().manual_seed(seed)
    residual = 0.02 / math.sqrt(2 * model.shape.n_layer)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            deviation = residual if name.endswith("c_proj.weight") else 0.02
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return model


def load(folder: Path, **options) -> LanguageModel:
    from safetensors.torch import load_file

    model = build(Shape.load(folder), **options)
    saved = load_file(folder / "model.safetensors")
    model.load_state_dict({name: saved[name].float() for name in model.state_dict()})
    return model


def save(model: LanguageModel, folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.shape.hugging_face(), indent=1))
    state = model.state_dict()
    tensors = {name: state[name].detach().float().cpu().contiguous() for name in state}
    save_file(tensors, folder / "model.safetensors")


def optimizer(model: LanguageModel, learning_rate=6e-4, decay=0.1, eps=1e-8):
    """Returns AdamW with weight decay on the weights of linear layers only."""
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        linear = parameter.dim() == 2 and not name.endswith(("wte.weight", "wpe.weight"))
        (decayed if linear else others).append(parameter)
    groups = [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), eps=eps, fused=True)
