"""The bytes of a rank's activations: of a row of tokens in one layer, in all of them, and of the logits.

Counted from the operations of transformers' Llama, Mistral, Qwen2 and Qwen3 layers and of our attention and loss, by
what autograd keeps of each; docs/plan.md has the table.
"""

from dataclasses import dataclass

from training.optim_settings import POSITIONS_AT_A_TIME
from training.plan.job import Job
from training.tuning.settings import PromptTuning


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes. kept: of all layers from forward to backward. layer: of one layer in its backward, beyond what is kept.

    head: around the logits of one chunk of targets. offloaded: what waits on the host instead.
    """

    kept: int
    layer: int
    head: int
    offloaded: int


def activations(job: Job) -> Activations:
    """Return the activations of the largest micro-batch."""
    shape, config, e = job.shape, job.config, job.element
    tokens = job.row_tokens
    if isinstance(config.tuning, PromptTuning):
        tokens += config.tuning.num_virtual_tokens * job.row_documents
    tokens = -(-tokens // config.batch.sequence_parallel)
    boundary = shape.hidden * e
    saved = _saved_in_layer(job)
    # The backward of the MLP's product holds the gradients of its two factors and of the product at once, while that
    # product's own value is gone: two rows of `intermediate` beyond what was saved.
    passing = 2 * shape.intermediate * e + 2 * boundary
    mode = config.activation_checkpointing
    if mode is True:
        kept_in_layer, again = boundary, saved
    elif mode == "selective":
        # Results of the products and of attention; the layer's other activations are computed again.
        products = shape.query + 2 * shape.key + 2 * shape.hidden + 2 * shape.intermediate
        attended = _attention_element(job)
        kept_in_layer = boundary + products * e + shape.query * attended
        again = saved - shape.query * attended - 2 * shape.intermediate * e
        if attended == e:  # else a copy of the values is made again
            again -= shape.key * e
    else:
        kept_in_layer, again = boundary + saved, 0
    offloaded = boundary * tokens * shape.layers if config.offload_activations else 0
    kept = kept_in_layer * tokens * shape.layers
    last_norm = _norm(job) + boundary
    return Activations(
        kept=kept - offloaded + last_norm * tokens,
        layer=(again + passing) * tokens,
        head=_head(job),
        offloaded=offloaded,
    )


def _norm(job: Job) -> int:
    """Return the bytes of a token that an RMS norm keeps: a float32 copy, the normalised value, the result."""
    copy = 4 if job.element == 2 else 0
    return job.shape.hidden * (copy + 2 * job.element)


def _saved_in_layer(job: Job) -> int:
    """Return the bytes of a token that autograd keeps in one layer, without the layer's input."""
    shape, e = job.shape, job.element
    # Between attention and MLP; in 16 bits the second norm's float32 copy stands for it.
    middle = 0 if e == 2 else shape.hidden * e
    attention = (2 * shape.query + 2 * shape.key) * _attention_element(job) + 4 * shape.heads
    if not job.on_gpu:
        attention += shape.query * e  # documents are attended to one by one, then laid side by side
    if shape.model_type == "qwen3":
        attention += (shape.query + shape.key) * (2 * e if e == 4 else 4 + e)
    return 2 * _norm(job) + middle + attention + 4 * shape.intermediate * e


def _attention_element(job: Job) -> int:
    """Return the bytes of an element of what attention reads and gives."""
    return job.element if job.on_gpu else 4


def _head(job: Job) -> int:
    """Return the bytes of a chunk's logits and of all targets' hidden states, with their gradients."""
    targets = -(-job.row_targets // job.config.batch.sequence_parallel)
    # The logits and their logarithms, which become the gradient in place.
    logits = 2 * min(targets, POSITIONS_AT_A_TIME) * job.shape.vocab * 4
    return logits + 2 * targets * job.shape.hidden * job.element
