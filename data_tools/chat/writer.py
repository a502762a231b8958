"""A conversation becomes text: what the template renders, and where in it the assistant's turns stand.

Only a turn that stands in the whole conversation's text as it was when it was generated, behind the prompt that
asked for it, can carry targets. Templates of thinking models rewrite earlier answers (the thoughts are dropped
once the next question is asked): such an answer is no target, and is counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_tools.chat.layout import Layout, learn_layout
from data_tools.chat.probe import QUESTION, Study
from data_tools.chat.special_text import Lane, SpecialText
from data_tools.chat.template import ChatTemplate
from data_tools.chat.tool_text import (
    fold_system,
    plain_call,
    plain_value,
    texts_in,
    write_tool_definitions,
    write_tool_turns,
)
from data_tools.chat.turns import TrainOn, Turn, find_content, skip_spaces, trained_messages
from data_tools.conversation import Conversation, Message
from data_tools.errors import Reject

_SYSTEM_CACHE_SIZE = 10_000


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation as the template gets it: `values` and `tools` are plain dicts and lists."""

    messages: tuple[Message, ...]
    values: list[dict[str, Any]]
    tools: list[Any]


@dataclass(frozen=True, slots=True)
class Written:
    """The text of a conversation and what is known of it.

    turns: the assistant's turns that were found; trained: the messages whose turns are targets; everything:
    so is all the rest; question: the first character behind the system turn, 0 where it is no turn of its own;
    num_escaped: texts that spell a special token; num_rewritten: answers that are no targets because the
    template rewrites them once others follow.
    """

    lane: Lane
    text: str
    messages: tuple[Message, ...]
    turns: list[Turn]
    trained: frozenset[int]
    everything: bool
    question: int
    num_escaped: int
    num_rewritten: int


@dataclass(slots=True)
class ChatWriter:
    """Writes conversations by one template; `stops` are the tokens that may end an answer."""

    template: ChatTemplate
    study: Study
    special: SpecialText
    stops: frozenset[str]
    reject_special: bool
    _system_texts: dict[str | None, str] = field(default_factory=dict)
    _layout: Layout | None = None

    def __post_init__(self) -> None:
        if not self.template.has_generation_tags:
            self._layout = learn_layout(self.template, self.study.stop)

    def write(self, conversation: Conversation, train_on: TrainOn) -> Written:
        """Return the text of a conversation; raises Reject with a constant reason."""
        chat = self.prepare(conversation.messages, conversation.tools)
        trained = trained_messages(chat.messages, train_on)
        everything = train_on == "all"
        lane, shown, num_escaped = self._choose_lane(chat)
        text, spans = self._render(lane, shown)
        rewritten: frozenset[int] = frozenset()
        turns = self._turns_by_layout(chat, text) if lane is self.special.plain else None
        if self._layout is not None and turns is not None:
            question = skip_spaces(text, self._layout.first_question(chat.values))
        else:
            turns, rewritten = self._find_turns(lane, shown, text, spans, trained, need_all=everything)
            question = self._first_question(lane, shown, text)
        if lane is not self.special.plain:
            self._check_unmarked(text, chat)
        return Written(
            lane=lane,
            text=text,
            messages=chat.messages,
            turns=turns,
            trained=trained - rewritten,
            everything=everything,
            question=question,
            num_escaped=num_escaped,
            num_rewritten=len(rewritten & trained),
        )

    def write_prompt(
        self, messages: tuple[Message, ...], tools: Sequence[Mapping[str, Any]]
    ) -> tuple[Lane, str]:
        """Return the text that asks for the next answer, and the lane that it is to be encoded in."""
        lane, shown, _ = self._choose_lane(self.prepare(messages, tools))
        return lane, lane.text(self.template.render(shown.values, shown.tools, add_generation_prompt=True))

    def write_text(self, content: str, *, bos: str, eos: str) -> Written:
        """Return raw text between bos (may be empty) and eos."""
        lane = self.special.plain
        num_escaped = self.special.count([content])
        if num_escaped:
            self._may_escape()
            lane = self.special.marked
        text = lane.text(bos + lane.mark(content) + eos)
        return Written(lane, text, (), [], frozenset(), True, 0, num_escaped, 0)

    def prepare(self, messages: tuple[Message, ...], tools: Sequence[Mapping[str, Any]]) -> Chat:
        """Write as text what the template has no words for (the rules are in tool_text.py)."""
        uses_tools = any(message.tool_calls or message.role == "tool" for message in messages)
        if uses_tools and not self.study.writes_tool_turns:
            messages = write_tool_turns(messages)
        if tools and not self.study.writes_tools:
            messages, tools = write_tool_definitions(messages, tools), ()
        if messages and messages[0].role == "system" and not self.study.writes_system:
            messages = fold_system(messages)
        values = [message.as_dict() for message in messages]
        for value in values:
            if "tool_calls" in value:
                value["tool_calls"] = [plain_call(call) for call in value["tool_calls"]]
        return Chat(messages, values, [plain_value(tool) for tool in tools])

    def _choose_lane(self, chat: Chat) -> tuple[Lane, Chat, int]:
        """Return the lane, the chat as that lane shows it to the template, and how many texts are escaped."""
        special = self.special
        spelled = special.count(value["content"] for value in chat.values)
        if chat.tools or any(len(value) > 2 for value in chat.values):
            rest = [[value.get("name"), value.get("tool_calls")] for value in chat.values]
            spelled += special.count(texts_in([chat.tools, rest]))
        if not spelled:
            return special.plain, chat, 0
        self._may_escape()
        lane = special.marked
        return lane, Chat(chat.messages, lane.mark(chat.values), lane.mark(chat.tools)), spelled

    def _may_escape(self) -> None:
        if self.reject_special:
            raise Reject("content spells a special token")

    def _check_unmarked(self, text: str, chat: Chat) -> None:
        """Reject where the marks around spelled tokens made the template write something else."""
        if self.special.unmarked(text) != self.template.render(chat.values, chat.tools):
            raise Reject("template alters content that spells a special token")

    def _render(self, lane: Lane, chat: Chat) -> tuple[str, list[tuple[int, int]]]:
        """Return the text and the characters that each `{% generation %}` encloses in it."""
        written, spans = self.template.render_spans(chat.values, chat.tools)
        if lane is self.special.plain:
            return written, spans
        spans = [(len(lane.text(written[:start])), len(lane.text(written[:end]))) for start, end in spans]
        return lane.text(written), spans

    def _find_turns(
        self,
        lane: Lane,
        chat: Chat,
        text: str,
        spans: list[tuple[int, int]],
        trained: frozenset[int],
        *,
        need_all: bool,
    ) -> tuple[list[Turn], frozenset[int]]:
        """Return the assistant's turns in the text, and which of them the template has rewritten.

        A turn that is not needed may be missing.
        """
        assistants = [index for index, message in enumerate(chat.messages) if message.role == "assistant"]
        has_tags = self.template.has_generation_tags
        if has_tags and len(spans) != len(assistants):
            raise Reject("generation spans do not match the assistant messages", f"{len(spans)} spans")
        turns, rewritten = [], set()
        for number, index in enumerate(assistants):
            try:
                turns.append(self._find_turn(lane, chat, text, index, spans[number] if has_tags else None))
            except Reject:
                if index in trained and not need_all and self._was_there(lane, chat, index):
                    rewritten.add(index)
                elif need_all or index in trained:
                    raise
        return turns, frozenset(rewritten)

    def _turns_by_layout(self, chat: Chat, text: str) -> list[Turn] | None:
        """Return all turns of a text that the template's layout accounts for; None where it does not."""
        if self._layout is None or chat.tools:
            return None
        written = self._layout.write(chat.values)
        if written is None or written[0] != text:
            return None
        turns = []
        for place, (start, stop, end) in enumerate(written[1]):
            index = 2 * place + 1 + (chat.values[0]["role"] == "system")
            skip = find_content(text[start:stop], chat.messages[index], self.study.lead_in)
            if skip is None:
                return None
            turns.append(Turn(index, start + skip, stop, end))
        return turns

    def _find_turn(self, lane: Lane, chat: Chat, text: str, index: int, span: tuple[int, int] | None) -> Turn:
        """Return the turn of message `index`; `span` is what `{% generation %}` encloses, None without tags."""
        if span is None or self.study.rewrites_history:
            prompt = lane.text(
                self.template.render(chat.values[:index], chat.tools, add_generation_prompt=True)
            )
            if not text.startswith(prompt):
                raise Reject("prompt is not a prefix of the conversation's text", f"message {index}")
        if span is not None:
            return self._tagged_turn(lane, chat, text, index, *span)
        return self._prompted_turn(lane, chat, text, index, len(prompt))

    def _tagged_turn(self, lane: Lane, chat: Chat, text: str, index: int, start: int, end: int) -> Turn:
        """Return the turn that `{% generation %}` encloses; its borders are taken as they are."""
        stops = [match for match in lane.special.finditer(text, start, end) if match.end() == end]
        if not stops or lane.token(stops[0]) not in self.stops:
            raise Reject("no stop token after an assistant turn", f"message {index}")
        if find_content(text[start : stops[0].start()], chat.messages[index], "") is None:
            raise Reject("assistant content is not what {% generation %} encloses", f"message {index}")
        return Turn(index, start, stops[0].start(), end)

    def _prompted_turn(self, lane: Lane, chat: Chat, text: str, index: int, start: int) -> Turn:
        """Return the turn between the end of the prompt that asks for it and the next stop token."""
        for match in lane.special.finditer(text, start):
            if lane.token(match) in self.stops:
                break
        else:
            raise Reject("no stop token after an assistant turn", f"message {index}")
        skip = find_content(text[start : match.start()], chat.messages[index], self.study.lead_in)
        if skip is None:
            raise Reject("assistant content not found in the text", f"message {index}")
        return Turn(index, start + skip, match.start(), match.end())

    def _was_there(self, lane: Lane, chat: Chat, index: int) -> bool:
        """Tell whether an answer stood as it should in the text that ended with it."""
        if not any(message.role == "user" for message in chat.messages[index + 1 :]):
            return False
        until = Chat(chat.messages[: index + 1], chat.values[: index + 1], chat.tools)
        try:
            text, spans = self._render(lane, until)
            self._find_turns(lane, until, text, spans, frozenset({index}), need_all=False)
        except Reject:
            return False
        return True

    def _first_question(self, lane: Lane, chat: Chat, text: str) -> int:
        """Return where the first question begins, 0 where nothing separate stands before it."""
        system = chat.values[:1] if chat.values[0]["role"] == "system" else []
        if lane is not self.special.plain or chat.tools or (system and len(system[0]) > 2):
            prefix = self._system_text(lane, system, chat.tools)
        else:
            key = system[0]["content"] if system else None
            if key not in self._system_texts:
                if len(self._system_texts) >= _SYSTEM_CACHE_SIZE:
                    self._system_texts.clear()
                self._system_texts[key] = self._system_text(lane, system, [])
            prefix = self._system_texts[key]
        return skip_spaces(text, len(prefix)) if prefix and text.startswith(prefix) else 0

    def _system_text(self, lane: Lane, system: list[dict[str, Any]], tools: list[Any]) -> str:
        """Return what the template writes before a first question, "" where that is not separate from it."""
        question = lane.text(self.study.question or "")
        try:
            text = lane.text(self.template.render([*system, QUESTION], tools))
        except Reject:
            return ""
        return text.removesuffix(question) if question and text.endswith(question) else ""
