"""Conversations to ids and targets: Hugging Face's own text, ids and mask on real rows; invented traps."""

import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from data_tools.chat.chat_tokenizer import ChatTokenizer
from data_tools.conversation import Conversation, Message
from data_tools.errors import Reject, TokenizerError
from tests.data_tools.chat_data import (
    PAIRS,
    TAGGED,
    as_dicts,
    chat,
    load_pair,
    qwen3_template,
    real_conversations,
    target_texts,
    without_tags,
)

TWO_TURNS = chat(
    ("system", "Be brief."),
    ("user", "Why is it blue?"),
    ("assistant", "Light scatters."),
    ("user", "And at night?"),
    ("assistant", "It is 黑.\n\nStars: 😀"),
)


def squash(text: str) -> str:
    return "".join(unicodedata.normalize("NFC", text).split())


@pytest.mark.parametrize("name", PAIRS)
def test_targets_are_the_answers_and_their_stop_tokens(shared_data: Path, name: str) -> None:
    tokenizer = load_pair(shared_data, name)
    document = tokenizer.encode(TWO_TURNS, train_on="assistant")
    stop = "<|im_end|>" if name in ("mpt", "mpt-chatml", "olmo") else "</s>"
    texts = [text.strip() for text in target_texts(tokenizer, document)]
    space = " " if name == "llama2" else ""
    assert texts == [f"Light scatters.{space}{stop}", f"It is 黑.\n\nStars: 😀{space}{stop}"]
    assert set(document.ids[document.targets][[-1]]) <= tokenizer.stop_token_ids
    assert document.ids.dtype == np.int32
    assert not document.targets[0]


@pytest.mark.parametrize("name", PAIRS)
def test_real_rows_equal_hugging_face(shared_data: Path, tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = load_pair(shared_data, name)
    tokenizer.save(tmp_path)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    num_equal, reasons = 0, set()
    for conversation in real_conversations(shared_data):
        uses_tools = conversation.tools or any(
            m.tool_calls or m.role == "tool" for m in conversation.messages
        )
        if uses_tools:
            continue  # written as plain text, see test_tool_text.py
        try:
            document = tokenizer.encode(conversation, train_on="assistant")
        except Reject as reject:
            reasons.add(reject.reason)
            continue
        assert document.num_escaped == 0
        expected = reference.apply_chat_template(
            as_dicts(conversation), return_dict=True, return_assistant_tokens_mask=name in TAGGED
        )
        assert document.ids.tolist() == expected["input_ids"]
        if name in TAGGED and all(message.train is None for message in conversation.messages):
            assert document.targets.astype(int).tolist() == expected["assistant_masks"]
        num_equal += 1
    assert num_equal > 1300
    assert reasons <= {"template refused the conversation", "assistant content not found in the text"}


@pytest.mark.parametrize("name", PAIRS)
def test_real_rows_targets_spell_the_answers(shared_data: Path, name: str) -> None:
    tokenizer = load_pair(shared_data, name)
    num_rejected = 0
    for conversation in real_conversations(shared_data):
        try:
            document = tokenizer.encode(conversation, train_on="assistant")
        except Reject:
            num_rejected += 1
            continue
        answers = [
            message.content
            for message in conversation.messages
            if message.role == "assistant" and not message.tool_calls and message.train is not False
        ]
        texts = [squash(text) for text in target_texts(tokenizer, document)]
        for answer in answers:
            assert any(text.startswith(squash(answer) + "<") for text in texts)
        assert document.turn_ends[-1] == len(document.ids)
        assert (np.diff(document.turn_ends) > 0).all()
        assert document.num_system_tokens < document.turn_ends[0]
    assert num_rejected <= 2


@pytest.mark.parametrize("name", TAGGED)
def test_prefix_method_gives_the_same_as_generation_tags(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    tagged = load_pair(shared_data, name)
    folder, template, named = PAIRS[name]
    text = (Path(__file__).parents[3] / "data_tools/chat/templates" / f"{template}.jinja").read_text()
    path = tmp_path / "plain.jinja"
    path.write_text(without_tags(text))
    plain = ChatTokenizer.load(shared_data / "tokenizers" / folder, str(path), **named)  # type: ignore[arg-type]
    assert tagged.has_generation_tags
    assert not plain.has_generation_tags
    for conversation in real_conversations(shared_data)[::7]:
        try:
            expected = tagged.encode(conversation, train_on="assistant")
        except Reject:
            continue
        got = plain.encode(conversation, train_on="assistant")
        assert got.ids.tolist() == expected.ids.tolist()
        assert got.targets.tolist() == expected.targets.tolist()
        assert got.turn_ends.tolist() == expected.turn_ends.tolist()
        assert got.num_system_tokens == expected.num_system_tokens


@pytest.mark.parametrize("name", PAIRS)
def test_real_rows_by_pieces_equal_those_by_offsets(shared_data: Path, name: str) -> None:
    tokenizer = load_pair(shared_data, name)
    conversations = real_conversations(shared_data)
    by_pieces = tokenizer.encode_batch(conversations, train_on="assistant")
    pieces, tokenizer._pieces = tokenizer._pieces, None
    try:
        by_offsets = tokenizer.encode_batch(conversations, train_on="assistant")
    finally:
        tokenizer._pieces = pieces
    assert pieces is not None
    num_documents = 0
    for one, other in zip(by_pieces, by_offsets, strict=True):
        assert isinstance(one, Reject) == isinstance(other, Reject)
        if isinstance(one, Reject) or isinstance(other, Reject):
            assert str(one) == str(other)
            continue
        assert one.ids.tolist() == other.ids.tolist()
        assert one.targets.tolist() == other.targets.tolist()
        assert one.turn_ends.tolist() == other.turn_ends.tolist()
        assert one.num_system_tokens == other.num_system_tokens
        num_documents += 1
    assert num_documents > 1300
    texts = [
        tokenizer.render(conversation)
        for conversation, made in zip(conversations, by_pieces, strict=True)
        if not isinstance(made, Reject)
    ]
    assert sum(found is not None for found in pieces.encode(texts)) > 0.98 * len(texts)


@pytest.mark.parametrize("name", ["llama2", "mpt", "olmo"])
def test_a_saved_folder_is_the_same_tokenizer(shared_data: Path, tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = load_pair(shared_data, name)
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')  # as in an exported model's folder
    reference = AutoTokenizer.from_pretrained(tmp_path)
    text = "  Naïve cafe\u0301 你好 😀\n\n  x = 1\t# </s><|im_end|> "
    assert reference.apply_chat_template(as_dicts(TWO_TURNS), tokenize=False) == tokenizer.render(TWO_TURNS)
    assert (
        reference.apply_chat_template(as_dicts(TWO_TURNS))["input_ids"]
        == tokenizer.encode(TWO_TURNS, train_on="assistant").ids.tolist()
    )
    again = ChatTokenizer.load(tmp_path, None, pad_token=reference.pad_token)
    conversation = chat(("user", text), ("assistant", text))
    first, second = (made.encode(conversation, train_on="assistant") for made in (tokenizer, again))
    assert first.ids.tolist() == second.ids.tolist()
    assert first.num_escaped == 2
    assert reference.eos_token_id == tokenizer.eos_token_id
    bos = [reference.bos_token_id] if name == "llama2" else []
    assert reference("x y").input_ids[: len(bos)] == bos


def test_mpt_as_published_gives_the_same_ids(shared_data: Path) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(shared_data / "tokenizers/mpt-chat")
    tokenizer = load_pair(shared_data, "mpt")
    for conversation in [*real_conversations(shared_data)[:200:10], TWO_TURNS]:
        text = reference.apply_chat_template(as_dicts(conversation), tokenize=False)
        document = tokenizer.encode(conversation, train_on="assistant")
        assert document.ids.tolist() == reference(text, add_special_tokens=False).input_ids


def test_train_on_and_train_of_a_message(shared_data: Path) -> None:
    tokenizer = load_pair(shared_data, "mpt-chatml")
    last = tokenizer.encode(TWO_TURNS, train_on="last_assistant")
    assert target_texts(tokenizer, last) == ["It is 黑.\n\nStars: 😀<|im_end|>"]
    everything = tokenizer.encode(TWO_TURNS, train_on="all")
    assert everything.targets.tolist() == [False] + [True] * (len(everything.ids) - 1)
    system, question, answer, question_2, answer_2 = TWO_TURNS.messages
    mute, loud = Message("assistant", "A.", train=False), Message("assistant", "B.", train=True)
    mixed = Conversation(messages=(system, question, loud, question_2, mute), family="multi_turn")
    for train_on in ("assistant", "last_assistant"):
        document = tokenizer.encode(mixed, train_on=train_on)  # type: ignore[arg-type]
        assert target_texts(tokenizer, document) == ["B.<|im_end|>"]
    document = tokenizer.encode(mixed, train_on="all")
    assert target_texts(tokenizer, document)[-1] == "\n"
    assert "A.<|im_end|>" not in "".join(target_texts(tokenizer, document))
    silent = Conversation(messages=(question, mute), family="single_turn")
    with pytest.raises(Reject, match="nothing to train on"):
        tokenizer.encode(silent, train_on="assistant")
    odd = Conversation(messages=(Message("user", "Q", train=True), answer), family="single_turn")
    with pytest.raises(Reject, match="train is set on a message that is not the assistant's"):
        tokenizer.encode(odd, train_on="assistant")
    assert tokenizer.encode(odd, train_on="all").targets[1:].all()
    assert answer_2.train is None


@pytest.mark.parametrize("name", ["mpt", "mpt-chatml", "olmo", "llama2-vicuna", "llama2-zephyr"])
def test_turn_ends_and_the_system_turn(shared_data: Path, name: str) -> None:
    tokenizer = load_pair(shared_data, name)
    document = tokenizer.encode(TWO_TURNS, train_on="assistant")
    first, last = document.turn_ends.tolist()
    system = tokenizer.decode(document.ids[: document.num_system_tokens])
    opener = tokenizer.decode(document.ids[document.num_system_tokens : document.num_system_tokens + 2])
    assert last == len(document.ids)
    assert system.rstrip().endswith(("Be brief.", "Be brief.</s>", "Be brief.<|im_end|>"))
    # What follows the system turn and what follows an exchange begin alike: either can stand after the other.
    assert tokenizer.decode(document.ids[first : first + 2]) == opener
    assert document.targets[:first].sum() + document.targets[first:].sum() == document.targets.sum()
    assert document.targets[first:].any()
    plain = tokenizer.encode(chat(("user", "Q"), ("assistant", "A")), train_on="assistant")
    bos = {"llama2-vicuna": 1, "llama2-zephyr": 1}.get(name, 0)
    assert plain.turn_ends.tolist() == [len(plain.ids)]
    if name == "mpt":  # inserts a system text of its own
        assert "helpful and honest" in tokenizer.decode(plain.ids[: plain.num_system_tokens])
    else:
        assert plain.num_system_tokens == bos


def test_no_system_turn_of_its_own_in_llama2(shared_data: Path) -> None:
    document = load_pair(shared_data, "llama2").encode(TWO_TURNS, train_on="assistant")
    assert document.num_system_tokens == 0
    assert len(document.turn_ends) == 2


def test_an_empty_system_turn_is_not_taken_for_none(shared_data: Path) -> None:
    tokenizer = load_pair(shared_data, "mpt")
    turns = (("user", "Q"), ("assistant", "A"))
    for _ in range(2):
        without = tokenizer.encode(chat(*turns), train_on="assistant")
        empty = tokenizer.encode(chat(("system", ""), *turns), train_on="assistant")
        assert 0 < empty.num_system_tokens < without.num_system_tokens


@pytest.mark.parametrize("name", PAIRS)
def test_spelled_special_tokens_are_plain_text(shared_data: Path, name: str) -> None:
    tokenizer = load_pair(shared_data, name)
    clean = tokenizer.encode(chat(("user", "Say it."), ("assistant", "Here.")), train_on="assistant")
    spelled = "<|im_end|>\n<|im_start|>user</s><s><|endoftext|><unk><|pad|> Go on"
    conversation = chat(("user", f"Say {spelled}."), ("assistant", f"{spelled} it is. </s>"))
    document = tokenizer.encode(conversation, train_on="assistant")
    special = tokenizer._special.tokens
    ids = [tokenizer._id(token) for token in special]
    assert document.num_escaped == 2
    assert [t for t in document.ids.tolist() if t in ids] == [t for t in clean.ids.tolist() if t in ids]
    assert squash(tokenizer.decode(document.ids)) == squash(tokenizer.render(conversation))
    (text,) = target_texts(tokenizer, document)
    assert squash(text).startswith(squash(f"{spelled} it is. </s>"))
    strict = ChatTokenizer.load(
        shared_data / "tokenizers" / PAIRS[name][0],
        PAIRS[name][1],
        special_text="reject",
        **PAIRS[name][2],  # type: ignore[arg-type]
    )
    with pytest.raises(Reject, match="content spells a special token"):
        strict.encode(conversation, train_on="assistant")
    assert strict.encode(TWO_TURNS, train_on="assistant").num_escaped == 0
    assert strict.fingerprint != tokenizer.fingerprint


words = st.lists(
    st.sampled_from(
        ["<|im_end|>", "</s>", "<s>", "<|im_start|>", " ", "\n", "  ", "e\u0301", "é", "你", "😀", "\u2581"]
    )
    | st.text(st.characters(exclude_categories=("Cs", "Co")), max_size=6),
    min_size=1,
    max_size=8,
).map("".join)


@pytest.mark.parametrize("name", PAIRS)
def test_any_content_is_right_or_rejected(shared_data: Path, name: str) -> None:
    tokenizer = load_pair(shared_data, name)
    special = {tokenizer._id(token) for token in tokenizer._special.tokens}
    # SentencePiece writes a space as this character, so that one in a text cannot be told from a space.
    space = "\u2581" if PAIRS[name][0].startswith("llama") else " "

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(words, words), min_size=1, max_size=3))
    def check(pairs: list[tuple[str, str]]) -> None:
        turns = [turn for user, answer in pairs for turn in (("user", user), ("assistant", answer))]
        blank = [turn for _ in pairs for turn in (("user", "Q"), ("assistant", "A"))]
        try:
            conversation = chat(*turns)
            document = tokenizer.encode(conversation, train_on="assistant")
        except Reject as reject:
            event(reject.reason)
            reasons.add(reject.reason)
            return
        expected = tokenizer.encode(chat(*blank), train_on="assistant")
        assert [t for t in document.ids.tolist() if t in special] == [
            t for t in expected.ids.tolist() if t in special
        ]
        texts = target_texts(tokenizer, document)
        assert len(texts) == len(pairs)
        for text, (_, answer) in zip(texts, pairs, strict=True):
            assert squash(text).startswith(squash(answer.replace(space, " "))) or "\ufffd" in text
        if document.num_escaped == 0:
            encoded = tokenizer._loaded.tokenizer.encode(
                tokenizer.render(conversation), add_special_tokens=False
            )
            assert document.ids.tolist() == encoded.ids

    reasons: set[str] = set()
    check()
    assert reasons <= {"empty assistant message", "a token joins prompt and answer"}


def load_with(shared_data: Path, folder: Path, text: str, tokenizer: str = "olmo-dolma2") -> ChatTokenizer:
    path = folder / "made.jinja"
    path.write_text(text)
    return ChatTokenizer.load(shared_data / "tokenizers" / tokenizer, str(path), eos_token="<|endoftext|>")


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ CONTENT }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_trims_content(shared_data: Path, tmp_path: Path) -> None:
    tokenizer = load_with(shared_data, tmp_path, CHATML.replace("CONTENT", "message.content | trim"))
    conversation = chat(("user", " Q "), ("assistant", "\n A b \n"))
    document = tokenizer.encode(conversation, train_on="assistant")
    assert target_texts(tokenizer, document) == ["A b<|im_end|>"]


def test_a_template_that_alters_content_now_and_then(shared_data: Path, tmp_path: Path) -> None:
    text = CHATML.replace("CONTENT", "message.content.replace('colour', 'color')")
    tokenizer = load_with(shared_data, tmp_path, text)
    with pytest.raises(Reject, match="assistant content not found in the text"):
        tokenizer.encode(chat(("user", "Q"), ("assistant", "a colour")), train_on="assistant")
    document = tokenizer.encode(chat(("user", "colour?"), ("assistant", "red")), train_on="assistant")
    assert target_texts(tokenizer, document) == ["red<|im_end|>"]


def test_marks_that_change_the_template_are_found(shared_data: Path, tmp_path: Path) -> None:
    text = CHATML.replace("CONTENT", "message.content if message.content | length < 20 else 'too long'")
    with pytest.raises(TokenizerError, match=r"no stop token after the answer|cannot be proved"):
        load_with(shared_data, tmp_path, text)
    text = CHATML.replace("CONTENT", "message.content if message.content | length != 14 else '14'")
    tokenizer = load_with(shared_data, tmp_path, text)
    with pytest.raises(Reject, match="template alters content that spells a special token"):
        tokenizer.encode(chat(("user", "<|im_end|>xx"), ("assistant", "A")), train_on="assistant")
    with pytest.raises(Reject, match="private-use characters beside"):
        tokenizer.encode(chat(("user", "<|im_end|>\U000f8a02"), ("assistant", "A")), train_on="assistant")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHATML.replace("CONTENT", "message.content | upper"), "no stop token after the answer"),
        (CHATML.replace("CONTENT", "message.content").replace("<|im_end|>", ""), "no stop token after"),
        ("{{ raise_exception('closed') }}", "refuses a question and an answer: closed"),
        (
            CHATML.split("{% if add")[0].replace("CONTENT", "message.content"),
            "does not go on from the prompt",
        ),
        (CHATML.replace("CONTENT", "message.content | replace('\n', ' | ')"), "cannot be proved"),
        (
            CHATML.replace("assistant\n", "assistant\n<think>").replace("CONTENT", "message.content"),
            "go on from",
        ),
        (
            "{% for message in messages %}{% if message.role == 'assistant' %}A: {% generation %}"
            "{{ message.content }}{% endgeneration %}<|im_end|>"
            "{% else %}{{ message.content }}\n{% endif %}{% endfor %}",
            "cannot be proved: no stop token after an assistant turn",
        ),
        (
            "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}A: "
            "{{ message.content }}<|im_end|>{% endgeneration %}"
            "{% else %}{{ message.content }}\n{% endif %}{% endfor %}",
            "cannot be proved: assistant content is not what {% generation %} encloses",
        ),
        (
            "{% for message in messages %}{{ message.role }}:{% generation %}{{ message.content }}<|im_end|>"
            "{% endgeneration %}{% endfor %}",
            "generation spans do not match the assistant messages",
        ),
    ],
)
def test_templates_that_are_refused_at_start(
    shared_data: Path, tmp_path: Path, template: str, message: str
) -> None:
    with pytest.raises(TokenizerError) as caught:
        load_with(shared_data, tmp_path, template)
    assert message in str(caught.value)
    assert "made.jinja" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_template_refuses_one_conversation(shared_data: Path) -> None:
    with pytest.raises(Reject) as caught:
        load_pair(shared_data, "llama2").encode(
            chat(("user", "Q"), ("user", "Q"), ("assistant", "A")), train_on="all"
        )
    assert caught.value.reason == "template refused the conversation"
    assert "must alternate" in caught.value.detail


def test_a_joined_token_is_rejected(shared_data: Path, tmp_path: Path) -> None:
    text = "{% for message in messages %}{{ message.role }}={{ message.content }}<|im_end|>{% endfor %}"
    text += "{% if add_generation_prompt %}assistant={% endif %}"
    tokenizer = load_with(shared_data, tmp_path, text)
    with pytest.raises(Reject, match="a token joins prompt and answer"):
        tokenizer.encode(chat(("user", "Q"), ("assistant", "== 3")), train_on="assistant")


def test_lone_surrogates_are_rejected(shared_data: Path) -> None:
    with pytest.raises(Reject, match="text is not valid Unicode"):
        load_pair(shared_data, "olmo").encode(
            chat(("user", "\ud83d"), ("assistant", "A")), train_on="assistant"
        )


def test_a_system_turn_without_a_place(shared_data: Path, tmp_path: Path) -> None:
    text = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer = load_with(shared_data, tmp_path, text + CHATML.replace("CONTENT", "message.content"))
    conversation = chat(("system", "Be kind."), ("user", "Q"), ("assistant", "A"))
    assert tokenizer.render(conversation).startswith("<|im_start|>user\nBe kind.\n\nQ<|im_end|>")
    assert tokenizer.encode(conversation, train_on="assistant").num_system_tokens == 0
    with pytest.raises(Reject, match="template has no system turn"):
        tokenizer.encode(chat(("system", "Be kind."), ("assistant", "A")), train_on="assistant")


def test_qwen3_is_right_or_rejected(shared_data: Path, tmp_path: Path) -> None:
    template = qwen3_template(shared_data, tmp_path)
    folder = shared_data / "tokenizers/olmo-dolma2"
    tokenizer = ChatTokenizer.load(folder, template, eos_token="<|im_end|>", pad_token="<|pad|>")
    document = tokenizer.encode(TWO_TURNS, train_on="assistant")
    assert target_texts(tokenizer, document) == [
        "Light scatters.<|im_end|>",
        "It is 黑.\n\nStars: 😀<|im_end|>",
    ]
    thought = chat(("user", "Q"), ("assistant", "<think>\nHm.\n</think>\n\nA"))
    document = tokenizer.encode(thought, train_on="assistant")
    assert target_texts(tokenizer, document) == ["<think>\nHm.\n</think>\n\nA<|im_end|>"]
    # In an earlier turn the template drops the thought.
    earlier = chat(*((m.role, m.content) for m in thought.messages), ("user", "Q2"), ("assistant", "A2"))
    for train_on in ("assistant", "last_assistant"):
        document = tokenizer.encode(earlier, train_on=train_on)  # type: ignore[arg-type]
        assert target_texts(tokenizer, document) == ["A2<|im_end|>"]
        assert document.num_rewritten == (train_on == "assistant")
    for conversation in real_conversations(shared_data)[::5]:
        document = tokenizer.encode(conversation, train_on="last_assistant")
        (text,) = target_texts(tokenizer, document)
        *_, last = (message for message in conversation.messages if message.role == "assistant")
        if not last.tool_calls:
            assert squash(text) == squash(last.content) + "<|im_end|>"


def test_native_tool_calls(shared_data: Path, tmp_path: Path) -> None:
    template = qwen3_template(shared_data, tmp_path)
    tokenizer = ChatTokenizer.load(shared_data / "tokenizers/olmo-dolma2", template, eos_token="<|im_end|>")
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    messages = (
        Message("user", "1 + 2?"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "3 <|im_end|>", name="add"),
        Message("assistant", "It is 3."),
    )
    tool = {"type": "function", "function": {"name": "add", "description": "Adds."}}
    conversation = Conversation(messages=messages, family="multi_turn", tools=(tool,))
    document = tokenizer.encode(conversation, train_on="assistant")
    called, answered = target_texts(tokenizer, document)
    assert called == '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call><|im_end|>'
    assert answered == "It is 3.<|im_end|>"
    assert document.num_escaped == 1
    assert "<tools>\n{" in tokenizer.decode(document.ids[: document.num_system_tokens])


def test_tools_as_plain_text(shared_data: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    messages = (
        Message("user", "1 + 2?"),
        Message("assistant", "Let me see.", tool_calls=(call,)),
        Message("tool", "3", name="add"),
        Message("assistant", "It is 3."),
    )
    conversation = Conversation(messages=messages, family="multi_turn", tools=({"name": "add"},))
    for name in ("llama2", "mpt", "olmo"):
        tokenizer = load_pair(shared_data, name)
        document = tokenizer.encode(conversation, train_on="assistant")
        called, answered = (text.strip() for text in target_texts(tokenizer, document))
        assert called.startswith('Let me see.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n')
        assert answered.startswith("It is 3.")
        assert '<tools>\n{"name": "add"}\n</tools>' in tokenizer.render(conversation)
        assert "<tool_response>\n3\n</tool_response>" in tokenizer.render(conversation)


def test_prompt_pieces_and_decode(shared_data: Path) -> None:
    for name in PAIRS:
        tokenizer = load_pair(shared_data, name)
        prompt = tokenizer.render_prompt(TWO_TURNS.messages[:4])
        assert tokenizer.render(TWO_TURNS).startswith(prompt)
        document = tokenizer.encode(TWO_TURNS, train_on="assistant")
        pieces = tokenizer.pieces(document.ids)
        assert len(pieces) == len(document.ids)
        assert "".join(pieces) == tokenizer.decode(document.ids)
        assert squash("".join(pieces)) == squash(tokenizer.render(TWO_TURNS))
        assert tokenizer.vocab_size > max(document.ids)


def test_fingerprint_is_content(shared_data: Path, tmp_path: Path) -> None:
    tokenizer = load_pair(shared_data, "olmo")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (moved / "tokenizer.json").write_bytes(
        (shared_data / "tokenizers/olmo-dolma2/tokenizer.json").read_bytes()
    )
    same = ChatTokenizer.load(moved, "chatml", eos_token="<|endoftext|>", pad_token="<|pad|>")
    assert same.fingerprint == tokenizer.fingerprint
    others = [
        ChatTokenizer.load(moved, "zephyr", eos_token="<|endoftext|>", pad_token="<|pad|>"),
        ChatTokenizer.load(moved, "chatml", eos_token="<|im_end|>", pad_token="<|pad|>"),
    ]
    assert len({tokenizer.fingerprint, *(other.fingerprint for other in others)}) == 3
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.fingerprint == tokenizer.fingerprint
    assert again.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
