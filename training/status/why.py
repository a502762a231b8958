"""Why a run stopped, and what to do about it: one rule for each thing that is known to end runs.

Rules are tried in an order: what Slurm and the watchdog say, who know; then what the first rank that failed says;
then what silence means.
"""

import re
import signal
from dataclasses import dataclass, replace

from training.last_words import CUT_OFF, describe_code, killed_by
from training.status.facts import RunFacts
from training.status.starts import Start

AGAIN = "start it again: it goes on from its newest checkpoint"


@dataclass(frozen=True, slots=True)
class Why:
    """kind: one word for programs; text: for people; lines: what the text rests on, as it stands in a file."""

    kind: str
    text: str
    advice: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """What a pattern in an error or a log means."""

    kind: str
    pattern: re.Pattern[str]
    text: str
    advice: str


def _rule(kind: str, pattern: str, text: str, advice: str) -> Rule:
    return Rule(kind, re.compile(pattern, re.IGNORECASE), text, advice)


# What Slurm writes into a job's output, and into the step's.
SLURM_RULES = (
    _rule(
        "out_of_memory",
        r"oom[-_ ]?kill|out[- ]of[- ]memory handler|: Out Of Memory",
        "Slurm killed a rank that took more memory than the job asked for",
        "ask for more with slurm.mem (0 is all of a node), or offload less to CPU memory; `shardtune plan` says "
        "how much a rank takes",
    ),
    _rule(
        "time_limit",
        r"DUE TO TIME LIMIT",
        "the job ran into its time limit before it could save",
        f"{AGAIN}; let the signal come earlier, or save more often (save.every_steps)",
    ),
    _rule(
        "preempted",
        r"DUE TO PREEMPTION|\] preempted;",
        "the job was preempted by one with a higher priority",
        AGAIN,
    ),
    _rule(
        "node_failure",
        r"DUE TO NODE FAILURE|Node failure on",
        "a node of the job failed",
        f"{AGAIN}; Slurm does it by itself where jobs are requeued",
    ),
    # A step is cancelled whenever one of its ranks fails; that says nothing.
    _rule("cancelled", r"JOB \S+ ON \S+ CANCELLED AT \S+ \*\*\*", "the job was cancelled (scancel)", AGAIN),
)

# What srun says of a rank that was killed; of those that it ends itself it says Terminated.
KILLED_TASK = re.compile(r"srun: error: \S+: tasks? (?P<task>\d+)\S*: Killed")

# What a rank's error means; the first rule that fits counts.
ERROR_RULES = (
    _rule(
        "bad_steps",
        r"max_bad_steps",
        "too many steps in a row had a loss or a gradient that is not finite",
        "look at the rows that are named, or start a new run with a lower optim.lr",
    ),
    _rule(
        "disk_full",
        r"No space left on device|Disk quota exceeded",
        "a disk is full, or its quota is used up",
        "make room (save.keep, older runs), then start it again",
    ),
    _rule(
        "cuda_out_of_memory",
        r"(CUDA|HIP|XPU) out of memory|OutOfMemoryError",
        "the memory of a GPU ran out",
        "lower batch.micro_packs, set activation_checkpointing, or take a ds_config that offloads more; "
        "`shardtune plan` says what fits",
    ),
    _rule(
        "out_of_memory",
        r"can't allocate memory|Cannot allocate memory|\bMemoryError\b|std::bad_alloc",
        "the memory of a node ran out",
        "ask for more memory or more nodes, or offload to NVMe; `shardtune plan` says what fits",
    ),
    _rule(
        "shared_memory",
        r"\bBus error\b|/dev/shm.*(full|too small)",
        "the shared memory (/dev/shm) of a node or container is too small",
        "give the container more (--shm-size, or bind the node's /dev/shm)",
    ),
    _rule(
        "gpu_fault",
        r"uncorrectable ECC|CUDA error: (an illegal|unspecified launch|uncorrectable|device-side)|fallen off the bus",
        "a GPU reported a fault",
        "exclude the node and start it again; tell the site if it comes back there",
    ),
    _rule(
        "network",
        r"collective operation timeout|ncclSystemError|NCCL error|TCPStore|DistNetworkError|EADDRINUSE|"
        r"Address already in use|Timed out after|connect.*timed out",
        "the ranks could not reach each other",
        "look at the site's network settings (NCCL_SOCKET_IFNAME, NCCL_IB_HCA); `shardtune check --on-nodes` tries "
        "them",
    ),
    _rule(
        "not_installed",
        r"ModuleNotFoundError|ImportError",
        "a package is missing on the nodes",
        "start the environment in the site's profile (slurm.site), on a disk that the nodes see",
    ),
)

SIGNALS = {
    "USR1": "the time limit was near (SIGUSR1 from Slurm)",
    "TERM": "it was cancelled or preempted (SIGTERM)",
    "INT": "Ctrl-C",
}


def explain(facts: RunFacts, state: str) -> Why | None:
    """Return why a run stopped; None for one that has not, or never started."""
    if state == "done":
        early = next((event for event in facts.events[::-1] if event["event"] == "stopped_early"), None)
        text = "all its steps are done" if early is None else f"it stopped early: {early.get('why')}"
        return Why("done", text, "shardtune export; with more epochs or steps it goes on")
    start = facts.start
    if start is None or (state in ("running", "starting", "not started", "waiting") and facts.state is None):
        return None
    if facts.state == "stopped":
        return _stopped(facts, start)
    return (
        _stuck(facts, start)
        or _mistake(facts)
        or _said_by_slurm(facts)
        or _said_by_a_rank(facts, start)
        or _silence(facts, start)
    )


def _stopped(facts: RunFacts, start: Start) -> Why:
    by_slurm = _said_by_slurm(facts)
    advice = "nothing: Slurm starts it again by itself" if start.all("requeued") else AGAIN
    if by_slurm is not None:
        return replace(by_slurm, text=f"{by_slurm.text}; it has saved", advice=advice)
    signalled = start.last("signalled")
    if signalled is not None:
        name = str(signalled["signal"]).removeprefix("SIG")
        return Why("signal", f"{SIGNALS.get(name, f'signal {name}')}; it has saved", advice)
    stopped = start.last("stopped")
    if stopped is not None and stopped.get("signalled"):
        return Why("signal", "the ranks got a signal, as before a preemption; it has saved", advice)
    return Why("stop_file", "the file STOP asked for it; it has saved", advice)


def _stuck(facts: RunFacts, start: Start) -> Why | None:
    stuck = start.last("stuck")
    if stuck is None:
        return None
    hosts = str(stuck.get("host") or "")
    text = (
        f"step {stuck['step']} did not end within the watchdog's time" if "step" in stuck else "it was stuck"
    )
    text += f"; the ranks that did not answer are on {hosts}" if hosts else ""
    advice = f"{AGAIN}, without the nodes in {facts.run.path / 'bad_nodes'}" if hosts else AGAIN
    return Why("stuck", text, advice, tuple(str(stuck.get("said") or "").splitlines()))


def _said_by_slurm(facts: RunFacts) -> Why | None:
    for rule in SLURM_RULES:
        lines = [line for line in facts.job_log.splitlines() if rule.pattern.search(line)]
        if lines:
            return Why(rule.kind, rule.text, rule.advice, (lines[0].strip(),))
    return None


def _mistake(facts: RunFacts) -> Why | None:
    mistake = facts.run.mistake
    if mistake is None:
        return None
    rule = _find_rule(mistake)
    if rule is None:
        return Why(
            "mistake",
            "the settings or the files do not allow it",
            "mend what is said above",
            tuple(mistake.splitlines()),
        )
    return Why(rule.kind, rule.text, rule.advice, tuple(mistake.splitlines()))


def _said_by_a_rank(facts: RunFacts, start: Start) -> Why | None:
    """Return the reason that a rank gave: of those that failed, the first one that was not cut off by another."""
    words = facts.words
    failed = [event for event in start.all("failed") if not CUT_OFF.search(str(event.get("error", "")))]
    if failed:
        first = failed[0]
        error, rank, host = str(first.get("error", "")), first.get("rank"), first.get("host")
        if rank is None:  # of the checks before the ranks
            return Why(
                "mistake",
                f"node {host} is not ready for the run",
                "mend what is said above",
                tuple(error.splitlines()),
            )
        who = f"rank {rank} on {host}"
    elif words is not None and words.error is not None:
        error, who = words.error, "the launcher" if words.rank is None else f"rank {words.rank}"
    else:
        return None
    lines: tuple[str, ...] = (f"{who}: {error}",)
    if words is not None and words.rank is not None:
        lines += (f"see {words.path}",)
    rule = _find_rule(error)
    if rule is not None:
        return Why(rule.kind, rule.text, rule.advice, lines)
    first_line = error.partition("\n")[0]
    return Why("error", f"{who} failed: {first_line}", "see its log; then start it again", lines[1:])


def _find_rule(text: str) -> Rule | None:
    return next((rule for rule in ERROR_RULES if rule.pattern.search(text)), None)


def _silence(facts: RunFacts, start: Start) -> Why:
    """Return what it means that nobody said anything: ranks were killed, or the whole node is gone."""
    ended = start.last("ended") or {}
    code = ended.get("launcher_code", ended.get("code"))
    words = facts.words
    silent = words.silent if words is not None else None
    by_srun = KILLED_TASK.search(facts.job_log)
    if by_srun is not None:
        silent = int(by_srun["task"])
    if silent is not None or (isinstance(code, int) and killed_by(code) == signal.SIGKILL):
        who = f"rank {silent}" if silent is not None else "a rank"
        host = next((beat.get("host") for beat in facts.heartbeats if beat["rank"] == silent), None)
        return Why(
            "killed",
            f"{who}{f' on {host}' if host else ''} was killed (SIGKILL), as the kernel does when memory runs out",
            f"{AGAIN}; if it comes again, `shardtune plan` says how much memory a rank takes",
            (by_srun[0],) if by_srun is not None else (),
        )
    if code is not None:
        return Why(
            "unknown",
            f"the ranks have ended without a word: {describe_code(int(code))}",
            f"see the logs in {facts.run.logs}; {AGAIN}",
            tuple(words.lines[-5:]) if words is not None else (),
        )
    return Why(
        "vanished",
        "everything ended at once without a word, as when a node is lost or a job is killed outright",
        AGAIN,
    )
