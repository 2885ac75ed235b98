"""Tests common uses of an exported model: batches, generation, pipelines, training, saving."""

import json

import pytest
import torch
from models import PUBLISHED, assert_close, config_json, random_ids, random_weights, write_model
from safetensors.torch import load_file
from test_export import load
from transformers import AutoTokenizer, pipeline


@pytest.fixture(scope="session")
def published(backpack, tmp_path_factory):
    """A model with the published vocabulary, whose padding ids would be generated if not
    suppressed."""
    directory = tmp_path_factory.mktemp("published")
    config = config_json(PUBLISHED)
    weights = random_weights(config)
    weights["backpack.gpt2_model.wte.weight"][50257:] *= 100
    return backpack.export(write_model(directory / "checkpoint", config, weights), directory / "exported")


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(exported, side):
    model = load(exported)
    length, lengths = 20, [20, 13, 1]
    ids = random_ids(vars(model.config), len(lengths), length)
    mask = torch.zeros_like(ids)
    for row, n in enumerate(lengths):
        real = slice(length - n, length) if side == "left" else slice(0, n)
        mask[row, real] = 1
    with torch.no_grad():
        batch = model(ids, attention_mask=mask)
        for row in range(len(lengths)):
            real = mask[row].bool()
            alone = model(ids[row, real][None])
            assert_close(batch.logits[row, real], alone.logits[0], 2e-5)
            assert_close(batch.contextualization[row][:, real][:, :, real], alone.contextualization[0], 1e-6)
    assert batch.logits.isfinite().all()


def test_greedy_generation_equals_the_binary_past_the_context_length(exported, fixture_model, backpack):
    model = load(exported)
    for case in json.loads((fixture_model / "cases.json").read_text())["generation"]:
        prompt, new = torch.tensor([case["prompt"]]), case["new_tokens"]
        # No stop token: the fixture continues after an end of text.
        options = {"do_sample": False, "max_new_tokens": len(new), "eos_token_id": None, "pad_token_id": 0}
        output = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        assert output[0, prompt.shape[1] :].tolist() == new
        command = ["generate", "--model", exported, "--prompt-ids", ",".join(map(str, case["prompt"]))]
        answer = json.loads(backpack(*command, "--max-new-tokens", len(new), "--greedy", "--json"))
        assert answer["new_ids"] == new


def test_generation_of_a_padded_batch(exported):
    model = load(exported)
    ids = random_ids(vars(model.config), 2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]])
    options = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}
    batch = model.generate(ids, attention_mask=mask, **options)
    alone = model.generate(ids[1:, 3:], attention_mask=mask[1:, 3:], **options)
    assert batch[1, 6:].tolist() == alone[0, 3:].tolist()


def test_sampling_is_reproducible_and_beams_work(exported):
    model = load(exported)
    prompt = random_ids(vars(model.config), 1, 4)

    def generate(**options):
        torch.manual_seed(7)
        return model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, **options)

    assert torch.equal(generate(do_sample=True, top_k=50), generate(do_sample=True, top_k=50))
    beams = generate(do_sample=False, num_beams=3)
    assert torch.equal(beams, generate(do_sample=False, num_beams=3, use_cache=True))


def test_padding_ids_have_logits_and_are_never_generated(published):
    model = load(published)
    assert model.generation_config.suppress_tokens == list(range(50257, 50264))
    prompts = torch.arange(0, 50000, 500)[:, None]
    mask = torch.ones_like(prompts)
    with torch.no_grad():
        logits = model(prompts).logits
    assert logits.shape[-1] == 50264
    assert (logits.argmax(-1) >= 50257).float().mean() > 0.5
    for options in [{"do_sample": False}, {"do_sample": True, "top_k": 0}, {"do_sample": False, "num_beams": 2}]:
        output = model.generate(prompts, attention_mask=mask, max_new_tokens=4, **options)
        assert (output < 50257).all()


def test_a_pipeline_writes_text(published, capfd):
    generator = pipeline("text-generation", model=str(published), trust_remote_code=True)
    options = {"max_new_tokens": 5, "do_sample": False}
    answer = generator("The cat sat on", **options)[0]["generated_text"]
    assert answer.startswith("The cat sat on") and len(answer) > len("The cat sat on")
    tokenizer = AutoTokenizer.from_pretrained(published)
    assert tokenizer("The cat<|endoftext|>")["input_ids"] == [464, 3797, 50256]
    assert tokenizer.model_max_length == 512
    # A batch that the pipeline pads.
    generator.tokenizer.pad_token = generator.tokenizer.eos_token
    generator.tokenizer.padding_side = "left"
    texts = ["The cat sat on", "Once"]
    batched = [a[0]["generated_text"] for a in generator(texts, batch_size=2, **options)]
    assert batched == [generator(text, **options)[0]["generated_text"] for text in texts]
    assert "not supported" not in capfd.readouterr().err


def test_a_training_step(exported):
    model = load(exported)
    model.train()
    ids = random_ids(vars(model.config), 2, 16)
    ignored = ids.clone()
    ignored[0, :8] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = model(ids, labels=ignored).loss
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2]


def test_save_and_load_again(exported, tmp_path):
    model = load(exported)
    model.save_pretrained(tmp_path / "saved")
    again, issues = load(tmp_path / "saved", output_loading_info=True)
    assert not any(issues.values()), issues
    assert type(again).__name__ == "BackpackGPT2LMHeadModel"
    stored = load_file(tmp_path / "saved/model.safetensors")
    assert stored.keys() == load_file(exported / "model.safetensors").keys()
    ids = random_ids(vars(model.config), 1, 8)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)


def test_the_binary_reads_what_transformers_saves(exported, backpack, tmp_path):
    model = load(exported)
    model.save_pretrained(tmp_path / "saved")
    ids = random_ids(vars(model.config), 1, 8)
    with torch.no_grad():
        assert_close(backpack.dump(tmp_path / "saved", ids[0].tolist())["logits"], model(ids).logits[0])


def test_bf16(exported):
    model = load(exported, torch_dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    ids = random_ids(vars(model.config), 1, 16)
    with torch.no_grad():
        logits = model(ids).logits
        assert logits.dtype == torch.bfloat16
        # bf16 has 8 significant bits, which is an error of about 1% for logits up to 20.
        assert_close(logits, load(exported)(ids).logits, 1.0)
