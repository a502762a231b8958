"""A model's answer to a conversation, greedy or drawn, shown while it comes."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.generation.streamers import BaseStreamer

from data_tools.conversation import Message
from data_tools.errors import Reject, RunError
from training.model_folder import ModelFolder


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn; temperature 0 takes the likeliest token each time. seed: of the draws."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 17

    def __post_init__(self) -> None:
        """Raise RunError for values that mean nothing."""
        if self.max_new_tokens < 1:
            raise RunError(f"--max-new-tokens: got {self.max_new_tokens}; expected 1 or more")
        if not 0 <= self.temperature < float("inf"):
            raise RunError(f"--temperature: got {self.temperature}; expected 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise RunError(f"--top-p: got {self.top_p}; expected more than 0 and at most 1")

    def arguments(self, folder: ModelFolder) -> dict[str, Any]:
        """Return what transformers' `generate` is to be given."""
        drawn = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        # What the folder's own generation_config.json says of draws would be warned of where nothing is drawn.
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return (drawn if self.temperature else greedy) | {
            "max_new_tokens": self.max_new_tokens,
            "eos_token_id": sorted(folder.tokenizer.stop_token_ids),
            "pad_token_id": folder.tokenizer.pad_token_id,
        }


class _Typist(BaseStreamer):  # type: ignore[misc]
    """Shows an answer while `generate` makes it: each piece of text once no later token can change it."""

    def __init__(self, folder: ModelFolder, show: Callable[[str], None]) -> None:
        self._tokenizer = folder.tokenizer
        self._stream = folder.tokenizer.decode_stream()
        self._show = show
        self._prompt_passed = False
        self.text = ""

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, which `generate` hands over first, or the next token."""
        if not self._prompt_passed:
            self._prompt_passed = True
            return
        for token in value.flatten().tolist():
            piece = self._stream(token)
            if not self.text:
                piece = piece.lstrip()  # what stands between the template's last word and the answer
            self.text += piece
            if piece:
                self._show(piece)

    def end(self) -> None:
        """Nothing is held back that could still be shown."""


@torch.inference_mode()
def answer(
    folder: ModelFolder,
    messages: Sequence[Message],
    sampling: Sampling,
    *,
    show: Callable[[str], None] = lambda _: None,
) -> str:
    """Return the model's answer to a conversation that ends with a question; `show` gets it piece by piece.

    Ctrl-C ends the answer where it is. Raises RunError for a conversation that leaves no room for an answer, or that
    the chat template refuses.
    """
    try:
        ids = folder.tokenizer.encode_prompt(messages)
    except Reject as reject:
        raise RunError(f"the chat template cannot write this conversation: {reject}") from None
    room = folder.max_positions - len(ids)
    if room < 1:
        raise RunError(
            f"the conversation has {len(ids)} tokens, and the model {folder.max_positions} positions; begin a new one"
        )
    prompt = torch.from_numpy(ids.astype(np.int64))[None].to(folder.device)
    limits = sampling.arguments(folder)
    limits["max_new_tokens"] = min(sampling.max_new_tokens, room)
    typist = _Typist(folder, show)
    with contextlib.suppress(KeyboardInterrupt):
        folder.model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), streamer=typist, **limits
        )
    return typist.text
