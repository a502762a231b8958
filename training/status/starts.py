"""The starts of a run, cut out of its events; a requeued job gives one start each time it runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Event = dict[str, Any]

# Written for a run while nobody works on it: a job was sent, or is sent again.
BETWEEN = ("submitted", "requeued")


@dataclass(frozen=True, slots=True)
class Start:
    """One start: its events, oldest first, from that of whoever started the ranks to the last one."""

    events: tuple[Event, ...]

    def last(self, name: str) -> Event | None:
        """Return the newest event of a name."""
        return next((event for event in reversed(self.events) if event["event"] == name), None)

    def all(self, name: str) -> list[Event]:
        """Return the events of a name, oldest first."""
        return [event for event in self.events if event["event"] == name]

    @property
    def begin(self) -> float:
        """Return when it began, in seconds since the epoch."""
        return float(self.events[0]["time"])

    @property
    def end(self) -> float | None:
        """Return when it was seen to end; None if it was cut off, or goes on."""
        ended = [event for event in self.events if event["event"] in ("done", "stopped", "failed", "ended")]
        return float(ended[-1]["time"]) if ended else None

    @property
    def last_event(self) -> float:
        """Return the time of the last event of the start's own."""
        return max(float(event["time"]) for event in self.events if event["event"] not in BETWEEN)

    @property
    def job(self) -> str | None:
        """Return the id of the job it ran in."""
        found = [event["job"] for event in self.events if event.get("job") is not None]
        return str(found[0]) if found else None

    @property
    def nodes(self) -> str | None:
        """Return the names of the nodes it ran on."""
        started = self.last("started")
        if started is None:
            return None
        nodes = started.get("nodes")
        found = nodes if isinstance(nodes, str) else started.get("host")
        return str(found) if found else None

    @property
    def num_ranks(self) -> int | None:
        """Return the number of ranks, if they came so far as to tell."""
        training = self.last("training")
        return int(training["world"]) if training is not None and "world" in training else None


def find_starts(events: Sequence[Event]) -> list[Start]:
    """Return the starts of a run, oldest first."""
    return [Start(tuple(group)) for group in _groups(events) if _is_start(group[0])]


def _is_start(event: Event) -> bool:
    return event["event"] not in BETWEEN


def _groups(events: Sequence[Event]) -> Iterator[list[Event]]:
    """Cut the events before each `started`, and before `training` where ranks were started without that."""
    group: list[Event] = []
    for event in events:
        names = [known["event"] for known in group]
        begins = event["event"] == "started" or (event["event"] == "training" and "training" in names)
        # What stands before the first start (a job was sent) is a group of its own.
        begins = begins or (bool(group) and not _is_start(group[0]) and _is_start(event))
        if begins and group:
            yield group
            group = []
        group.append(event)
    if group:
        yield group
