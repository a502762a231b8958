"""A rank's activations: of a row of tokens in one layer, in all of them, and of the logits.

Counted from the operations of transformers' Llama, Mistral, Qwen2 and Qwen3 layers and of our attention and loss, by
what autograd keeps of each; docs/plan.md has the table.
"""

from dataclasses import dataclass

from training.optim_settings import POSITIONS_AT_A_TIME
from training.plan.job import NOTHING, Job, Memory
from training.tuning.settings import PromptTuning


@dataclass(frozen=True, slots=True)
class Activations:
    """kept: of all layers from forward to backward. layer: of one layer in its backward, beyond what is kept.

    head: around the logits of one chunk of targets. offloaded: bytes that wait on the host instead.
    """

    kept: Memory
    layer: Memory
    head: Memory
    offloaded: int


def activations(job: Job) -> Activations:
    """Return the activations of the largest micro-batch."""
    shape, config, e = job.shape, job.config, job.element
    boundary = _rows(job, e, shape.hidden)
    saved = _saved_in_layer(job)
    # The backward of the MLP's product holds the gradients of its two factors and of the product at once, while that
    # product's own value is gone: two rows of `intermediate` beyond what was saved.
    passing = _rows(job, e, *2 * [shape.intermediate], *2 * [shape.hidden])
    mode = config.activation_checkpointing
    if mode is True:
        kept_in_layer, again = boundary, saved
    elif mode == "selective":
        # Results of the products and of attention; the layer's other activations are computed again.
        attended = _documents(job, shape.query)
        widths = [shape.query, *2 * [shape.key], *2 * [shape.hidden], *2 * [shape.intermediate]]
        kept_in_layer = boundary + _rows(job, e, *widths) + attended
        again = saved - attended - _rows(job, e, *2 * [shape.intermediate])
        if _attention_element(job) == e:  # else a copy of the values is made again
            again -= _rows(job, e, shape.key)
    else:
        kept_in_layer, again = boundary + saved, NOTHING
    offloaded = boundary * (shape.layers if config.offload_activations else 0)
    kept = kept_in_layer * shape.layers
    return Activations(
        kept=kept - offloaded + _norm(job) + boundary,
        layer=again + passing,
        head=_head(job),
        offloaded=offloaded.bytes,
    )


def row_tokens(job: Job) -> int:
    """Return the tokens of a micro-batch's row on one rank."""
    tokens = job.row_tokens
    if isinstance(job.config.tuning, PromptTuning):
        tokens += job.config.tuning.num_virtual_tokens * job.row_documents
    return -(-tokens // job.config.batch.sequence_parallel)


def _rows(job: Job, element: int, *widths: int) -> Memory:
    """Return tensors of the row's tokens, each so many elements wide."""
    return sum((job.block(row_tokens(job) * width * element) for width in widths), NOTHING)


def _documents(job: Job, *widths: int) -> Memory:
    """Return what attention reads and gives, in tensors of the row; or, where it copies them, in one a document."""
    tokens, size = row_tokens(job), _attention_element(job)
    whole = job.on_gpu or size == job.element
    pieces = 1 if whole else max(1, job.row_documents)
    return sum((job.block(tokens * width * size // pieces) * pieces for width in widths), NOTHING)


def _norm(job: Job) -> Memory:
    """Return what an RMS norm keeps: a float32 copy, the normalised value, the result."""
    width, e = job.shape.hidden, job.element
    copy = _rows(job, 4, width) if e == 2 else NOTHING
    return copy + _rows(job, e, width, width)


def _saved_in_layer(job: Job) -> Memory:
    """Return what autograd keeps in one layer, without the layer's input."""
    shape, e = job.shape, job.element
    attention = _documents(job, *2 * [shape.query], *2 * [shape.key]) + _rows(job, 4, shape.heads)
    if not job.on_gpu:
        attention += _rows(
            job, e, shape.query
        )  # documents are attended to one by one, then laid side by side
    if shape.model_type == "qwen3":
        for width in (shape.query, shape.key):
            attention += (
                _rows(job, e, *2 * [width]) if e == 4 else _rows(job, e, width) + _rows(job, 4, width)
            )
    # Between attention and MLP; in 16 bits the second norm's float32 copy stands for it.
    middle = NOTHING if e == 2 else _rows(job, e, shape.hidden)
    return _norm(job) * 2 + middle + attention + _rows(job, e, *4 * [shape.intermediate])


def _attention_element(job: Job) -> int:
    """Return the bytes of an element of what attention reads and gives."""
    return job.element if job.on_gpu else 4


def _head(job: Job) -> Memory:
    """Return a chunk's logits and all targets' hidden states, with their gradients."""
    targets = -(-job.row_targets // job.config.batch.sequence_parallel)
    # The logits and their logarithms, which become the gradient in place.
    logits = job.block(min(targets, POSITIONS_AT_A_TIME) * job.shape.vocab * 4)
    return logits * 2 + job.block(targets * job.shape.hidden * job.element) * 2
