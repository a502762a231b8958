"""OpenAssistant: trees of replies, and single threads of them.

How a tree is walked is here; how the rows of the flat export become trees is in oasst_messages.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from data_tools.conversation import Conversation, Message, Role
from data_tools.errors import Reject
from data_tools.formats.fields import (
    take_list,
    take_object,
    take_optional_text,
    take_text,
    take_weight,
    wrong_type,
)
from data_tools.formats.registry import Converted, Option, register

OASST_ROLES: dict[str, Role] = {"prompter": "user", "assistant": "assistant"}

Node = Mapping[str, Any]

PATH_OPTIONS = (
    Option(
        "paths",
        str,
        "best",
        "best = one conversation of each tree, all = one for each way through it.",
        choices=("best", "all"),
    ),
    Option(
        "top_k",
        int,
        None,
        "Take only replies of the assistant's with a rank below this; those without a rank are left out.",
        least=1,
    ),
    Option("synthetic", bool, True, "Whether messages that a model wrote are taken."),
)

PATH_QUIRKS = (
    "One conversation for each tree: at each message the reply with the lowest rank; those without a rank"
    " come last, of equals the first one is taken. With `paths: all` one for each way to a last reply, by"
    " rank; beginnings that ways share are repeated in each.",
    "A message is left out, with all below it, if it is deleted, failed review (`review_result` false), was"
    " not reviewed (null or absent), or is empty. In a tree where no message has a `review_result` nothing"
    " was reviewed (the synthetic export), and that is no reason.",
    "A reply of the same role as the message above it is left out.",
    "A way that ends on a prompter's message loses it.",
    "A tree whose prompt is left out, or that has no usable reply, is rejected.",
    "A tree_state other than ready_for_export is rejected; trees without one (synthetic export) are taken.",
    "Synthetic messages are taken: OASST1 has them in ready trees.",
    "labels, emojis, detoxify, user_id and other keys are ignored; white space around texts is removed.",
)

MESSAGE_FIELDS = (
    ("role", "of a message: prompter | assistant"),
    ("text", "of a message"),
    ("rank", "of a message, optional: 0 is the best of its siblings"),
    ("deleted, review_result", "of a message, optional: true and false mean that it is not to be used"),
    ("synthetic", "of a message, optional: true where a model wrote it"),
    ("train, weight", "of a message, optional, of the assistant: whether it is a target"),
)


@dataclass(frozen=True, slots=True)
class _Rules:
    """Which messages of one tree are taken."""

    top_k: int | None
    synthetic: bool
    needs_review: bool


def _is_tree(row: Any) -> bool:
    if not isinstance(row, dict):
        return False
    prompt = row.get("prompt")
    if "thread_id" in row:
        messages = row.get("messages")
        prompt = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(prompt, dict) and {"text", "role"} <= prompt.keys()


@register(
    "oasst_tree",
    "multi_turn",
    license="Apache-2.0",
    summary="OpenAssistant trees: {message_tree_id, tree_state, prompt: {text, role, replies: […]}}",
    fields=(
        ("message_tree_id", "the tree; its paths stay in one split. Absent: the prompt's message_id"),
        ("tree_state", "ready_for_export, null or absent"),
        ("prompt", "the first message; messages hang below it in `replies`"),
        *MESSAGE_FIELDS,
        ("replies", "of a message, optional: list of messages"),
        ("lang", "of a message, optional: the prompt's is the conversation's language"),
        (
            "thread_id, messages",
            "of a thread, instead of `prompt`: messages each of which answers the one before",
        ),
    ),
    quirks=(
        *PATH_QUIRKS,
        "Keys that are absent and keys that are null are the same.",
        "A thread (`thread_id`) is a tree without branches.",
        "Rows of the message export (flat, `parent_id`) are refused: they are the format `oasst_messages`.",
    ),
    example={
        "message_tree_id": "tree-1",
        "tree_state": "ready_for_export",
        "prompt": {
            "message_id": "tree-1",
            "role": "prompter",
            "lang": "en",
            "text": "Why is the sky blue?",
            "review_result": True,
            "replies": [
                {"role": "assistant", "text": "It just is.", "rank": 1, "review_result": True, "replies": []},
                {
                    "role": "assistant",
                    "text": "Air scatters blue light more than red.",
                    "rank": 0,
                    "review_result": True,
                    "replies": [{"role": "prompter", "text": "I see!", "review_result": True, "replies": []}],
                },
            ],
        },
    },
    version=2,
    options=PATH_OPTIONS,
    recognise=_is_tree,
)
def convert_oasst_tree(
    row: Any, name: str, *, paths: str = "best", top_k: int | None = None, synthetic: bool = True
) -> Converted:
    """Yield the best path of the tree, or all of them."""
    tree = take_object(row)
    if "thread_id" in tree and "prompt" not in tree:
        tree = _hang_thread(tree)
    if "prompt" not in tree:
        hint = "; do use the format oasst_messages" if "parent_id" in tree else ""
        keys = ", ".join(str(key)[:40] for key in sorted(tree)[:6])
        raise Reject("missing field 'prompt'", f"the row has {keys}; expected a tree{hint}")
    yield from convert_tree(tree, paths=paths, top_k=top_k, synthetic=synthetic)


def convert_tree(tree: Node, *, paths: str, top_k: int | None, synthetic: bool) -> Iterator[Conversation]:
    """Yield the best path of a tree, or all of them. Raises Reject where there is none."""
    state = take_optional_text(tree, "tree_state")
    if state not in ("", "ready_for_export"):
        raise Reject("filter: tree_state is not ready_for_export", f"got {state[:40]!r}")
    prompt = take_object(tree["prompt"], "prompt")
    group = take_optional_text(tree, "message_tree_id") or take_text(prompt, "message_id", "message_tree_id")
    if _read_role(prompt, "prompt") != "user":
        raise Reject("the tree's first message is not a prompter's")
    rules = _Rules(top_k, synthetic, needs_review=_has_reviews(prompt))
    if problem := _why_unusable(prompt, rules, "prompt"):
        raise Reject(f"prompt {problem}")
    language = take_optional_text(prompt, "lang") or None
    found = False
    for path in _walk(prompt, rules, only_best=paths == "best"):
        found = True
        messages = tuple(_read_message(node) for node in path)
        yield Conversation(messages, "multi_turn", language=language, group=group)
    if not found:
        raise Reject("no usable reply")


def _hang_thread(thread: Node) -> Node:
    """Return the tree that a thread is: each message the only reply to the one before."""
    below: list[Node] = []
    messages = take_list(thread, "messages")
    if not messages:
        raise Reject("no messages")
    for index, value in reversed(list(enumerate(messages))):
        below = [{**take_object(value, "messages[]", where=f"messages[{index}]"), "replies": below}]
    return {"message_tree_id": thread["thread_id"], **thread, "prompt": below[0]}


def _walk(prompt: Node, rules: _Rules, *, only_best: bool) -> Iterator[list[Node]]:
    """Yield the ways from the prompt to a last reply of the assistant's, best first."""
    # Not recursive: a chain of replies may be longer than Python's stack.
    stack: list[list[Node]] = [[prompt]]
    while stack:
        path = stack.pop()
        ends_on_answer = _read_role(path[-1], "") == "assistant"
        further = _usable_replies(path[-1], rules)
        if only_best:
            further = further[:1]
        if ends_on_answer:
            # A question that nobody answered is left out; the others go on from here.
            further = [reply for reply in further if _usable_replies(reply, rules)]
            if not further:
                yield path
        stack += [[*path, reply] for reply in reversed(further)]


def _usable_replies(node: Node, rules: _Rules) -> list[Node]:
    """Return the replies to a message that may be used: the lowest rank first, those without a rank last."""
    if node.get("replies") is None:
        return []
    where = f"below message {str(node.get('message_id', '?'))[:40]}"
    role = _read_role(node, where)
    ranked = []
    for index, value in enumerate(take_list(node, "replies", where=where)):
        reply = take_object(value, "replies[]", where=where)
        rank = reply.get("rank")
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int | float)):
            raise wrong_type("rank", rank, "number", where=where)
        own_role = _read_role(reply, where)
        if _why_unusable(reply, rules, where) or own_role == role:
            continue
        if rules.top_k is not None and own_role == "assistant" and (rank is None or rank >= rules.top_k):
            continue
        ranked.append((rank is None, rank or 0, index, reply))
    return [entry[3] for entry in sorted(ranked, key=lambda entry: entry[:3])]


def _why_unusable(node: Node, rules: _Rules, where: str) -> str:
    """Return why a message is not to be used, or nothing."""
    for key in ("deleted", "review_result", "synthetic"):
        if not isinstance(node.get(key), bool | None):
            raise wrong_type(key, node[key], "boolean", where=where)
    if node.get("deleted"):
        return "is deleted"
    if node.get("review_result") is False:
        return "failed review"
    if rules.needs_review and node.get("review_result") is None:
        return "was not reviewed"
    if node.get("synthetic") and not rules.synthetic:
        return "is synthetic"
    return "" if take_text(node, "text", where=where).strip() else "is empty"


def _has_reviews(prompt: Node) -> bool:
    """Tell whether any message of a tree says whether it was reviewed."""
    stack: list[Any] = [prompt]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            if "review_result" in node:
                return True
            replies = node.get("replies")
            stack += replies if isinstance(replies, list) else []
    return False


def _read_role(node: Node, where: str) -> Role:
    role = take_text(node, "role", where=where)
    if role not in OASST_ROLES:
        raise Reject("unknown value of field 'role'", f"{where}: got {role[:40]!r}")
    return OASST_ROLES[role]


def _read_message(node: Node) -> Message:
    role = _read_role(node, "")
    where = f"message {str(node.get('message_id', '?'))[:40]}"
    train = take_weight(node, role, "weight", where=where)
    return Message(role, node["text"].strip(), train=train)
