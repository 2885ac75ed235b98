"""Tests that GPT-2 baselines are exported as plain GPT-2 models, correct with every attention
implementation."""

import pytest
import torch
from models import SMALL, assert_close, config_json, random_ids, write_model
from transformers import AutoModelForCausalLM


@pytest.mark.parametrize("inverse_scale", [True, False])
@pytest.mark.parametrize("options", [{}, {"attn_implementation": "eager"}], ids=["default", "eager"])
def test_a_baseline_is_a_plain_gpt2(backpack, tmp_path, inverse_scale, options):
    shape = {key: value for key, value in SMALL.items() if key != "num_senses"}
    config = config_json(shape, "GPT2LMHeadModel", scale_attn_by_inverse_layer_idx=inverse_scale)
    checkpoint = write_model(tmp_path / "checkpoint", config)
    exported = backpack.export(checkpoint, tmp_path / "exported")
    model, issues = AutoModelForCausalLM.from_pretrained(exported, output_loading_info=True, **options)
    assert not any(issues.values()), issues
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert not model.config.scale_attn_by_inverse_layer_idx
    ids = random_ids(config, 1, SMALL["n_positions"])
    with torch.no_grad():
        assert_close(model(ids).logits[0], backpack.dump(checkpoint, ids[0].tolist())["logits"])
    assert_close(backpack.dump(exported, ids[0].tolist())["logits"], model(ids).logits[0].detach())
