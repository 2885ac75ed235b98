"""Trains a Backpack in plain PyTorch, written only from the description of the published run. It is
the reference of test_training.py. Dropout 0, fp32, sequences in the order of the data."""

import json
import math

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file


class Backpack:
    """The network as functions of a dictionary of tensors with Hugging Face names."""

    def __init__(self, directory):
        with open(f"{directory}/config.json") as file:
            self.config = json.load(file)
        tensors = load_file(f"{directory}/model.safetensors")
        self.weights = {
            name.removeprefix("backpack."): tensor.clone().requires_grad_() for name, tensor in tensors.items()
        }

    def norm(self, x, name):
        w = self.weights
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def conv1d(self, x, name):
        return x @ self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def mlp(self, x, name):
        return self.conv1d(F.gelu(self.conv1d(x, f"{name}.c_fc"), approximate="tanh"), f"{name}.c_proj")

    @staticmethod
    def causal_softmax(scores):
        length = scores.shape[-1]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        return scores.masked_fill(future, -math.inf).softmax(-1)

    def trunk(self, ids):
        heads, width = self.config["n_head"], self.config["n_embd"]
        batch, length = ids.shape
        x = self.weights["gpt2_model.wte.weight"][ids] + self.weights["gpt2_model.wpe.weight"][:length]
        for layer in range(self.config["n_layer"]):
            name = f"gpt2_model.h.{layer}"
            qkv = self.conv1d(self.norm(x, f"{name}.ln_1"), f"{name}.attn.c_attn")
            q, k, v = (t.view(batch, length, heads, -1).transpose(1, 2) for t in qkv.split(width, -1))
            scale = (width // heads) ** -0.5
            if self.config["scale_attn_by_inverse_layer_idx"]:
                scale /= layer + 1
            mixed = self.causal_softmax(q @ k.transpose(2, 3) * scale) @ v
            x = x + self.conv1d(mixed.transpose(1, 2).reshape(batch, length, width), f"{name}.attn.c_proj")
            x = x + self.mlp(self.norm(x, f"{name}.ln_2"), f"{name}.mlp")
        return self.norm(x, "gpt2_model.ln_f")

    def logits(self, ids):
        senses_count, width = self.config["num_senses"], self.config["n_embd"]
        batch, length = ids.shape
        w = self.weights
        qk = self.trunk(ids) @ w["sense_weight_net.c_attn.weight"].T + w["sense_weight_net.c_attn.bias"]
        q, k = (t.view(batch, length, senses_count, -1).transpose(1, 2) for t in qk.split(width, -1))
        weights = self.causal_softmax(q @ k.transpose(2, 3) / math.sqrt(width // senses_count))
        x = w["gpt2_model.wte.weight"][ids]
        x = x + self.norm(x, "sense_network.ln")
        x = x + self.mlp(self.norm(x, "sense_network.block.ln_1"), "sense_network.block.mlp")
        senses = self.mlp(self.norm(x, "sense_network.block.ln_2"), "sense_network.final_mlp")
        senses = senses.view(batch, length, senses_count, width).transpose(1, 2)
        return (weights @ senses).sum(1) @ w["gpt2_model.wte.weight"].T


def learning_rate(step, peak, warmup, total):
    """Returns the learning rate of a step (from 0): linear from 0 to `peak`, then linear to 0 at
    `total`."""
    return peak * step / warmup if step < warmup else peak * (total - step) / (total - warmup)


def train(directory, ids_file, sequences, length, steps, peak, warmup):
    """Returns the loss of the batch of each step, before its update."""
    model = Backpack(directory)
    linear = [t for name, t in model.weights.items() if t.dim() == 2 and "wte" not in name and "wpe" not in name]
    others = [t for t in model.weights.values() if all(t is not other for other in linear)]
    groups = [{"params": linear, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8)
    tokens = torch.from_numpy(np.fromfile(ids_file, dtype="<u2").astype(np.int64))
    blocks = (len(tokens) - 1) // length
    losses = []
    for step in range(steps):
        numbers = [(step * sequences + i) % blocks for i in range(sequences)]
        batch = torch.stack([tokens[n * length : n * length + length + 1] for n in numbers])
        logits = model.logits(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.weights.values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, peak, warmup, steps)
        optimizer.step()
        losses.append(loss.item())
    return losses
