"""OpenAssistant's flat export: one message a row, the rows of a tree one behind the other.

The rows are put together before the adapter sees them (`group_rows`), so a file of it is never cut into parts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data_tools.errors import Reject
from data_tools.formats.fields import take_object, take_optional_text, take_text
from data_tools.formats.multi_turn.oasst import (
    MESSAGE_FIELDS,
    OASST_ROLES,
    PATH_OPTIONS,
    PATH_QUIRKS,
    Node,
    convert_tree,
)
from data_tools.formats.registry import Converted, RowGroup, register
from data_tools.sources import BadRow, Row


@dataclass(frozen=True, slots=True)
class _Flat:
    """One row of the export whose keys can be followed; `place` is its number among the rows of its tree."""

    node: Node
    place: int
    own_id: str
    parent_id: str


@dataclass(frozen=True, slots=True)
class _Tree:
    """A tree as in the trees' export, the place of its first message, and how many messages it has."""

    place: int
    value: Node
    num_messages: int


def group_messages(rows: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
    """Yield one row for each run of rows of the same tree: the tree, with the place of its first message.

    What belongs to no tree (a message whose parent is not among the rows of its tree, a damaged one) is a
    BadRow with its own place. Holds one tree at a time.
    """
    run: list[Row] = []
    tree_id: Any = None
    for row in rows:
        if isinstance(row, BadRow) or not isinstance(row.value, dict):
            yield row
            continue
        own = row.value.get("message_tree_id")
        if run and own != tree_id:
            yield from _finish(run)
            run = []
        tree_id = own
        run.append(row)
    if run:
        yield from _finish(run)


def _finish(run: Sequence[Row]) -> Iterator[Row | BadRow]:
    trees, problems = assemble([row.value for row in run])
    for tree in trees:
        first = run[tree.place]
        yield RowGroup(tree.value, first.origin, first.file, tree.num_messages)
    for place, reject in problems:
        yield BadRow(run[place].origin, reject.reason, reject.detail)


def assemble(values: Sequence[Any]) -> tuple[list[_Tree], list[tuple[int, Reject]]]:
    """Make trees of the rows of one message_tree_id; return them, and (place of a row, why it is in no tree)."""
    flats: dict[str, _Flat] = {}
    problems: list[tuple[int, Reject]] = []
    for place, value in enumerate(values):
        try:
            flat = _read_flat(value, place)
        except Reject as reject:
            problems.append((place, reject))
            continue
        if flat.own_id in flats:
            problems.append((place, Reject("message is there twice", _name(flat))))
        else:
            flats[flat.own_id] = flat
    below: dict[str, list[_Flat]] = {}
    for flat in flats.values():
        below.setdefault(flat.parent_id, []).append(flat)

    trees: list[_Tree] = []
    reached: set[str] = set()
    for flat in flats.values():
        if flat.parent_id in flats:
            continue
        node, hung = _hang(flat, below)
        reached |= {each.own_id for each in hung}
        if not flat.parent_id:
            value = {key: flat.node.get(key) for key in ("message_tree_id", "tree_state")}
            trees.append(_Tree(flat.place, {**value, "prompt": node}, len(hung)))
            continue
        problems.append((flat.place, Reject("orphan: its parent message is not there", _name(flat))))
        problems += [(each.place, Reject("message below an orphan", _name(each))) for each in hung[1:]]
    circle = [flat for own_id, flat in flats.items() if own_id not in reached]
    problems += [(flat.place, Reject("message answers itself", _name(flat))) for flat in circle]
    return trees, sorted(problems, key=lambda problem: problem[0])


def _read_flat(value: Any, place: int) -> _Flat:
    node = take_object(value)
    take_text(node, "message_tree_id")
    return _Flat(node, place, take_text(node, "message_id"), take_optional_text(node, "parent_id"))


def _hang(root: _Flat, below: dict[str, list[_Flat]]) -> tuple[Node, list[_Flat]]:
    """Return a message with its replies, as the trees' export has it, and all of them, itself first."""
    top: dict[str, Any] = {**root.node, "replies": []}
    hung, stack = [root], [(root.own_id, top)]
    while stack:
        own_id, node = stack.pop()
        for reply in below.get(own_id, ()):
            child: dict[str, Any] = {**reply.node, "replies": []}
            node["replies"].append(child)
            hung.append(reply)
            stack.append((reply.own_id, child))
    return top, hung


def _name(flat: _Flat) -> str:
    return f"message {flat.own_id[:40]}"


def _is_message(row: Any) -> bool:
    if not isinstance(row, dict) or "replies" in row:
        return False
    return {"message_id", "parent_id", "text"} <= row.keys() and row.get("role") in list(OASST_ROLES)


@register(
    "oasst_messages",
    "multi_turn",
    license="Apache-2.0",
    summary="OpenAssistant messages, one a row: {message_id, parent_id, message_tree_id, text, role, rank, …}",
    fields=(
        ("message_id", "the message"),
        ("parent_id", "the message that it answers; null of a tree's first"),
        ("message_tree_id", "the tree; its paths stay in one split"),
        ("tree_state", "of the tree's first message: ready_for_export, null or absent"),
        *MESSAGE_FIELDS,
        ("lang", "optional: the first message's is the conversation's language"),
    ),
    quirks=(
        "The rows of a tree must stand one behind the other, as in the published files; its conversations have"
        " the place of its first message. Files are not cut into parts.",
        "A message whose parent is not among the rows of its tree (an orphan: the parent is in another"
        " language, or the tree is torn apart) is rejected at its own place, and so is each message below it;"
        " so is a message that is there twice or has no id.",
        *PATH_QUIRKS,
    ),
    example=[
        {
            "message_id": "tree-1",
            "parent_id": None,
            "message_tree_id": "tree-1",
            "tree_state": "ready_for_export",
            "role": "prompter",
            "lang": "en",
            "text": "Why is the sky blue?",
            "review_result": True,
        },
        {
            "message_id": "m-2",
            "parent_id": "tree-1",
            "message_tree_id": "tree-1",
            "role": "assistant",
            "text": "It just is.",
            "rank": 1,
            "review_result": True,
        },
        {
            "message_id": "m-3",
            "parent_id": "tree-1",
            "message_tree_id": "tree-1",
            "role": "assistant",
            "text": "Air scatters blue light more than red.",
            "rank": 0,
            "review_result": True,
        },
    ],
    options=PATH_OPTIONS,
    recognise=_is_message,
    group_rows=group_messages,
)
def convert_oasst_messages(
    row: Any, name: str, *, paths: str = "best", top_k: int | None = None, synthetic: bool = True
) -> Converted:
    """Yield the best path of a tree, or all of them: of a grouped row, or of a list of a tree's rows."""
    if isinstance(row, dict) and "prompt" in row:
        yield from convert_tree(row, paths=paths, top_k=top_k, synthetic=synthetic)
        return
    trees, problems = assemble(row if isinstance(row, list) else [row])
    for tree in trees:
        yield from convert_tree(tree.value, paths=paths, top_k=top_k, synthetic=synthetic)
    for _, reject in problems:
        yield reject
