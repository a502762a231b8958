"""Not a token lost in silence: the equations that the counts of a shard folder must fulfil."""

from collections.abc import Sequence
from dataclasses import dataclass

from data_tools.shard_index import SourceInfo


@dataclass(frozen=True, slots=True)
class Equation:
    """One equation with its numbers, and whether it holds."""

    text: str
    holds: bool


def equations(sources: Sequence[SourceInfo]) -> list[Equation]:
    """Return the equations of each source and of all together."""
    lines = [line for source in sources for line in _of_sources(source.name, [source])]
    return lines + _of_sources("total", sources) if len(sources) > 1 else lines


def _of_sources(name: str, sources: Sequence[SourceInfo]) -> list[Equation]:
    conversations = sum(source.conversations for source in sources)
    kept = sum(source.kept for source in sources)
    rejected = sum(sum(source.rejected.values()) for source in sources)
    duplicates = sum(source.duplicates for source in sources)
    left_out = sum(sum(source.left_out.values()) for source in sources)
    tokens = sum(source.tokens for source in sources)
    repeated = sum(source.repeated_tokens for source in sources)
    packed = sum(source.packed_tokens for source in sources)
    cut = sum(source.cut_tokens for source in sources)
    targets = sum(source.target_tokens for source in sources)
    packed_targets = sum(source.packed_target_tokens for source in sources)
    cut_targets = sum(source.cut_target_tokens for source in sources)
    return [
        Equation(
            f"{name}: {conversations:,} conversations made = {kept:,} kept + {rejected:,} rejected "
            f"+ {duplicates:,} duplicates + {left_out:,} left out",
            conversations == kept + rejected + duplicates + left_out,
        ),
        Equation(
            f"{name}: {tokens:,} tokens × repeats + {repeated:,} repeated system tokens "
            f"= {packed:,} packed + {cut:,} cut",
            tokens + repeated == packed + cut,
        ),
        Equation(
            f"{name}: {targets:,} target tokens × repeats = {packed_targets:,} packed + {cut_targets:,} cut",
            targets == packed_targets + cut_targets,
        ),
    ]
