"""Tests that imported models of the published code and of the authors compute the same."""

import json
import re

import pytest
import pyvene_backpack
import torch
from models import SMALL, assert_close, config_json, random_ids, random_weights
from safetensors.torch import load_file, save_file

SHAPES = [SMALL | {"num_senses": 1, "n_layer": 1}, SMALL | {"sense_intermediate_scale": 1, "n_inner": 50}]


LAYOUTS = ["safetensors", "sharded", "bin", "sharded bin", "aliases and masks"]


def save(model, folder, layout):
    folder.mkdir()
    if layout == "aliases and masks":
        # The format of older transformers releases: all aliases, and the causal masks.
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        t = model.config.n_positions
        for layer in range(model.config.n_layer):
            name = f"backpack.gpt2_model.h.{layer}.attn"
            tensors[f"{name}.bias"] = torch.ones(1, 1, t, t, dtype=torch.bool).tril()
            tensors[f"{name}.masked_bias"] = torch.tensor(-1e4)
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    # One name per shared tensor, because safetensors cannot store a tensor twice.
    state = None if "bin" in layout else dict(model.named_parameters())
    size = "50KB" if layout.startswith("sharded") else "5GB"
    model.save_pretrained(folder, state_dict=state, safe_serialization="bin" not in layout, max_shard_size=size)
    if layout.startswith("sharded"):
        assert list(folder.glob("*.index.json"))


@pytest.mark.parametrize(
    ("shape", "layout"), [*((SMALL, layout) for layout in LAYOUTS), *((shape, LAYOUTS[0]) for shape in SHAPES)]
)
def test_a_model_of_the_published_code(backpack, tmp_path, shape, layout):
    theirs = pyvene_backpack.random_model(shape)
    save(theirs, tmp_path / "theirs", layout)
    backpack("import", "--input", tmp_path / "theirs", "--output", tmp_path / "imported")
    ids = random_ids(shape, shape["n_positions"])
    dumped = backpack.dump(tmp_path / "imported", ids.tolist())
    for name, tensor in pyvene_backpack.compute(theirs, ids).items():
        assert_close(dumped[name], tensor)


def test_import_then_export_gives_the_same_tensors(backpack, tmp_path):
    theirs = pyvene_backpack.random_model(SMALL)
    save(theirs, tmp_path / "theirs", "safetensors")
    backpack("import", "--input", tmp_path / "theirs", "--output", tmp_path / "imported")
    exported = backpack.export(tmp_path / "imported", tmp_path / "exported")
    tensors = load_file(exported / "model.safetensors")
    # Each shared tensor is stored once, under the first name in named_parameters.
    parameters = dict(theirs.named_parameters())
    assert tensors.keys() == parameters.keys()
    assert all(torch.equal(tensor, parameters[name]) for name, tensor in tensors.items())


# Patterns that map our names to the authors' names; their nn.Linear weights are [out, in].
LIGHTNING = [
    (r"backpack\.gpt2_model\.wte\.weight", "transformer.gpt2_model.embeddings.word_embeddings.weight"),
    (r"backpack\.gpt2_model\.wpe\.weight", "transformer.gpt2_model.embeddings.position_embeddings.weight"),
    (r"backpack\.gpt2_model\.h\.0\.ln_1\.", "transformer.gpt2_model.ln_0."),
    (r"backpack\.gpt2_model\.h\.(\d+)\.ln_2\.", r"transformer.gpt2_model.layers.\1.norm1."),
    (r"backpack\.gpt2_model\.h\.(\d+)\.attn\.c_attn\.", r"transformer.gpt2_model.layers.\1.mixer.Wqkv."),
    (r"backpack\.gpt2_model\.h\.(\d+)\.attn\.c_proj\.", r"transformer.gpt2_model.layers.\1.mixer.out_proj."),
    (r"backpack\.gpt2_model\.h\.(\d+)\.mlp\.c_fc\.", r"transformer.gpt2_model.layers.\1.mlp.fc1."),
    (r"backpack\.gpt2_model\.h\.(\d+)\.mlp\.c_proj\.", r"transformer.gpt2_model.layers.\1.mlp.fc2."),
    (r"backpack\.sense_network\.ln\.", "transformer.content_model.ln_0."),
    (r"backpack\.sense_network\.block\.ln_1\.", "transformer.content_model.layers.0.norm1."),
    (r"backpack\.sense_network\.block\.ln_2\.", "transformer.content_model.layers.0.norm2."),
    (r"backpack\.sense_network\.block\.mlp\.c_fc\.", "transformer.content_model.layers.0.mlp.fc1."),
    (r"backpack\.sense_network\.block\.mlp\.c_proj\.", "transformer.content_model.layers.0.mlp.fc2."),
    (r"backpack\.sense_network\.final_mlp\.c_fc\.", "transformer.content_model.final_mlp.fc1."),
    (r"backpack\.sense_network\.final_mlp\.c_proj\.", "transformer.content_model.final_mlp.fc2."),
    (r"backpack\.sense_weight_net\.c_attn\.", "transformer.contextualization_attn.Wqkv."),
]


def authors_name(name: str, n_layer: int) -> str:
    # There, the LayerNorm of the input of block i belongs to block i - 1.
    if found := re.fullmatch(r"backpack\.gpt2_model\.(?:h\.([1-9]\d*)\.ln_1|ln_f)\.(\w+)", name):
        return f"transformer.gpt2_model.layers.{int(found[1] or n_layer) - 1}.norm2.{found[2]}"
    for pattern, replacement in LIGHTNING:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name)
    raise KeyError(name)


def test_a_checkpoint_of_the_authors(backpack, tmp_path):
    config = config_json(SMALL)
    weights = random_weights(config)
    state = {}
    for name, tensor in weights.items():
        conv1d = tensor.dim() == 2 and not re.search(r"wte|wpe|sense_weight_net", name)
        state["model." + authors_name(name, config["n_layer"])] = tensor.t().contiguous() if conv1d else tensor
    for part in ["transformer", "transformer.content_model"]:
        for which in ["word", "position"]:
            tensor = state[f"model.transformer.gpt2_model.embeddings.{which}_embeddings.weight"]
            state[f"model.{part}.embeddings.{which}_embeddings.weight"] = tensor
    state["model.lm_head.weight"] = weights["backpack.gpt2_model.wte.weight"]
    # Other entries of a Lightning checkpoint, in plain containers.
    extra = {"epoch": 1, "global_step": 10, "pytorch-lightning_version": "1.8.6", "loops": {}, "lr_schedulers": [{}]}
    folder = tmp_path / "authors"
    folder.mkdir()
    torch.save({"state_dict": state, **extra}, folder / "last.ckpt")
    arguments = ["import", "--input", folder / "last.ckpt", "--output"]
    backpack(*arguments, tmp_path / "given", "--n-head", config["n_head"])
    # The number of heads does not follow from the tensors: it comes from --n-head or from a
    # config.json next to the checkpoint.
    (folder / "config.json").write_text(json.dumps(config))
    backpack(*arguments, tmp_path / "found")
    for name in ["given", "found"]:
        imported = load_file(tmp_path / name / "model.safetensors")
        assert imported.keys() == weights.keys()
        assert all(torch.equal(tensor, weights[name]) for name, tensor in imported.items())


def test_a_plain_gpt2_can_initialize_the_trunk(backpack, tmp_path):
    shape = {key: value for key, value in SMALL.items() if key != "num_senses"}
    config = config_json(shape, "GPT2LMHeadModel", scale_attn_by_inverse_layer_idx=False)
    weights = random_weights(config)
    folder = tmp_path / "gpt2"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    # The tensor names of the published gpt2 have no prefix.
    plain = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    backpack("import", "--input", folder, "--output", tmp_path / "imported")
    imported = load_file(tmp_path / "imported/model.safetensors")
    assert imported.keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in imported.items())


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_with_code_is_refused_and_not_run(backpack, tmp_path):
    folder = tmp_path / "harmful"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_json(SMALL)))
    tensors = random_weights(config_json(SMALL))
    torch.save({**tensors, "extra": Harmful(tmp_path / "was-run")}, folder / "pytorch_model.bin")
    backpack("import", "--input", folder, "--output", tmp_path / "imported", code=1)
    assert not (tmp_path / "was-run").exists()
    assert not (tmp_path / "imported").exists()
