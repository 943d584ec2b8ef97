"""Write the trained weights as a checkpoint in the hub's layout.

Names are those of `llava-hf/llava-1.5-7b-hf` on the hub (`language_model.model...`,
`vision_tower.vision_model...`), which transformers and vLLM both load.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig, LlavaForConditionalGeneration

from cof.errors import CofError
from cof.tiny import checkpoint_path
from lab.training.model import PATCH, is_used, make_model
from lab.training.tokenizer import make_processor, make_tokenizer

HUB_NAMES = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "lm_head.": "language_model.lm_head.",
}


def hub_name(name: str) -> str:
    """The hub's name of a weight.

    >>> hub_name("model.language_model.norm.weight")
    'language_model.model.norm.weight'
    """
    for ours, theirs in HUB_NAMES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise ValueError(f"{name} has no name on the hub")


def hub_weights(model: LlavaForConditionalGeneration) -> dict[str, Tensor]:
    """All weights in bf16 under their hub names; those that the features do not use are zero."""
    weights = {}
    for name, value in model.state_dict().items():
        used = "vision_tower" not in name or is_used(name)
        weights[hub_name(name)] = (value if used else torch.zeros_like(value)).bfloat16()
    return weights


def export(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write config, weights, tokenizer, processor and chat template to `folder`.

    An older checkpoint in it is replaced.

    Raises:
        CofError: the folder holds something else.
    """
    if folder.exists():
        if any(folder.iterdir()) and not (folder / "config.json").is_file():
            raise CofError(f"{folder} holds no checkpoint to replace: name a new folder.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    tokenizer = make_tokenizer()
    config = model.config
    config.architectures = ["LlavaForConditionalGeneration"]
    config.dtype = "bfloat16"
    config.cof_dialect = "tiny"
    config.save_pretrained(folder)
    make_processor(tokenizer, PATCH).save_pretrained(folder)
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    ).save_pretrained(folder)
    save_file(hub_weights(model), folder / "model.safetensors", metadata={"format": "pt"})


def make_untrained() -> LlavaForConditionalGeneration:
    """The architecture with fresh weights, in bf16."""
    return make_model(make_tokenizer())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/tiny"))
    parser.add_argument(
        "--step", type=int, help="a step of `speak --keep` [default: the last step]"
    )
    parser.add_argument("--out", type=Path, default=checkpoint_path())
    args = parser.parse_args()
    model = make_untrained()
    if args.step is None:
        state = torch.load(args.run / "speak.pt", weights_only=True, map_location="cpu")
        weights = state["speaks"]["high"] | state["sees"]["high"]
    else:
        weights = torch.load(args.run / f"speak-{args.step}.pt", weights_only=True)["weights"]
    _, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected:
        raise SystemExit(f"{args.run} does not fit the model: {unexpected}")
    export(model, args.out)
    size = sum(f.stat().st_size for f in args.out.iterdir()) / 2**20
    print(f"{args.out}: {size:.1f} MiB")


if __name__ == "__main__":
    main()
