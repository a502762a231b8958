"""A conversation becomes token ids and targets, with the proof that they are right.

The text is what `apply_chat_template` gives for the whole conversation, the ids are what the tokenizer gives
for that text. A target is an assistant message's content and its end-of-turn token; what cannot be proved is
rejected.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_tools.chat_probe import QUESTION, prove_template, study_template
from data_tools.chat_template import ChatTemplate
from data_tools.chat_turns import (
    TrainOn,
    Turn,
    find_content,
    prove_turn,
    skip_spaces,
    token_at,
    trained_messages,
    turn_ends,
)
from data_tools.conversation import Conversation, Message
from data_tools.errors import Reject, TokenizerError
from data_tools.fingerprints import fingerprint
from data_tools.special_text import Lane, SpecialText
from data_tools.tokenizers import LoadedTokenizer, choose_template, load_tokenizer, save_tokenizer
from data_tools.tool_text import (
    fold_system,
    plain_call,
    plain_value,
    texts_in,
    write_tool_definitions,
    write_tool_turns,
)

VERSION = 1  # of what a conversation becomes here; part of the fingerprint
_SYSTEM_CACHE_SIZE = 10_000


@dataclass(frozen=True, slots=True)
class Document:
    """One tokenized conversation of T tokens.

    ids [T]; targets [T] (true = carries loss); turn_ends: exclusive token end of each exchange (all messages
    up to the last answer before the next question), ascending, the last is T; num_system_tokens: length of
    the leading system turn with bos, which is repeated when a document is split (0 where the template has it
    inside the first user turn); num_escaped: texts that spelled a special token and were encoded as plain
    text.
    """

    ids: NDArray[np.int32]
    targets: NDArray[np.bool_]
    turn_ends: NDArray[np.int32]
    num_system_tokens: int
    num_escaped: int


@dataclass(frozen=True, slots=True)
class _Chat:
    """A conversation as the template gets it: `values` and `tools` are plain dicts and lists."""

    messages: tuple[Message, ...]
    values: list[dict[str, Any]]
    tools: list[Any]


class ChatTokenizer:
    """A tokenizer and a chat template that was proved to work with it; made by `load`."""

    def __init__(self, loaded: LoadedTokenizer, template: ChatTemplate, *, special_text: str) -> None:
        self._loaded = loaded
        self._template = template
        self._special_text = special_text
        self._load_arguments: tuple[Any, ...] = ()
        self._system_texts: dict[str | None, str] = {}
        self._study = study_template(template, loaded)
        added = loaded.tokenizer.get_added_tokens_decoder().values()
        marked_special = {token.content for token in added if token.special}
        tokens = marked_special | set(loaded.names.values()) | self._study.tokens
        self._special = SpecialText(loaded.tokenizer, tokens)
        self._stops = {loaded.names["eos_token"], self._study.stop}
        self.stop_token_ids = frozenset(self._id(token) for token in self._stops)
        self.eos_token_id = self._id(loaded.names["eos_token"])
        self.pad_token_id = self._id(loaded.names.get("pad_token", loaded.names["eos_token"]))
        self.vocab_size: int = max(loaded.tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.has_generation_tags = template.has_generation_tags
        self.fingerprint = fingerprint(
            {
                "version": VERSION,
                "tokenizer": loaded.content_hash,
                "template": template.text,
                "names": dict(loaded.names),
                "special": list(self._special.tokens),
                "special_text": special_text,
            }
        )

    @classmethod
    def load(
        cls,
        folder: Path,
        chat_template: str | None,
        *,
        special_text: Literal["plain", "reject"] = "plain",
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
    ) -> "ChatTokenizer":
        """Load a tokenizer folder with its own (None), a built-in, or a `.jinja` file's chat template.

        Raises TokenizerError where one is missing, or where the template cannot be proved on probe
        conversations.
        """
        named = {"bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token}
        loaded = load_tokenizer(folder, named)
        text, where = choose_template(loaded, chat_template)
        if "eos_token" not in loaded.names:
            raise TokenizerError(
                f"eos_token: the tokenizer names none: got null, {folder}; expected the token "
                "that ends a text; do: set eos_token"
            )
        made = cls(loaded, ChatTemplate(text, loaded.names, where=where), special_text=special_text)
        made._load_arguments = (folder, chat_template, special_text, named)
        prove_template(lambda probe: made.encode(probe, train_on="assistant"), made.render, where=where)
        return made

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        """Pickle as the arguments of `load`: the other process reads the folder again."""
        return _load_again, self._load_arguments

    def encode(self, conversation: Conversation, *, train_on: TrainOn) -> Document:
        """Return the conversation's token ids and targets; raises Reject with a constant reason."""
        chat = self._prepare(conversation.messages, conversation.tools)
        trained = trained_messages(chat.messages, train_on)
        everything = train_on == "all"
        lane, shown, num_escaped = self._choose_lane(chat)
        text, turns = self._find_turns(lane, shown, trained, need_all=everything)
        if lane is not self._special.plain:
            self._check_unmarked(text, chat)
        try:
            encoding = lane.tokenizer.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:
            raise Reject("text is not valid Unicode", "a lone surrogate") from error
        ids = np.array(encoding.ids, np.int32)
        targets = np.full(len(ids), everything)
        for turn in turns:
            if everything or turn.message in trained:
                first, last = prove_turn(turn, text, encoding, ids, self.stop_token_ids)
                targets[first : last + 1] = turn.message in trained
        targets[:1] = False
        if not targets.any():
            raise Reject("nothing to train on")
        return Document(
            ids=ids,
            targets=targets,
            turn_ends=turn_ends(chat.messages, turns, text, encoding),
            num_system_tokens=self._num_system_tokens(lane, shown, text, encoding),
            num_escaped=num_escaped,
        )

    def render(self, conversation: Conversation) -> str:
        """Return the text of a whole conversation."""
        chat = self._prepare(conversation.messages, conversation.tools)
        return self._template.render(chat.values, chat.tools)

    def render_prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """Return the text that asks for the next answer."""
        chat = self._prepare(tuple(messages), tools)
        return self._template.render(chat.values, chat.tools, add_generation_prompt=True)

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Return the text of token ids, special tokens included."""
        text: str = self._loaded.tokenizer.decode([int(token) for token in ids], skip_special_tokens=False)
        return text

    def pieces(self, ids: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """Return each token's own text; of a character that several tokens share, the last one has it."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=False)
        return [stream.step(self._loaded.tokenizer, int(token)) or "" for token in ids]

    def save(self, folder: Path) -> None:
        """Write a Hugging Face tokenizer folder that gives the same ids and the same chat template."""
        save_tokenizer(self._loaded, folder, self._template.text)

    def _id(self, token: str) -> int:
        number: int = self._loaded.tokenizer.token_to_id(token)
        return number

    def _prepare(self, messages: tuple[Message, ...], tools: Sequence[Mapping[str, Any]]) -> _Chat:
        """Write as text what the template has no words for (the rules are in tool_text.py)."""
        uses_tools = any(message.tool_calls or message.role == "tool" for message in messages)
        if uses_tools and not self._study.writes_tool_turns:
            messages = write_tool_turns(messages)
        if tools and not self._study.writes_tools:
            messages, tools = write_tool_definitions(messages, tools), ()
        if messages and messages[0].role == "system" and not self._study.writes_system:
            messages = fold_system(messages)
        values = [message.as_dict() for message in messages]
        for value in values:
            if "tool_calls" in value:
                value["tool_calls"] = [plain_call(call) for call in value["tool_calls"]]
        return _Chat(messages, values, [plain_value(tool) for tool in tools])

    def _choose_lane(self, chat: _Chat) -> tuple[Lane, _Chat, int]:
        """Return the lane, the chat as that lane shows it to the template, and how many texts are escaped."""
        special = self._special
        spelled = special.count(value["content"] for value in chat.values)
        if chat.tools or any(len(value) > 2 for value in chat.values):
            rest = [[value.get("name"), value.get("tool_calls")] for value in chat.values]
            spelled += special.count(texts_in([chat.tools, rest]))
        if not spelled:
            return special.plain, chat, 0
        if self._special_text == "reject":
            raise Reject("content spells a special token")
        lane = special.marked
        return lane, _Chat(chat.messages, lane.mark(chat.values), lane.mark(chat.tools)), spelled

    def _check_unmarked(self, text: str, chat: _Chat) -> None:
        """Reject where the marks around spelled tokens made the template write something else."""
        if self._special.unmarked(text) != self._template.render(chat.values, chat.tools):
            raise Reject("template alters content that spells a special token")

    def _find_turns(
        self, lane: Lane, chat: _Chat, trained: frozenset[int], *, need_all: bool
    ) -> tuple[str, list[Turn]]:
        """Return the text and the assistant's turns in it; one that is not needed may be missing."""
        written, spans = self._template.render_spans(chat.values, chat.tools)
        text = lane.text(written)
        assistants = [index for index, message in enumerate(chat.messages) if message.role == "assistant"]
        if self.has_generation_tags and len(spans) != len(assistants):
            raise Reject("generation spans do not match the assistant messages", f"{len(spans)} spans")
        turns = []
        for number, index in enumerate(assistants):
            try:
                if self.has_generation_tags:
                    start, end = (len(lane.text(written[:char])) for char in spans[number])
                    turns.append(self._tagged_turn(lane, chat, text, index, start, end))
                else:
                    turns.append(self._prefixed_turn(lane, chat, text, index))
            except Reject:
                if need_all or index in trained:
                    raise
        return text, turns

    def _tagged_turn(self, lane: Lane, chat: _Chat, text: str, index: int, start: int, end: int) -> Turn:
        """Return the turn that `{% generation %}` encloses; its borders are taken as they are."""
        stops = [match for match in lane.special.finditer(text, start, end) if match.end() == end]
        if not stops or lane.token(stops[0]) not in self._stops:
            raise Reject("no stop token after an assistant turn", f"message {index}")
        if find_content(text[start : stops[0].start()], chat.messages[index], "") is None:
            raise Reject("assistant content is not what {% generation %} encloses", f"message {index}")
        return Turn(index, start, stops[0].start(), end)

    def _prefixed_turn(self, lane: Lane, chat: _Chat, text: str, index: int) -> Turn:
        """Return the turn between the prompt that asks for message `index` and the next stop token."""
        prompt = lane.text(self._template.render(chat.values[:index], chat.tools, add_generation_prompt=True))
        if not text.startswith(prompt):
            raise Reject("prompt is not a prefix of the conversation's text", f"message {index}")
        start = len(prompt)
        for match in lane.special.finditer(text, start):
            if lane.token(match) in self._stops:
                break
        else:
            raise Reject("no stop token after an assistant turn", f"message {index}")
        skip = find_content(text[start : match.start()], chat.messages[index], self._study.lead_in)
        if skip is None:
            raise Reject("assistant content not found in the text", f"message {index}")
        return Turn(index, start + skip, match.start(), match.end())

    def _num_system_tokens(self, lane: Lane, chat: _Chat, text: str, encoding: Any) -> int:
        """Return how many tokens come before the first question, 0 where they are no turn of their own."""
        system = chat.values[:1] if chat.values[0]["role"] == "system" else []
        if lane is not self._special.plain or chat.tools or (system and len(system[0]) > 2):
            prefix = self._system_text(lane, system, chat.tools)
        else:
            key = system[0]["content"] if system else None
            if key not in self._system_texts:
                if len(self._system_texts) >= _SYSTEM_CACHE_SIZE:
                    self._system_texts.clear()
                self._system_texts[key] = self._system_text(lane, system, [])
            prefix = self._system_texts[key]
        if not prefix or not text.startswith(prefix):
            return 0
        return token_at(encoding, skip_spaces(text, len(prefix)), len(text)) or 0

    def _system_text(self, lane: Lane, system: list[dict[str, Any]], tools: list[Any]) -> str:
        """Return what the template writes before a first question, "" where that is not separate from it."""
        question = lane.text(self._study.question or "")
        try:
            text = lane.text(self._template.render([*system, QUESTION], tools))
        except Reject:
            return ""
        return text.removesuffix(question) if question and text.endswith(question) else ""


def _load_again(
    folder: Path, chat_template: str | None, special_text: Literal["plain", "reject"], named: dict[str, Any]
) -> ChatTokenizer:
    return ChatTokenizer.load(folder, chat_template, special_text=special_text, **named)
