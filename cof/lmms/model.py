"""The class that lmms-eval loads. It needs lmms-eval (`pip install "cof[lmms]"`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from lmms_eval.api.model import lmms
from rich.console import Console
from rich.progress import track

from cof.errors import CofError
from cof.lmms.adapter import EvalRequest, answer_requests
from cof.pipeline import CoF


class CoFModel(lmms):
    """Answers lmms-eval's requests with both stages of CoF.

    `--model_args` takes what `CoF.from_pretrained` does, its model as `pretrained`; layers and
    heads are written `0-15+20`, because a comma ends an option of lmms-eval. `grounder=none` is the
    plain model, `grounder=whole` reweights every image token.
    """

    is_simple = False

    def __init__(
        self,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
            batch_size: questions in one forward pass.
            max_batch_size: ignored: there is no automatic batch size.
            device: of the model, unless `device_map` is among the options; None: this process's
                GPU where `accelerate launch` or `torchrun` started several processes.
            options: `--model_args`; what `CoF.from_pretrained` refuses is refused.
        """
        super().__init__()
        if not str(batch_size).isdigit() or not int(batch_size):
            raise CofError(f"--batch_size takes a number with cof, not {batch_size!r}.")
        self.batch_size = int(batch_size)
        if not device and int(os.environ.get("WORLD_SIZE", "1")) > 1 and torch.cuda.is_available():
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        options = ({"device_map": device} if device else {}) | options
        self.cof = CoF.from_pretrained(options.pop("pretrained", None), **options)
        self.device = getattr(getattr(self.cof.engine, "model", None), "device", "cpu")

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One answer for each request, in order; empty where it is refused."""
        ours = [EvalRequest.from_arguments(request.args, self.task_dict) for request in requests]
        texts = [""] * len(ours)
        answers = answer_requests(self.cof, ours, batch_size=self.batch_size)
        bar: Any = {"console": Console(stderr=True), "disable": self.rank != 0}
        for number, text in track(answers, "cof", total=len(ours), **bar):
            texts[number] = text
            key = (ours[number].prompt, ours[number].options)
            self.cache_hook.add_partial("generate_until", key, text)
        return texts

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered: CoF's second stage generates an answer."""
        raise CofError("cof generates answers: choose a task whose output_type is generate_until.")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered: the next question would hang on the answer before."""
        raise CofError("cof answers whole chats: choose a task whose rounds are given.")

    def clean(self) -> None:
        """Free the model's memory, for a judge model."""
        self.__dict__.pop("cof", None)
        super().clean()
