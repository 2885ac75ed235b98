"""The Backpack of pyvene, an independent copy of the published code.

Only its model file is loaded, because the pyvene package imports plotting and data set libraries.
The attention is "eager", because the default attention of transformers 4.46.3 ignores
`scale_attn_by_inverse_layer_idx`.
"""

import importlib.util
import sysconfig
from pathlib import Path

import torch

FILE = Path(sysconfig.get_path("purelib")) / "pyvene/models/backpack_gpt2/modelings_backpack_gpt2.py"
spec = importlib.util.spec_from_file_location("pyvene_backpack_gpt2", FILE)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)


def load(directory):
    return module.BackpackGPT2LMHeadModel.from_pretrained(directory, attn_implementation="eager")


def random_model(shape: dict, **keys):
    """Returns a model with 10 times larger weights than usual, so that every path affects the
    logits."""
    config = module.BackpackGPT2Config(**shape, initializer_range=0.2, attn_implementation="eager", **keys)
    return module.BackpackGPT2LMHeadModel(config).eval()


def compute(model, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the tensors of `backpack dump` for one sequence [T]."""
    with torch.no_grad():
        outputs = model(ids[None])
        senses = model.backpack.sense_network(model.backpack.word_embeddings(ids[None]))
    senses = senses[0].transpose(0, 1)
    return {"logits": outputs.logits[0], "contextualization": outputs.contextualization[0], "senses": senses}
