"""Loads what `flamingo-train export --format open-flamingo` wrote into PyTorch's OpenFlamingo.

    python train/tests/open_flamingo_loads.py CHECKPOINT --language FOLDER --vision-width V --every N

CHECKPOINT is the .pt or .safetensors, FOLDER the language model as transformers reads it (the
`language/` of `--format hugging-face`), V the width of the vision encoder. Fails if the checkpoint
has a key that OpenFlamingo has not, or lacks one that it trains. Needs torch, transformers,
safetensors, and `pip install --no-deps open-flamingo==2.0.1 open_clip_torch einops einops-exts`.
No test runs it.
"""

import argparse

import torch
from open_flamingo.src.flamingo import Flamingo
from open_flamingo.src.flamingo_lm import FlamingoLMMixin
from open_flamingo.src.utils import extend_instance
from transformers import AutoModelForCausalLM

# As in open_flamingo/src/factory.py, and GPT-2, which a user names by hand.
LAYERS = {
    "mpt": "transformer.blocks",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "llama": "model.layers",
    "gpt2": "transformer.h",
}


class Clip(torch.nn.Module):
    """Stands for open_clip's model, of which OpenFlamingo keeps `visual`."""

    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Identity()


def read(path):
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--language", required=True)
    parser.add_argument("--vision-width", type=int, required=True)
    parser.add_argument("--every", type=int, required=True)
    args = parser.parse_args()

    checkpoint = read(args.checkpoint)
    language = AutoModelForCausalLM.from_pretrained(args.language)
    kind = language.config.model_type
    if kind == "mpt":
        # Old transformers have no accessors for the embeddings of the language model here.
        language.config.d_model = language.config.hidden_size
    extend_instance(language, FlamingoLMMixin)
    language.set_decoder_layers_attr_name(LAYERS[kind])
    model = Flamingo(Clip(), language, 0, 1, args.vision_width, args.every)
    trained = ("perceiver.", ".gated_cross_attn_layer.")
    result = model.load_state_dict(checkpoint, strict=False)
    lacking = [k for k in result.missing_keys if any(part in k for part in trained)]
    print(f"{len(checkpoint)} tensors, {len(result.unexpected_keys)} unexpected, {len(lacking)} of trained parts missing,")
    print(f"{len(result.missing_keys) - len(lacking)} frozen ones left as they are")
    now = model.state_dict()
    for name, values in checkpoint.items():
        assert torch.equal(now[name], values), name
    assert not result.unexpected_keys, result.unexpected_keys
    assert not lacking, lacking


if __name__ == "__main__":
    main()
