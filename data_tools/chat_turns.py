"""Where in a conversation's text the assistant's turns are, and the proof that these tokens are targets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_tools.conversation import Message
from data_tools.errors import Reject

TrainOn = Literal["assistant", "last_assistant", "all"]


@dataclass(frozen=True, slots=True)
class Turn:
    """An assistant message in the text: characters [start, end), of which [stop, end) are its stop token."""

    message: int
    start: int
    stop: int
    end: int


def trained_messages(messages: Sequence[Message], train_on: TrainOn) -> frozenset[int]:
    """Return which messages are trained on: by their own `train`, else by `train_on`.

    Only an assistant's message can be chosen; raises Reject where another one differs from `train_on`.
    """
    assistants = [index for index, message in enumerate(messages) if message.role == "assistant"]
    chosen = set(assistants[-1:] if train_on == "last_assistant" else assistants)
    for index, message in enumerate(messages):
        if message.train is None:
            continue
        if message.role != "assistant":
            if message.train != (train_on == "all"):
                raise Reject("train is set on a message that is not the assistant's", f"message {index}")
        elif message.train:
            chosen.add(index)
        else:
            chosen.discard(index)
    return frozenset(chosen)


def find_content(body: str, message: Message, lead_in: str) -> int | None:
    """Return where in the body of a turn its targets begin, None where the body is not the message's content.

    Spaces around the content belong to the answer: the model has to write them to reach its end. `lead_in` is
    what the template itself puts before an answer (such as an empty `<think>` block); it is not a target.
    """
    skip = 0
    if lead_in and body.startswith(lead_in) and not message.content.startswith(lead_in.strip()):
        skip = len(lead_in)
    answer = body[skip:]
    content = message.content.strip()
    if message.tool_calls:
        names = (call.get("function", call).get("name", "") for call in message.tool_calls)
        calls = answer.strip()[len(content) :]
        found = answer.strip().startswith(content) and all(name in calls for name in names)
    else:
        found = answer.strip() == content or _squash(answer) == _squash(content)
    return skip if found else None


def _squash(text: str) -> str:
    return "".join(text.split())


def prove_turn(
    turn: Turn, text: str, encoding: Any, ids: NDArray[np.int32], stop_ids: frozenset[int]
) -> tuple[int, int]:
    """Return the first and last target token of a turn; raises Reject where these are not its characters."""
    first = token_at(encoding, turn.start, turn.stop)
    last = token_at(encoding, turn.stop, turn.end)
    if first is None or last is None or first > last:
        raise Reject("tokenizer drops an assistant turn", f"message {turn.message}")
    if int(ids[last]) not in stop_ids or encoding.token_to_chars(last)[1] < turn.end:
        raise Reject("no stop token after an assistant turn", f"message {turn.message}")
    begin = encoding.token_to_chars(first)[0]
    if begin < turn.start and text[begin : turn.start].strip():
        raise Reject("a token joins prompt and answer", f"message {turn.message}")
    return first, last


def token_at(encoding: Any, char: int, stop: int) -> int | None:
    """Return the token of the first character from `char` on, before `stop`, that has one."""
    for position in range(char, stop):
        token: int | None = encoding.char_to_token(position)
        if token is not None:
            return token
    return None


def skip_spaces(text: str, char: int) -> int:
    """Return the first character from `char` on that is no white space."""
    while char < len(text) and text[char].isspace():
        char += 1
    return char


def turn_ends(
    messages: Sequence[Message], turns: Sequence[Turn], text: str, encoding: Any
) -> NDArray[np.int32]:
    """Return the exclusive token end of each exchange, the last one the number of tokens.

    An exchange ends behind an answer that a user's message follows, and behind the white space between the
    two.
    """
    ends: list[int] = []
    for turn in turns:
        follows = turn.message + 1
        if follows < len(messages) and messages[follows].role == "user":
            token = token_at(encoding, skip_spaces(text, turn.end), len(text))
            if token is not None and token > (ends[-1] if ends else 0):
                ends.append(token)
    return np.array([*ends, len(encoding)], np.int32)
