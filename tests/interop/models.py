"""Models for the tests, with the parameter names and shapes of the published models."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

SMALL = {"vocab_size": 311, "n_positions": 32, "n_embd": 40, "n_layer": 3, "n_head": 4, "num_senses": 4}
# The published vocabulary and context length with a small width.
PUBLISHED = {"vocab_size": 50264, "n_positions": 512, "n_embd": 32, "n_layer": 2, "n_head": 4, "num_senses": 16}
END_OF_TEXT = 50256  # of GPT-2; the seven ids above it are padding


def config_json(shape: dict, architecture: str = "BackpackGPT2LMHeadModel", **keys) -> dict:
    end_of_text = min(END_OF_TEXT, shape["vocab_size"] - 1)
    config = {"model_type": "gpt2", "architectures": [architecture], "activation_function": "gelu_new"}
    config |= {"layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "scale_attn_by_inverse_layer_idx": True}
    config |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "sense_intermediate_scale": 4}
    config |= {"bos_token_id": end_of_text, "eos_token_id": end_of_text, "tie_word_embeddings": True}
    return config | shape | keys


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Returns the published parameter names and shapes; `Conv1D` weights are [in, out]."""
    d, names = config["n_embd"], {}

    def layer(name, n_in, n_out):
        names[f"{name}.weight"], names[f"{name}.bias"] = (n_in, n_out), (n_out,)

    def norm(name):
        names[f"{name}.weight"], names[f"{name}.bias"] = (d,), (d,)

    def mlp(name, n_inner, n_out):
        layer(f"{name}.c_fc", d, n_inner)
        layer(f"{name}.c_proj", n_inner, n_out)

    is_backpack = config["architectures"] == ["BackpackGPT2LMHeadModel"]
    trunk = "backpack.gpt2_model" if is_backpack else "transformer"
    names[f"{trunk}.wte.weight"] = (config["vocab_size"], d)
    names[f"{trunk}.wpe.weight"] = (config["n_positions"], d)
    for i in range(config["n_layer"]):
        norm(f"{trunk}.h.{i}.ln_1")
        layer(f"{trunk}.h.{i}.attn.c_attn", d, 3 * d)
        layer(f"{trunk}.h.{i}.attn.c_proj", d, d)
        norm(f"{trunk}.h.{i}.ln_2")
        mlp(f"{trunk}.h.{i}.mlp", config.get("n_inner") or 4 * d, d)
    norm(f"{trunk}.ln_f")
    if is_backpack:
        senses = "backpack.sense_network"
        for name in ["ln", "block.ln_1", "block.ln_2"]:
            norm(f"{senses}.{name}")
        mlp(f"{senses}.block.mlp", config.get("sense_block_inner") or 4 * d, d)
        mlp(f"{senses}.final_mlp", config["sense_intermediate_scale"] * d, config["num_senses"] * d)
        # The layout of nn.Linear: [out, in].
        names["backpack.sense_weight_net.c_attn.weight"] = (2 * d, d)
        names["backpack.sense_weight_net.c_attn.bias"] = (2 * d,)
    return names


def random_weights(config: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    """Returns weights larger than at initialization, so that every path affects the logits."""
    generator = torch.Generator().manual_seed(seed)
    draw = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes(config).items()}
    return {name: t + 1 if "ln" in name and name.endswith("weight") else t for name, t in draw.items()}


def write_model(directory: Path, config: dict, weights: dict[str, torch.Tensor] | None = None) -> Path:
    """Writes a directory that the binary accepts as a model or a checkpoint."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    save_file(weights or random_weights(config), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def random_ids(config: dict, *size: int) -> torch.Tensor:
    return torch.randint(0, config["vocab_size"], size)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert ours.shape == theirs.shape
    difference = (ours.float() - theirs.float()).abs().max().item()
    assert difference <= tolerance, difference
