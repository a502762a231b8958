"""`shardtune chat`: talk to a model folder in a terminal, or ask it one question by an argument or through a pipe."""

import logging
import sys
from pathlib import Path

import torch

from data_tools.conversation import Message
from data_tools.errors import RunError
from training.generation import Sampling, answer
from training.model_folder import ModelFolder, Precision, load_model_folder

HELP = """/new            begin a new conversation
/system TEXT    begin a new one with this system turn; without TEXT, with none
/again          answer the last question once more
/exit           end, as Ctrl-D does; Ctrl-C ends the answer in hand"""


def chat(
    path: Path,
    sampling: Sampling,
    *,
    system: str | None,
    once: str | None,
    chat_template: str | None,
    device: str | None,
    precision: Precision,
) -> None:
    """Answer `once`, or what comes through a pipe as one question, or talk until the user ends it.

    Raises RunError and TokenizerError.
    """
    logging.getLogger("transformers").setLevel(logging.ERROR)
    if once is None and not sys.stdin.isatty():
        once = sys.stdin.read().strip()
    if once is not None and not once.strip():
        raise RunError("the question is empty; expected some text in --once or through the pipe")
    folder = load_model_folder(path, chat_template=chat_template, device=device, precision=precision)
    torch.manual_seed(sampling.seed)
    opening = _opening(system)
    if once is not None:
        _reply(folder, [*opening, Message("user", once)], sampling)
    else:
        _talk(folder, sampling, opening)


def _opening(system: str | None) -> list[Message]:
    return [Message("system", system)] if system else []


def _talk(folder: ModelFolder, sampling: Sampling, opening: list[Message]) -> None:
    import readline  # noqa: F401 - gives `input` the arrow keys and a history

    print(
        f"{folder.path} on {folder.device}; /help tells what can be typed beside questions", file=sys.stderr
    )
    messages = list(opening)
    while True:
        try:
            typed = input("\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        command, _, rest = typed.partition(" ")
        if command == "/exit":
            return
        if command in ("/new", "/system"):
            opening = _opening(rest.strip()) if command == "/system" else opening
            messages = list(opening)
        elif command == "/again" and messages and messages[-1].role == "assistant":
            messages = _answered(folder, messages[:-1], sampling) or messages
        elif command.startswith("/"):
            print(HELP, file=sys.stderr)
        elif typed:
            messages = _answered(folder, [*messages, Message("user", typed)], sampling) or messages


def _answered(folder: ModelFolder, messages: list[Message], sampling: Sampling) -> list[Message] | None:
    """Return the conversation with the model's answer behind it; None, and the reason shown, if there is none."""
    try:
        return [*messages, _reply(folder, messages, sampling)]
    except RunError as error:
        print(error, file=sys.stderr)
        return None


def _reply(folder: ModelFolder, messages: list[Message], sampling: Sampling) -> Message:
    def show(piece: str) -> None:
        sys.stdout.write(piece)
        sys.stdout.flush()

    reply = answer(folder, messages, sampling, show=show)
    sys.stdout.write("\n")
    return Message("assistant", reply)
