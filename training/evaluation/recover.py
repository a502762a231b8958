"""From a document's tokens back to the conversation that it was made of, for a model with another chat template.

The text is cut at what the shards' own template writes between turns. A conversation counts as recovered only if it
gives the very same tokens again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_tools.chat import ChatTokenizer
from data_tools.conversation import Conversation, Message
from data_tools.errors import Reject

# Contents that no template has in it.
SYSTEM, QUESTIONS, ANSWERS = "sysqzx", ("askqzx", "moreqzx"), ("tellqzx", "endqzx")


@dataclass(frozen=True, slots=True)
class _Marks:
    """What a template writes around contents: before the first, after a system turn, question or answer, at the end."""

    begin: str
    after_system: str | None
    after_question: str
    after_answer: str
    end: str


class ConversationReader:
    """Reads conversations out of the documents that `tokenizer` wrote."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._marks = [marks for marks in (self._learn(system=True), self._learn(system=False)) if marks]

    def read(self, ids: NDArray[np.int32]) -> tuple[Message, ...] | None:
        """Return the messages of a whole document, or None if they cannot be told from its tokens."""
        text = self._tokenizer.decode(ids)
        for marks in self._marks:
            messages = _cut(text, marks)
            if messages and self._gives(messages, ids):
                return messages
        return None

    def _learn(self, *, system: bool) -> _Marks | None:
        messages = [Message("system", SYSTEM)] if system else []
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
            messages += [Message("user", question), Message("assistant", answer)]
        try:
            document = self._tokenizer.encode(
                Conversation(tuple(messages), "multi_turn"), train_on="assistant"
            )
        except Reject:
            return None  # a template without system turns, or for one exchange
        text = self._tokenizer.decode(document.ids)
        pieces = list(_between(text, [message.content for message in messages]))
        if len(pieces) != len(messages) + 1:
            return None
        begin, *middle, end = pieces
        after_system = middle.pop(0) if system else None
        after_question, after_answer, again = middle
        return (
            _Marks(begin, after_system, after_question, after_answer, end)
            if after_question == again
            else None
        )

    def _gives(self, messages: Sequence[Message], ids: NDArray[np.int32]) -> bool:
        try:
            made = self._tokenizer.encode(Conversation(tuple(messages), "multi_turn"), train_on="assistant")
        except Reject:
            return False
        return np.array_equal(made.ids, ids)


def _between(text: str, contents: Sequence[str]) -> Iterator[str]:
    """Yield what stands before, between and after contents; stops where one is missing."""
    for content in contents:
        before, found, text = text.partition(content)
        if not found:
            return
        yield before
    yield text


def _cut(text: str, marks: _Marks) -> tuple[Message, ...] | None:
    if not text.startswith(marks.begin) or not text.endswith(marks.end):
        return None
    rest = text[len(marks.begin) : len(text) - len(marks.end)]
    messages = []
    if marks.after_system is not None:
        system, found, rest = rest.partition(marks.after_system)
        if not found:
            return None
        messages.append(Message("system", system))
    for exchange in rest.split(marks.after_answer):
        question, found, answer = exchange.partition(marks.after_question)
        if not found:
            return None
        messages += [Message("user", question), Message("assistant", answer)]
    return tuple(messages)
