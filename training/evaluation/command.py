"""`shardtune eval`: questions of some splits, a model's answers, their scores, and what is written of them."""

import gc
import hashlib
import importlib.metadata
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from data_tools.chat import ChatTokenizer
from data_tools.conversation import Conversation
from data_tools.errors import Reject, RunError
from data_tools.fingerprints import fingerprint
from data_tools.shards import Shards, open_shards
from training.base_model import base_fingerprint
from training.evaluation.answers import Answerer, Ids, answer_prompts, answer_with_transformers
from training.evaluation.board import write_tensorboard
from training.evaluation.forced import Forced, force_documents
from training.evaluation.page import write_page
from training.evaluation.questions import Question, closed_answers, last_answer, read_questions
from training.evaluation.recover import ConversationReader
from training.evaluation.results import (
    COLUMNS,
    Outcome,
    Results,
    group_outcomes,
    make_outcomes,
    write_results,
    write_scored,
)
from training.evaluation.vllm_engine import PROMPTS_AT_A_TIME, VllmAnswerer, import_vllm
from training.generation import Sampling
from training.model_folder import ModelFolder, Precision, base_folder, load_model_folder

OF_SHARDS = "shards"  # --chat-template: that of the shard folder
Engine = Literal["transformers", "vllm"]
BRIEF = (
    "loss",
    "perplexity",
    "token_accuracy",
    "exact_match",
    "rougeL",
    "bleu",
    "chrf",
)  # fits into 100 columns


@dataclass(frozen=True, slots=True)
class Choices:
    """What the command line says. limit: so many documents, those with the lowest hash; None: all of them."""

    splits: tuple[str, ...]
    output: Path
    sampling: Sampling
    engine: Engine = "transformers"
    batch_size: int = 8
    limit: int | None = None
    chat_template: str | None = None
    device: str | None = None
    precision: Precision = "auto"
    tensorboard: Path | None = None
    step: int | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question in the tokens of the model that is asked. prompt_length as in `Question`."""

    ids: NDArray[np.int32]
    targets: NDArray[np.bool_]
    prompt_length: int | None


def evaluate(model: Path, shards_folder: Path, choices: Choices, console: Console) -> Results:
    """Evaluate a model folder on some splits, write everything into `choices.output`, and return the results.

    Killed and started again it goes on where it was. Raises RunError, ShardError and TokenizerError.
    """
    if (choices.output / "config.yaml").exists():
        raise RunError(
            f"--output: {choices.output}: is a run folder; expected a folder for results; do: name one in it, such as "
            f"{choices.output / 'evaluation' / 'mine'}"
        )
    shards = open_shards(shards_folder)
    own = ChatTokenizer.load(shards.tokenizer_folder, None)
    questions = _some(read_questions(shards, choices.splits, own), choices.limit)
    vllm = import_vllm(model, base_folder(model)) if choices.engine == "vllm" else None
    folder = _load(model, own, choices)
    reader = ConversationReader(own)
    asked = [_ask(question, folder.tokenizer, own, reader) for question in questions]
    prompts = {
        question.number: one.ids[: one.prompt_length]
        for question, one in zip(questions, asked, strict=True)
        if one is not None and one.prompt_length is not None and question.references
    }
    identity = _identity(folder, shards, choices)
    choices.output.mkdir(parents=True, exist_ok=True)
    with Progress(console=console) as progress:
        forced = _force(folder, asked, choices, progress)
        if vllm is None:
            answerer, at_a_time = answer_with_transformers(folder, choices.sampling), choices.batch_size
        else:
            answerer, at_a_time = _make_room_for_vllm(vllm, folder, prompts, choices), PROMPTS_AT_A_TIME
        bar = progress.add_task("answers", total=len(prompts))
        answers = answer_prompts(
            answerer,
            prompts,
            choices.output / "answers.jsonl",
            identity=identity,
            batch_size=at_a_time,
            max_positions=folder.max_positions,
            advance=lambda count: progress.advance(bar, count),
        )
    outcomes = make_outcomes(questions, forced, answers)
    groups = group_outcomes(outcomes, closed_answers(questions), seed=choices.sampling.seed)
    results = Results(_about(folder, shards, choices, outcomes), groups)
    write_scored(outcomes, own, choices.output)
    write_page(results, outcomes, own, choices.output / "report.html")
    write_results(results, choices.output)
    if choices.tensorboard is not None:
        write_tensorboard(choices.output, choices.tensorboard, step=choices.step or 0)
    return results


def _force(
    folder: ModelFolder, asked: Sequence[_Asked | None], choices: Choices, progress: Progress
) -> list[Forced | None]:
    """Return the loss of the right answers, for each of `asked`."""
    bar = progress.add_task("loss of the right answers", total=len(asked))
    known = [(one.ids, one.targets) for one in asked if one is not None]
    losses = force_documents(
        folder, known, batch_size=choices.batch_size, advance=lambda count: progress.advance(bar, count)
    )
    found = iter(losses)
    return [None if one is None else next(found) for one in asked]


def _make_room_for_vllm(
    vllm: Any, folder: ModelFolder, prompts: Mapping[int, Ids], choices: Choices
) -> Answerer:
    """Return vLLM, and leave the GPU to it: the weights that the loss was measured with are let go."""
    longest = max((len(ids) for ids in prompts.values()), default=0) + choices.sampling.max_new_tokens
    dtype = folder.model.dtype
    folder.model.to("meta")
    gc.collect()
    torch.cuda.empty_cache()
    return VllmAnswerer(
        vllm,
        folder.path,
        folder.tokenizer,
        choices.sampling,
        dtype=dtype,
        max_length=min(folder.max_positions, longest),
    )


def _some(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """Return `limit` of the questions, drawn by a hash of their tokens: the same ones each time."""
    if limit is None or limit >= len(questions):
        return list(questions)
    if limit < 1:
        raise RunError(f"--limit: got {limit}; expected 1 or more")
    drawn = sorted(
        questions, key=lambda question: hashlib.blake2b(question.ids.tobytes(), digest_size=8).digest()
    )
    return sorted(drawn[:limit], key=lambda question: question.number)


def _load(model: Path, own: ChatTokenizer, choices: Choices) -> ModelFolder:
    """Load the model with the chat template that was chosen; `own` is the tokenizer of the shards."""
    with tempfile.TemporaryDirectory() as scratch:
        template = choices.chat_template
        if template == OF_SHARDS:
            template = str(Path(scratch) / "template.jinja")
            Path(template).write_text(own.template_text, encoding="utf-8")
        return load_model_folder(
            model, chat_template=template, device=choices.device, precision=choices.precision
        )


def _ask(
    question: Question, tokenizer: ChatTokenizer, own: ChatTokenizer, reader: ConversationReader
) -> _Asked | None:
    """Return a question in the tokens of `tokenizer`; None if its conversation cannot be told from its own tokens."""
    if tokenizer.fingerprint == own.fingerprint:
        return _Asked(question.ids, question.targets, question.prompt_length)
    messages = reader.read(question.ids)
    if messages is None:
        return None
    try:
        document = tokenizer.encode(Conversation(messages, "multi_turn"), train_on="assistant")
    except Reject:
        return None
    whole = question.prompt_length is not None
    start = last_answer(document.ids, document.targets, tokenizer.stop_token_ids) if whole else None
    return _Asked(document.ids, document.targets, start)


def _identity(folder: ModelFolder, shards: Shards, choices: Choices) -> str:
    """Return a fingerprint of all that answers depend on."""
    weights = [folder.path] if folder.base == folder.path else [folder.path, folder.base]
    drawn = asdict(choices.sampling)
    return fingerprint(
        {
            "weights": [base_fingerprint(place) for place in weights],
            "tokenizer": folder.tokenizer.fingerprint,
            "shards": shards.fingerprint,
            "split": choices.splits,
            "engine": _engine(choices),
            "limit": choices.limit,
            "sampling": drawn,
            "batch_size": choices.batch_size,
            "dtype": str(folder.model.dtype),
        }
    )


def _about(
    folder: ModelFolder, shards: Shards, choices: Choices, outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """Return what was measured, and what was left out of it and why."""
    about: dict[str, Any] = {
        "model": str(folder.path),
        "shards": str(shards.folder),
        "split": "+".join(choices.splits),
        "engine": _engine(choices),
        "documents": len(outcomes),
        "answers": sum(outcome.answer is not None for outcome in outcomes),
        "without a whole answer to compare with": sum(
            outcome.question.prompt_length is None for outcome in outcomes
        ),
        "not measured: longer than the model, or not to be told from the shards' tokens": sum(
            outcome.forced is None for outcome in outcomes
        ),
        "drawn": "greedy" if choices.sampling.temperature == 0 else asdict(choices.sampling),
        "max_new_tokens": choices.sampling.max_new_tokens,
        "shards_fingerprint": shards.fingerprint,
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "transformers", "sacrebleu")
        },
    }
    return about


def _engine(choices: Choices) -> str:
    """Return what makes the answers; of vLLM also which one, since its kernels change what they round."""
    return f"vllm {importlib.metadata.version('vllm')}" if choices.engine == "vllm" else choices.engine


def print_results(results: Results, output: Path, console: Console) -> None:
    """Print the scores of all documents, splits, families and sources, and where the rest lies."""
    groups = [group for group in results.groups if group.kind in ("all", "split", "family", "source")]
    shown = [
        column
        for column in COLUMNS
        if column[0] in BRIEF and any(column[0] in group.scores for group in groups)
    ]
    table = Table(title=f"{results.about['split']} of {results.about['shards']}", title_justify="left")
    for number, cell in enumerate(["", "", "answers", *(title for _, title, _ in shown)]):
        table.add_column(cell, justify="right" if number > 1 else "left", overflow="fold")
    for group in groups:
        cells = [
            form.format(group.scores[key].value) if key in group.scores else "–" for key, _, form in shown
        ]
        name = ["", "all"] if group.kind == "all" else [group.kind, group.name]
        table.add_row(*name, f"{group.answers:,}", *cells)
    console.print(table)
    about = results.about
    console.print(
        f"{about['answers']:,} of {about['documents']:,} documents have an answer; confidence intervals, tasks and "
        f"every answer: {output / 'report.html'}, {output / 'results.md'}"
    )
