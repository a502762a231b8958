"""The moments of a step at which a rank's memory is highest, and what is there at each beside its states.

A step gathers weights for the forward, holds activations, collects gradients in a bucket, sums them up over the ranks,
and updates; these do not all happen at once, so their sum would be too much. The rules (what is released when) are
DeepSpeed 0.19.8's, runtime/zero/partitioned_param_coordinator.py and stage3.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from training.base_model import EMBEDDINGS, HEAD
from training.plan.activations import activations, row_tokens
from training.plan.job import NOTHING, Job, Memory


@dataclass(frozen=True, slots=True)
class Moment:
    """What is on a rank's device at one moment, beside its states."""

    name: str
    buffers: Memory
    activations: Memory = NOTHING
    logits: Memory = NOTHING

    @property
    def memory(self) -> Memory:
        """Return all of it."""
        return self.buffers + self.activations + self.logits


@dataclass(frozen=True, slots=True)
class Bucket:
    """Gradients on their way, in elements. fill: the most in the bucket. largest: of a weight that has no room in it.

    remaining: the share of the trained weights whose backward is still to come when the bucket is first emptied.
    """

    fill: int
    largest: int
    remaining: float


def fill_bucket(job: Job) -> Bucket:
    """Collect the gradients as DeepSpeed does, in the order in which the backward makes them."""
    limit, total = job.zero.reduce_bucket, sum(weight.numel for weight in job.trained)
    now = most = largest = passed = 0
    remaining = 0.0
    for weight in reversed(job.trained):
        if now and now + weight.numel > limit:
            now = 0
            remaining = max(remaining, 1 - passed / total)
        now += weight.numel
        passed += weight.numel
        if now > limit:
            largest = max(largest, weight.numel)
        else:
            most = max(most, now)
    return Bucket(most, largest, remaining)


@dataclass(frozen=True, slots=True)
class Gathered:
    """Whole weights on a rank, in elements, without those that persist.

    total: of the model. live: at the end of the forward. group: the largest that is gathered in one go. returning:
    whether the backward gathers again what the forward had.
    """

    total: int
    live: int
    group: int
    returning: bool


def gather(job: Job) -> Gathered:
    """Return how many whole weights a rank holds at once."""
    sizes = [weight.numel for weight in job.weights if not job.persists(weight)]
    total, largest = sum(sizes), max(sizes, default=0)
    # A weight stays if it is used again within max_reuse elements. From the end of the forward, a weight x elements
    # away comes again after x in the forward, x in the backward, and x in the forward that is computed again.
    times = 3 if job.config.activation_checkpointing else 2
    staying = job.zero.max_reuse // times
    group = min(total, job.zero.prefetch_bucket + largest)
    return Gathered(
        total=total,
        live=total if total <= staying else min(total, staying + group),
        group=group,
        returning=total > staying,
    )


def moments(job: Job) -> Iterator[Moment]:
    """Yield the moments of a step, with what is on the rank's device beside its states."""
    e, shape = job.element, job.shape
    acts, held, bucket = activations(job), gather(job), fill_bucket(job)
    collected, summing = _reduction(job, bucket)
    live, group = _gathered(job, held.live), job.block(held.group * e)
    # DeepSpeed gathers into one buffer and copies each weight out of it; gloo has a buffer of its own, before that.
    arriving = (
        live + group if job.on_gpu else _gathered(job, min(held.live, held.total - held.group)) + group * 2
    )
    table = job.block(shape.vocab * shape.hidden * e)  # of the embeddings, and of the head
    trained = {weight.name for weight in job.trained}
    head = table * ((EMBEDDINGS if shape.tied else HEAD) in trained)
    embeddings = table * (EMBEDDINGS in trained)
    # The head's part of the gradient waits for the embeddings', which comes last.
    waiting = head * shape.tied
    layer = job.block(
        max((weight.numel for weight in job.trained if ".layers." in weight.name), default=0) * e
    )

    # The last group of weights is gathered when the forward has come as far as the weights before it.
    run = 1 - held.group / sum(weight.numel for weight in job.weights)
    yield Moment("gathering weights", arriving + collected, acts.kept * max(0.0, run))
    # DeepSpeed keeps the buffer until the last of its weights is used.
    yield Moment("last layer's forward", live + group + collected, acts.kept)
    # The head's gradient is made in the forward, with the loss.
    yield Moment("loss", live + collected + head, acts.kept, acts.head)
    buffers = (arriving if held.returning else live) + collected + layer + waiting
    yield Moment("backward of a layer", buffers, acts.kept + acts.layer)
    if bucket.remaining:
        # By then the activations of the layers that have had their backward are gone.
        yield Moment("summing gradients", buffers + summing, acts.kept * bucket.remaining + acts.layer)
    row = job.block(shape.hidden * e * row_tokens(job))
    yield Moment("backward of the embeddings", collected + waiting + embeddings + summing, row * 2)
    yield Moment("update", collected + _update(job))


def _gathered(job: Job, numel: int) -> Memory:
    """Return so many elements of gathered weights, the small ones first."""
    blocks = [job.block(weight.numel * job.element) for weight in job.weights if not job.persists(weight)]
    size = numel * job.element
    small = min(size, sum(block.small for block in blocks))
    return Memory(size, small, min(size - small, sum(block.medium for block in blocks)))


def _reduction(job: Job, bucket: Bucket) -> tuple[Memory, Memory]:
    """Return the gradients in the bucket, and what is made of them when they are summed over the ranks."""
    size, e = job.communication, job.element
    # A GPU's bucket is there from the start (states.py); of a CPU's, pages that nothing was written to cost nothing.
    in_bucket = 0 if job.on_gpu and job.zero.contiguous_gradients else bucket.fill * size
    summed = max(bucket.fill, bucket.largest)
    summing = job.block(summed * size) * (1 if job.on_gpu else 2)  # laid out by rank; gloo sums in a copy
    if size != e:
        summing += job.block(summed * size)
    if size != 4:
        summing += job.block(summed // job.world_size * 4)
    if job.zero.optimizer != "none":
        summing += _norm(job)
    return job.block(in_bucket) + job.block(bucket.largest * e), summing


def _norm(job: Job) -> Memory:
    """Return the largest part of a gradient in float64, in which its norm is taken."""
    return job.block(8 * max((job.part(weight) for weight in job.trained), default=0))


def _update(job: Job) -> Memory:
    """Return what comes and goes when the optimizer updates one sub-group on the rank's device."""
    norm = _norm(job)
    if job.zero.optimizer != "none":
        return norm
    largest, name = max(job.sub_groups, default=0), job.config.optim.name
    updating = job.block(4 * largest) * (len(job.trained) > 1)  # the sub-group's gradient
    # torch's AdamW: the root of the second moment, on a CPU also its quotient.
    passing = {"adamw": 1 if job.on_gpu else 2, "muon": 2, "sgd": 1}.get(name, 0)
    updating += job.block(4 * largest) * passing
    return max(norm, updating, key=lambda memory: memory.bytes)
