"""Answers by vLLM in place of transformers: token ids in, token ids out, text through the same tokenizer.

vLLM is no dependency: its wheels fix a torch of their own. It is imported when it is asked for.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data_tools.chat import ChatTokenizer
from data_tools.errors import RunError
from training.evaluation.answers import Ids, answer_text, seed_of
from training.generation import Sampling

PROMPTS_AT_A_TIME = 256  # between two writes to the file of answers; vLLM makes its own batches of them


def import_vllm(model: Path, base: Path) -> Any:
    """Return the module vllm. Raises RunError if it is not installed, or `model` is an adapter on `base`."""
    if model != base:
        raise RunError(
            f"--engine vllm: {model}: is an adapter; expected a whole model: do: shardtune export RUN_FOLDER --merge "
            "--output DIR, and give DIR; or leave --engine out"
        )
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise RunError(
            f"--engine vllm: vLLM cannot be imported: {error}; do: pip install vllm; or leave --engine out"
        ) from None


class VllmAnswerer:
    """Answers prompts with vLLM, which is started when the first ones come.

    max_length: of the longest prompt and its answer together, in tokens.
    """

    def __init__(
        self,
        vllm: Any,
        model: Path,
        tokenizer: ChatTokenizer,
        sampling: Sampling,
        *,
        dtype: torch.dtype,
        max_length: int,
    ) -> None:
        self._vllm = vllm
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._max_length = max_length
        self._options = {
            "model": str(model),
            "dtype": str(dtype).removeprefix("torch."),
            "seed": sampling.seed,
            "max_model_len": max_length,
            "skip_tokenizer_init": True,  # it sees ids alone
            "generation_config": "vllm",  # nothing from the folder's own generation_config.json
        }
        self._llm: Any = None

    def __call__(self, numbers: Sequence[int], prompts: Sequence[Ids]) -> list[str]:
        """Return the answers to prompts (ids int32 [T]); each has draws of its own, whatever stands beside it."""
        if self._llm is None:
            self._llm = self._vllm.LLM(**self._options)
        params = [self._params(number, len(ids)) for number, ids in zip(numbers, prompts, strict=True)]
        made = self._llm.generate(
            [{"prompt_token_ids": ids.tolist()} for ids in prompts], params, use_tqdm=False
        )
        return [answer_text(self._tokenizer, list(one.outputs[0].token_ids)) for one in made]

    def _params(self, number: int, prompt_length: int) -> Any:
        return self._vllm.SamplingParams(
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            seed=seed_of(self._sampling.seed, number),
            max_tokens=min(self._sampling.max_new_tokens, self._max_length - prompt_length),
            stop_token_ids=sorted(self._tokenizer.stop_token_ids),
            detokenize=False,
        )
