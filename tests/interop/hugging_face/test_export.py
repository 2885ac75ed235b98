"""Tests that an exported model is complete and computes the same as the binary."""

import json

import pytest
import torch
import torch.nn.functional as F
from models import PUBLISHED, SMALL, assert_close, config_json, random_ids, shapes, write_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

AUTO_MAP = {
    "AutoConfig": "configuration_backpack_gpt2.BackpackGPT2Config",
    "AutoModelForCausalLM": "modeling_backpack_gpt2.BackpackGPT2LMHeadModel",
}


def load(path, **options):
    """Loads a model with the code of the model card."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=True)
    return AutoModelForCausalLM.from_pretrained(path, config=config, trust_remote_code=True, **options)


def test_the_export_is_complete(exported):
    names = {path.name for path in exported.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md"} <= names
    assert {"configuration_backpack_gpt2.py", "modeling_backpack_gpt2.py"} <= names
    config = json.loads((exported / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    weights = load_file(exported / "model.safetensors")
    assert {name: tuple(t.shape) for name, t in weights.items()} == shapes(config)


def test_it_loads_without_warnings(exported):
    _, issues = load(exported, output_loading_info=True)
    assert not any(issues.values()), issues


def test_outputs_equal_the_reference(exported, fixture_model):
    model, reference = load(exported), load_file(fixture_model / "forward.safetensors")
    inputs, targets = reference["tokens"][:, :-1], reference["tokens"][:, 1:]
    with torch.no_grad():
        outputs = model(inputs, output_hidden_states=True)
        senses = model.backpack.senses(reference["sense_ids"][None])[0].transpose(0, 1)
        combined = model.backpack(inputs).last_hidden_state
        again = model.run_with_custom_contextualization(inputs, outputs.contextualization)
    assert_close(outputs.logits, reference["logits"])
    assert_close(again.logits, reference["logits"])
    assert_close(outputs.contextualization, reference["contextualization"])
    assert_close(outputs.hidden_states[-1], reference["body_hidden"])
    assert len(outputs.hidden_states) == model.config.n_layer + 1
    assert_close(combined, reference["output_hidden"])
    assert_close(senses, reference["senses"])
    loss = F.cross_entropy(outputs.logits.flatten(0, 1), targets.flatten())
    assert_close(loss, reference["loss"])


def test_outputs_equal_those_of_the_binary(exported, backpack):
    model = load(exported)
    ids = random_ids(vars(model.config), 1, model.config.n_positions)
    dumped = backpack.dump(exported, ids[0].tolist())
    with torch.no_grad():
        outputs = model(ids, labels=ids)
        senses = model.backpack.senses(ids)
    assert_close(outputs.logits[0], dumped["logits"])
    assert_close(outputs.contextualization[0], dumped["contextualization"])
    assert_close(senses[0].transpose(0, 1), dumped["senses"])
    assert_close(outputs.loss, F.cross_entropy(dumped["logits"][:-1], ids[0, 1:]))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_implementation_does_not_matter(exported, attention):
    model = load(exported, attn_implementation=attention)
    ids = random_ids(vars(model.config), 1, 8)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, load(exported)(ids).logits)


def test_the_model_cards_snippet(backpack, tmp_path):
    checkpoint = write_model(tmp_path / "checkpoint", config_json(PUBLISHED))
    exported = backpack.export(checkpoint, tmp_path / "exported")
    config = AutoConfig.from_pretrained(exported, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(exported, config=config, trust_remote_code=True)
    model.eval()
    inputs = torch.randint(0, 50264, (1, 512), dtype=torch.long)
    with torch.no_grad():
        probabilities = F.softmax(model(inputs).logits, dim=-1)
    assert probabilities.shape == (1, 512, 50264)
    assert_close(probabilities.sum(-1), torch.ones(1, 512))
    assert_close(probabilities[0], backpack.dump(checkpoint, inputs[0].tolist())["logits"].softmax(-1), 1e-5)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_weights(backpack, fixture_model, tmp_path, name):
    dtype, flag = getattr(torch, name), {"bfloat16": "bf16", "float16": "fp16"}[name]
    exported = backpack.export(fixture_model, tmp_path / "exported", "--dtype", flag)
    stored, original = load_file(exported / "model.safetensors"), load_file(fixture_model / "model.safetensors")
    assert all(torch.equal(tensor, original[key].to(dtype)) for key, tensor in stored.items())
    assert json.loads((exported / "config.json").read_text())["torch_dtype"] == name
    model = load(exported, torch_dtype="auto")
    assert model.dtype == dtype
    assert_close(model(torch.arange(8)[None]).logits, load(exported).float()(torch.arange(8)[None]).logits, 1.0)


def test_a_narrow_sense_block(backpack, tmp_path):
    """As in the authors' `shrink_final_inner`, both MLPs of the sense network have the inner width
    n_embd."""
    config = config_json(SMALL, sense_intermediate_scale=1, sense_block_inner=SMALL["n_embd"])
    checkpoint = write_model(tmp_path / "checkpoint", config)
    exported = backpack.export(checkpoint, tmp_path / "exported")
    ids = random_ids(config, 1, 16)
    with torch.no_grad():
        assert_close(load(exported)(ids).logits[0], backpack.dump(checkpoint, ids[0].tolist())["logits"])


def test_edited_senses_are_exported(backpack, fixture_model, tmp_path):
    cases = json.loads((fixture_model / "cases.json").read_text())
    reference = load_file(fixture_model / "forward.safetensors")
    for name in ["edit_single", "edit_multi"]:
        edits = tmp_path / f"{name}.json"
        edits.write_text(json.dumps(cases[name]))
        exported = backpack.export(fixture_model, tmp_path / name, "--edit", edits)
        model, issues = load(exported, output_loading_info=True)
        assert not any(issues.values()), issues
        assert model.config.num_edited_tokens == len({edit["token"] for edit in cases[name]})
        with torch.no_grad():
            assert_close(model(reference["edit_ids"]).logits, reference[f"{name}_logits"])
        model.save_pretrained(tmp_path / f"{name}-saved")
        assert_close(load(tmp_path / f"{name}-saved").backpack.edited_senses.vectors, model.backpack.edited_senses.vectors)
        # A second export and an import of the export compute the same.
        ids = reference["edit_ids"][0].tolist()
        again = backpack.export(exported, tmp_path / f"{name}-again")
        imported = tmp_path / f"{name}-imported"
        backpack("import", "--input", exported, "--output", imported)
        for model_dir in [exported, again, imported]:
            assert_close(backpack.dump(model_dir, ids)["logits"], reference[f"{name}_logits"][0])
