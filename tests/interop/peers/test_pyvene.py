"""Tests that an exported model computes the same in the published code."""

import pyvene_backpack
import torch
import torch.nn.functional as F
from models import assert_close, random_ids
from transformers import AutoModelForCausalLM


def test_an_export_in_the_published_code(exported, backpack):
    theirs = pyvene_backpack.load(exported)
    ids = random_ids(vars(theirs.config), theirs.config.n_positions)
    dumped = backpack.dump(exported, ids.tolist())
    for name, tensor in pyvene_backpack.compute(theirs, ids).items():
        assert_close(dumped[name], tensor)


def test_an_export_in_both_classes(exported):
    theirs = pyvene_backpack.load(exported)
    ours = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    ids = random_ids(vars(ours.config), 2, 24)
    positions = torch.arange(24)[None]
    with torch.no_grad():
        our_outputs = ours(ids, labels=ids, output_hidden_states=True)
        their_outputs = theirs(ids)
        their_states = theirs.backpack.gpt2_model(ids, output_hidden_states=True).hidden_states
        their_sum = theirs.backpack(ids, positions).hidden_states
        our_sum = ours.backpack(ids).last_hidden_state
        shuffled = our_outputs.contextualization[:, :, :, torch.randperm(24)]
        our_edit = ours.run_with_custom_contextualization(ids, shuffled).logits
        their_edit = theirs.run_with_custom_contextualization(ids, shuffled).logits
    assert_close(our_outputs.logits, their_outputs.logits)
    assert_close(our_outputs.contextualization, their_outputs.contextualization)
    assert_close(our_outputs.loss, F.cross_entropy(their_outputs.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
    assert_close(our_sum, their_sum)
    assert_close(our_edit, their_edit)
    assert len(our_outputs.hidden_states) == len(their_states)
    for our_state, their_state in zip(our_outputs.hidden_states, their_states):
        assert_close(our_state, their_state)


def test_gradients_equal_those_of_the_published_code(exported):
    ours = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    theirs = pyvene_backpack.load(exported)
    ids = random_ids(vars(ours.config), 2, 24)
    ours(ids, labels=ids).loss.backward()
    F.cross_entropy(theirs(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, gradients[name].grad)
