# SPDX-License-Identifier: MIT OR Apache-2.0
"""The configuration of a Backpack language model (Hewitt et al., ACL 2023) for transformers."""

from transformers import GPT2Config


class BackpackGPT2Config(GPT2Config):
    """GPT-2's keys, which describe the body, and those of the sense network.

    The defaults are the published Backpack-GPT2's.

    Args:
        num_senses: sense vectors per word; must divide `n_embd`.
        sense_intermediate_scale: hidden width of the last sense MLP, in multiples of `n_embd`.
        sense_block_inner: hidden width of the sense block's MLP, `4 * n_embd` where None. The
            published class has no such key and always takes that width.
        num_edited_tokens: words whose senses are kept apart, as edited; the published class knows
            no edits and would compute the network's.
    """

    # Evaluation loops gather every output; a [B, L, T, T] tensor of each batch is not wanted.
    keys_to_ignore_at_inference = ["contextualization", "hidden_states"]

    def __init__(
        self,
        vocab_size=50264,
        n_positions=512,
        num_senses=16,
        sense_intermediate_scale=4,
        sense_block_inner=None,
        num_edited_tokens=0,
        scale_attn_by_inverse_layer_idx=True,
        **kwargs,
    ):
        self.num_senses = num_senses
        self.sense_intermediate_scale = sense_intermediate_scale
        self.sense_block_inner = sense_block_inner
        self.num_edited_tokens = num_edited_tokens
        super().__init__(
            vocab_size=vocab_size,
            n_positions=n_positions,
            scale_attn_by_inverse_layer_idx=scale_attn_by_inverse_layer_idx,
            **kwargs,
        )
        if self.n_embd % num_senses != 0:
            raise ValueError(f"n_embd {self.n_embd} does not divide by num_senses {num_senses}")


# Makes `save_pretrained` put this file beside config.json.
BackpackGPT2Config.register_for_auto_class()
