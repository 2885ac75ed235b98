# SPDX-License-Identifier: MIT OR Apache-2.0
"""The configuration of a Backpack language model (Hewitt et al., ACL 2023) for transformers."""

from transformers import GPT2Config


class BackpackGPT2Config(GPT2Config):
    """The keys of GPT-2, which describe the transformer, and the keys of the sense network.

    The defaults are those of the published Backpack-GPT2.

    Args:
        num_senses: sense vectors per word; must divide `n_embd`.
        sense_intermediate_scale: hidden width of the last sense MLP, in multiples of `n_embd`.
        sense_block_inner: hidden width of the MLP of the sense block; None is `4 * n_embd`. The
            published class does not have this key and always uses that width.
        num_edited_tokens: number of tokens with edited senses, which are stored separately. The
            published class does not support edits and would ignore them.
    """

    # Evaluation loops collect all outputs; a [B, L, T, T] tensor per batch would be too large.
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
            raise ValueError(f"n_embd ({self.n_embd}) must be a multiple of num_senses ({num_senses})")


# Makes `save_pretrained` copy this file next to config.json.
BackpackGPT2Config.register_for_auto_class()
