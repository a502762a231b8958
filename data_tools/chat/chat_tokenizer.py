"""A conversation becomes token ids and targets, with the proof that they are right.

The text is what `apply_chat_template` gives for the whole conversation, the ids are what the tokenizer gives
for that text. A target is an assistant message's content and its end-of-turn token; what cannot be proved is
rejected.
"""

import functools
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_tools.chat.probe import prove_template, study_template
from data_tools.chat.special_text import Lane, SpecialText
from data_tools.chat.template import ChatTemplate
from data_tools.chat.text_pieces import make_piece_encoder
from data_tools.chat.tokenizers import LoadedTokenizer, choose_template, load_tokenizer, save_tokenizer
from data_tools.chat.turns import EncodedTokens, Tokens, TrainOn, prove_turn, turn_ends
from data_tools.chat.writer import ChatWriter, Written
from data_tools.conversation import Conversation, Message
from data_tools.errors import Reject, TokenizerError
from data_tools.fingerprints import fingerprint

VERSION = 2  # of what a conversation becomes here; part of the fingerprint


@dataclass(frozen=True, slots=True)
class Document:
    """One tokenized conversation of T tokens.

    ids [T]; targets [T] (true = carries loss); turn_ends: exclusive token end of each exchange (all messages
    up to the last answer before the next question), ascending, the last is T; num_system_tokens: length of
    the leading system turn with bos, which is repeated when a document is split (0 where the template has it
    inside the first user turn); num_escaped: texts that spelled a special token and were encoded as plain
    text; num_rewritten: answers that are no targets because the template rewrites them once others follow.
    """

    ids: NDArray[np.int32]
    targets: NDArray[np.bool_]
    turn_ends: NDArray[np.int32]
    num_system_tokens: int
    num_escaped: int
    num_rewritten: int = 0


class ChatTokenizer:
    """A tokenizer and a chat template that was proved to work with it; made by `load`."""

    def __init__(self, loaded: LoadedTokenizer, template: ChatTemplate, *, special_text: str) -> None:
        self._loaded = loaded
        self._template = template
        self._load_arguments: tuple[Any, ...] = ()
        study = study_template(template, loaded)
        added = loaded.tokenizer.get_added_tokens_decoder().values()
        marked_special = {token.content for token in added if token.special}
        tokens = marked_special | set(loaded.names.values()) | study.tokens
        self._special = SpecialText(loaded.tokenizer, tokens)
        stops = frozenset({loaded.names["eos_token"], study.stop})
        self._writer = ChatWriter(template, study, self._special, stops, special_text == "reject")
        self._pieces = make_piece_encoder(loaded.tokenizer)
        self.stop_token_ids = frozenset(self._id(token) for token in stops)
        self.eos_token_id = self._id(loaded.names["eos_token"])
        self.pad_token_id = self._id(loaded.names.get("pad_token", loaded.names["eos_token"]))
        self.vocab_size: int = max(loaded.tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.has_generation_tags = template.has_generation_tags
        self.template_text = template.text
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
        (made,) = self.encode_batch([conversation], train_on=train_on)
        if isinstance(made, Reject):
            raise made
        return made

    def encode_batch(
        self, conversations: Sequence[Conversation], *, train_on: TrainOn
    ) -> list[Document | Reject]:
        """Return what `encode` gives for each conversation, a Reject in place of raising it.

        Each does not depend on the others; some hundred together are encoded faster than one by one.
        """
        written = [self._write(conversation, train_on) for conversation in conversations]
        plain = [made for made in written if isinstance(made, Written) and made.lane is self._special.plain]
        found = self._pieces.encode([made.text for made in plain]) if self._pieces else [None] * len(plain)
        tokens = {id(made): by_pieces for made, by_pieces in zip(plain, found, strict=True)}
        return [
            made if isinstance(made, Reject) else self._finish(made, tokens.get(id(made))) for made in written
        ]

    def _write(self, conversation: Conversation, train_on: TrainOn) -> Written | Reject:
        try:
            if conversation.family == "text":
                names = self._loaded.names
                bos = names["bos_token"] if self._loaded.begins_with_bos else ""
                content = conversation.messages[0].content
                return self._writer.write_text(content, bos=bos, eos=names["eos_token"])
            return self._writer.write(conversation, train_on)
        except Reject as reject:
            return reject

    def _finish(self, written: Written, tokens: Tokens | None) -> Document | Reject:
        try:
            return self._make_document(written, tokens or self._encode_text(written.lane, written.text))
        except Reject as reject:
            return reject

    def _encode_text(self, lane: Lane, text: str) -> EncodedTokens:
        """Return the tokens of a text as the tokenizer itself gives them, with its offsets."""
        try:
            encoding = lane.tokenizer.encode(text, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError) as error:
            raise Reject("text is not valid Unicode", "a lone surrogate") from error
        return EncodedTokens(text, np.array(encoding.ids, np.int32), encoding)

    def _make_document(self, written: Written, tokens: Tokens) -> Document:
        targets = np.full(len(tokens.ids), written.everything)
        for turn in written.turns:
            if written.everything or turn.message in written.trained:
                first, last = prove_turn(turn, tokens, self.stop_token_ids)
                targets[first : last + 1] = turn.message in written.trained
        targets[:1] = False
        if not targets.any():
            raise Reject("nothing to train on")
        question = written.question
        return Document(
            ids=tokens.ids,
            targets=targets,
            turn_ends=turn_ends(written.messages, written.turns, written.text, tokens),
            num_system_tokens=(tokens.find(question, len(written.text)) or 0) if question else 0,
            num_escaped=written.num_escaped,
            num_rewritten=written.num_rewritten,
        )

    def render(self, conversation: Conversation) -> str:
        """Return the text of a whole conversation; raw text as it is."""
        if conversation.family == "text":
            return conversation.messages[0].content
        chat = self._writer.prepare(conversation.messages, conversation.tools)
        return self._template.render(chat.values, chat.tools)

    def render_prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """Return the text that asks for the next answer."""
        chat = self._writer.prepare(tuple(messages), tools)
        return self._template.render(chat.values, chat.tools, add_generation_prompt=True)

    def encode_prompt(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
    ) -> NDArray[np.int32]:
        """Return the ids int32 [T] that ask for the next answer; content that spells a special token stays text.

        A space at the end that the answer's first word takes into its token is left to the answer, as in training.
        Raises Reject where the template refuses the messages.
        """
        lane, text = self._writer.write_prompt(tuple(messages), tools)
        return self._encode_text(lane, text.rstrip(" ") if self._words_take_spaces else text).ids

    @functools.cached_property
    def _words_take_spaces(self) -> bool:
        """Tell whether the tokenizer writes a word and the space before it as one token."""
        encode = self._loaded.tokenizer.encode
        space = encode("x ", add_special_tokens=False).ids
        return any(
            encode(f"x {sign}", add_special_tokens=False).ids[: len(space)] != space
            for sign in string.ascii_letters + string.digits
        )

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Return the text of token ids, special tokens included."""
        text: str = self._loaded.tokenizer.decode([int(token) for token in ids], skip_special_tokens=False)
        return text

    def decode_text(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """Return the text of token ids without special tokens."""
        text: str = self._loaded.tokenizer.decode([int(token) for token in ids], skip_special_tokens=True)
        return text

    def decode_stream(self) -> Callable[[int], str]:
        """Return a function from the next token of an answer to the text that it adds, without special tokens.

        A character that several tokens share comes with the last of them.
        """
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        return lambda token: stream.step(self._loaded.tokenizer, token) or ""

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


def _load_again(
    folder: Path, chat_template: str | None, special_text: Literal["plain", "reject"], named: dict[str, Any]
) -> ChatTokenizer:
    return ChatTokenizer.load(folder, chat_template, special_text=special_text, **named)
