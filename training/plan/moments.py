"""The moments of a step at which a rank's memory is highest, and what is there at each beside its states.

A step gathers weights for the forward, holds activations, collects gradients in a bucket, sums them up over the ranks,
and updates; these do not all happen at once, so their sum would be too much. The rules (what is released when) are
DeepSpeed 0.19.8's, runtime/zero/partitioned_param_coordinator.py and stage3.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from training.allocator import HEAP_BLOCK
from training.base_model import EMBEDDINGS, HEAD
from training.plan.activations import activations
from training.plan.job import Job


@dataclass(frozen=True, slots=True)
class Moment:
    """Bytes on a rank's device at one moment, beside its states."""

    name: str
    buffers: int
    activations: int = 0
    logits: int = 0

    @property
    def bytes(self) -> int:
        """Return all of them."""
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
    live, heap = held.live * e, _in_heap(job)
    # DeepSpeed gathers into one buffer and copies each weight out of it; gloo has a buffer of its own, before that.
    arriving = live + held.group * e
    if not job.on_gpu:
        arriving = max(arriving, (min(held.live, held.total - held.group) + 2 * held.group) * e)
    table = shape.vocab * shape.hidden * e  # of the embeddings, and of the head
    trained = {weight.name for weight in job.trained}
    head = table if (EMBEDDINGS if shape.tied else HEAD) in trained else 0
    embeddings = table if EMBEDDINGS in trained else 0
    # The head's part of the gradient waits for the embeddings', which comes last.
    waiting = head if shape.tied else 0
    layer = max((weight.numel for weight in job.trained if ".layers." in weight.name), default=0) * e

    # The last group of weights is gathered when the forward has come as far as the weights before it.
    run = 1 - held.group / sum(weight.numel for weight in job.weights)
    yield Moment("gathering weights", arriving + collected, round(acts.kept * max(0.0, run)))
    # DeepSpeed keeps the buffer until the last of its weights is used.
    yield Moment("last layer's forward", live + held.group * e + collected, acts.kept)
    # The head's gradient is made in the forward, with the loss.
    yield Moment("loss", live + collected + head, acts.kept, acts.head)
    buffers = (arriving if held.returning else live) + collected + layer + waiting
    yield Moment("backward of a layer", buffers, acts.kept + acts.layer)
    if bucket.remaining:
        # By then the activations of the layers that have had their backward are gone.
        yield Moment("summing gradients", buffers + summing, round(acts.kept * bucket.remaining) + acts.layer)
    yield Moment(
        "backward of the embeddings",
        heap + collected + waiting + embeddings + summing,
        2 * shape.hidden * e * job.row_tokens,
    )
    yield Moment("update", heap + collected + _update(job))


def _reduction(job: Job, bucket: Bucket) -> tuple[int, int]:
    """Return the bytes of gradients in the bucket, and of what is made of them when they are summed over the ranks."""
    size, e = job.communication, job.element
    # A GPU's bucket is there from the start (states.py); of a CPU's, pages that nothing was written to cost nothing.
    in_bucket = 0 if job.on_gpu and job.zero.contiguous_gradients else bucket.fill * size
    summed = max(bucket.fill, bucket.largest)
    summing = summed * size * (1 if job.on_gpu else 2)  # laid out by rank; gloo sums in a copy
    if size != e:
        summing += summed * size
    if size != 4:
        summing += summed // job.world_size * 4
    if job.zero.optimizer != "none":
        summing += _norm(job)
    return in_bucket + bucket.largest * e, summing


def _norm(job: Job) -> int:
    """Return the bytes of the largest part of a gradient in float64, in which its norm is taken."""
    return 8 * max((job.part(weight) for weight in job.trained), default=0)


def _in_heap(job: Job) -> int:
    """Return the bytes of gathered weights that are too small to go back to the system when they are released."""
    if job.on_gpu:
        return 0
    sizes = (weight.numel * job.element for weight in job.weights if not job.persists(weight))
    return min(gather(job).live * job.element, sum(size for size in sizes if size < HEAP_BLOCK))


def _update(job: Job) -> int:
    """Return the bytes that come and go when the optimizer updates one sub-group on the rank's device."""
    norm = _norm(job)
    if job.zero.optimizer != "none":
        return norm
    largest, name = max(job.sub_groups, default=0), job.config.optim.name
    gradient = 4 * largest if len(job.trained) > 1 else 0
    # torch's AdamW: the root of the second moment, on a CPU also its quotient.
    passing = {"adamw": 4 if job.on_gpu else 8, "muon": 8, "sgd": 4}.get(name, 0) * largest
    return max(norm, gradient + passing)
