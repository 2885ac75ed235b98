# SPDX-License-Identifier: MIT OR Apache-2.0
"""A Backpack language model (Hewitt et al., ACL 2023) for transformers 4.46 and later.

Every word has L context-independent sense vectors. The output at a position is the sum of the
senses of the words so far, with weights that a GPT-2 computes from the context:

    alpha = softmax(causal(q k^T / sqrt(D / L)))      q, k from the GPT-2         [B, L, T, T]
    output_t = sum over l and j <= t of alpha[l, t, j] * senses[j, l]             [B, T, D]
    logits = output wte^T                                                         [B, T, V]

Shapes: B sequences, T positions, V words, D = n_embd, L senses, H heads. This
file implements the attention itself, because some releases of transformers ignore
`scale_attn_by_inverse_layer_idx` in GPT-2.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_backpack_gpt2 import BackpackGPT2Config


@dataclass
class BackpackGPT2ModelOutput(ModelOutput):
    """The output of the network without the head."""

    last_hidden_state: torch.Tensor | None = None  # [B, T, D], the weighted sum of senses
    contextualization: torch.Tensor | None = None  # [B, L, T, T], rows sum to 1
    hidden_states: tuple[torch.Tensor, ...] | None = None  # of the GPT-2, n_layer + 1 of [B, T, D]


@dataclass
class BackpackGPT2LMHeadModelOutput(ModelOutput):
    """The output with the head. `loss` is set if labels are given."""

    loss: torch.Tensor | None = None  # mean cross-entropy of the next tokens
    logits: torch.Tensor | None = None  # [B, T, V]
    contextualization: torch.Tensor | None = None  # [B, L, T, T], rows sum to 1
    hidden_states: tuple[torch.Tensor, ...] | None = None  # of the GPT-2, n_layer + 1 of [B, T, D]


class Conv1D(nn.Module):
    """y = x W + b, with W stored as [in, out] like in the checkpoints of GPT-2."""

    def __init__(self, n_in, n_out, std):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.std = std  # standard deviation of the initial weights

    def forward(self, x):
        return F.linear(x, self.weight.t(), self.bias)


def residual_std(config):
    """Initial standard deviation of the weights of residual branches (and of the last sense MLP)."""
    return config.initializer_range / (2 * config.n_layer) ** 0.5


class MLP(nn.Module):
    def __init__(self, config, n_inner, n_out):
        super().__init__()
        self.c_fc = Conv1D(config.n_embd, n_inner, config.initializer_range)
        self.c_proj = Conv1D(n_inner, n_out, residual_std(config))

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.n_head = config.n_head
        depth = layer + 1 if config.scale_attn_by_inverse_layer_idx else 1
        self.scale = (config.n_embd // config.n_head) ** -0.5 / depth
        self.attn_pdrop = config.attn_pdrop
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd, config.initializer_range)
        self.c_proj = Conv1D(config.n_embd, config.n_embd, residual_std(config))

    def forward(self, x, visible):
        b, t, d = x.shape
        # [3, B, H, T, D / H]
        q, k, v = self.c_attn(x).view(b, t, 3, self.n_head, d // self.n_head).permute(2, 0, 3, 1, 4)
        dropout = self.attn_pdrop if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout, scale=self.scale)
        return self.c_proj(mixed.transpose(1, 2).reshape(b, t, d))


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config, config.n_inner or 4 * config.n_embd, config.n_embd)
        self.drop = nn.Dropout(config.resid_pdrop)

    def forward(self, x, visible):
        x = x + self.drop(self.attn(self.ln_1(x), visible))
        return x + self.drop(self.mlp(self.ln_2(x)))


class GPT2Body(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(self, input_ids, position_ids, visible):
        """Returns all hidden states in the order of GPT-2: the embeddings, the output of each block
        but the last, the output of `ln_f`."""
        x = self.drop(self.wte(input_ids) + self.wpe(position_ids))
        states = [x]
        for block in self.h:
            x = block(x, visible)
            states.append(x)
        states[-1] = self.ln_f(x)
        return states


class SenseBlock(nn.Module):
    """A transformer block whose attention output is replaced by the argument `hidden`."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config, config.sense_block_inner or 4 * config.n_embd, config.n_embd)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.drop = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden, x):
        x = x + self.drop(hidden)
        x = x + self.drop(self.mlp(self.ln_1(x)))
        return self.ln_2(x)


class SenseNetwork(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_senses = config.num_senses
        self.drop = nn.Dropout(config.embd_pdrop)
        self.ln = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.block = SenseBlock(config)
        self.final_mlp = MLP(config, config.sense_intermediate_scale * config.n_embd, config.num_senses * config.n_embd)

    def forward(self, embeddings):
        """Word embeddings [B, T, D] without positions -> senses [B, L, T, D]."""
        x = self.drop(embeddings)
        senses = self.final_mlp(self.block(self.ln(x), x))
        return senses.unflatten(-1, (self.num_senses, -1)).transpose(1, 2)


class EditedSenses(nn.Module):
    """Senses of E tokens of the vocabulary that replace those of the network."""

    def __init__(self, config):
        super().__init__()
        shape = (config.num_edited_tokens, config.num_senses, config.n_embd)
        self.register_buffer("tokens", torch.zeros(config.num_edited_tokens, dtype=torch.long))  # [E]
        self.register_buffer("vectors", torch.zeros(shape))  # [E, L, D]

    def forward(self, input_ids, senses):
        """Token ids [B, T] and their senses [B, L, T, D] -> the edited senses [B, L, T, D]."""
        matches = input_ids[..., None] == self.tokens  # [B, T, E], at most one match along E
        own = self.vectors[matches.long().argmax(-1)].transpose(1, 2)
        return torch.where(matches.any(-1)[:, None, :, None], own.to(senses.dtype), senses)


class SenseWeightNetwork(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.num_senses = config.num_senses
        self.c_attn = nn.Linear(config.n_embd, 2 * config.n_embd)

    def forward(self, hidden, visible):
        """Output of the GPT-2 [B, T, D] -> contextualization weights [B, L, T, T]."""
        # [2, B, L, T, D / L]
        q, k = self.c_attn(hidden).unflatten(-1, (2, self.num_senses, -1)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(2, 3)).float() * q.shape[-1] ** -0.5
        return scores.masked_fill(~visible, float("-inf")).softmax(-1).to(q.dtype)


class BackpackGPT2Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.gpt2_model = GPT2Body(config)
        self.sense_network = SenseNetwork(config)
        self.sense_weight_net = SenseWeightNetwork(config)
        self.edited_senses = EditedSenses(config) if config.num_edited_tokens else None

    # The names of the embeddings in the published class.
    @property
    def word_embeddings(self):
        return self.gpt2_model.wte

    @property
    def position_embeddings(self):
        return self.gpt2_model.wpe

    def senses(self, input_ids):
        """Token ids [B, T] -> their sense vectors [B, L, T, D], which do not depend on positions."""
        senses = self.sense_network(self.word_embeddings(input_ids))
        return senses if self.edited_senses is None else self.edited_senses(input_ids, senses)

    def combine(self, contextualization, senses):
        """Weights [B, L, T, T] and senses [B, L, T, D] -> the weighted sum [B, T, D]."""
        return torch.einsum("blts,blsd->btd", contextualization.to(senses.dtype), senses)

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        length = input_ids.shape[1]
        if length > self.config.n_positions:
            raise ValueError(f"{length} tokens are more than the model's context of {self.config.n_positions}")
        positions = torch.arange(length, device=input_ids.device)
        # [B or 1, 1, T, T]: the positions (last axis) that each position attends to.
        visible = (positions <= positions[:, None])[None, None]
        if attention_mask is not None:
            # Padding attends to itself only, so that its softmax is defined.
            itself = positions == positions[:, None]
            visible = visible & attention_mask.bool()[:, None, None, :] | itself
            if position_ids is None:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        if position_ids is None:
            position_ids = positions[None]
        hidden_states = self.gpt2_model(input_ids, position_ids, visible)
        contextualization = self.sense_weight_net(hidden_states[-1], visible)
        return BackpackGPT2ModelOutput(
            last_hidden_state=self.combine(contextualization, self.senses(input_ids)),
            contextualization=contextualization,
            hidden_states=tuple(hidden_states),
        )


class BackpackGPT2LMHeadModel(PreTrainedModel, GenerationMixin):
    """The language model. `model.backpack.senses(input_ids)` returns the senses of tokens.

    `logits` includes the padding rows of the vocabulary (50,257 to 50,263 at the published size), as
    in training. `suppress_tokens` in generation_config.json prevents `generate` from choosing them.
    """

    config_class = BackpackGPT2Config
    base_model_prefix = "backpack"
    main_input_name = "input_ids"
    _supports_sdpa = True
    # Alias -> stored name for transformers 5; version 4 uses only the keys.
    _tied_weights_keys = {"lm_head.weight": "backpack.gpt2_model.wte.weight"}
    # Aliases and masks that files of the published class may contain.
    _keys_to_ignore_on_load_unexpected = [r"(word|position)_embeddings\.weight$", r"\.attn\.(masked_)?bias$"]

    def __init__(self, config):
        super().__init__(config)
        self.backpack = BackpackGPT2Model(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, Conv1D):
            nn.init.normal_(module.weight, std=module.std)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self):
        return self.backpack.gpt2_model.wte

    def set_input_embeddings(self, embeddings):
        self.backpack.gpt2_model.wte = embeddings

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, embeddings):
        self.lm_head = embeddings

    def forward(
        self,
        input_ids,
        attention_mask=None,
        position_ids=None,
        labels=None,
        output_hidden_states=None,
        return_dict=True,
    ):
        """Returns the logits, and the loss if `labels` is given.

        Args:
            input_ids: [B, T], with T at most n_positions.
            attention_mask: [B, T], 0 at padding, which may be on either side.
            position_ids: [B, T]; None counts the positions that are not padding.
            labels: [B, T], usually `input_ids`; they are shifted by one here. -100 is ignored.
            output_hidden_states: whether to return the hidden states of the GPT-2.
        """
        outputs = self.backpack(input_ids, attention_mask, position_ids)
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten().to(logits.device))
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        output = BackpackGPT2LMHeadModelOutput(
            loss=loss,
            logits=logits,
            contextualization=outputs.contextualization,
            hidden_states=outputs.hidden_states if output_hidden_states else None,
        )
        return output if return_dict else output.to_tuple()

    def run_with_custom_contextualization(self, input_ids, contextualization):
        """Returns the logits for given contextualization weights [B, L, T, T] (an intervention)."""
        hidden = self.backpack.combine(contextualization, self.backpack.senses(input_ids))
        return BackpackGPT2LMHeadModelOutput(logits=self.lm_head(hidden), contextualization=contextualization)

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **_):
        """Returns the last n_positions tokens: longer texts are generated with a sliding window.

        Keys and values are not cached between tokens. The cache classes and the name of their
        argument (`past_key_values`, then `cache`) differ between releases of transformers. Once the
        window slides, every position changes and cached keys are invalid.
        """
        window = slice(-self.config.n_positions, None)
        mask = None if attention_mask is None else attention_mask[:, window]
        return {"input_ids": input_ids[:, window], "attention_mask": mask}


# Makes `save_pretrained` copy this file next to the weights.
BackpackGPT2LMHeadModel.register_for_auto_class("AutoModelForCausalLM")
