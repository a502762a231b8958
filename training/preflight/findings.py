"""What a check has found, part by part, and how it is printed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "warning", "MISTAKE"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. A warning may be meant so; with a mistake the run would fail, or be wrong."""

    part: str
    verdict: Verdict
    found: str


def mistakes_in(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings with which the run should not start."""
    return [finding for finding in findings if finding.verdict == "MISTAKE"]


def format_table(findings: Sequence[Finding]) -> str:
    """Return the report as a table: part, verdict, what was found. Lines are not wrapped, so that they can be searched.

    A finding of several lines is continued below its first; a part is named once.
    """
    width = max((len(finding.part) for finding in findings), default=0)
    parts = list(dict.fromkeys(finding.part for finding in findings))
    lines, before = [], ""
    for finding in sorted(findings, key=lambda finding: parts.index(finding.part)):
        part = "" if finding.part == before else finding.part
        before = finding.part
        first, *more = finding.found.splitlines() or [""]
        lines.append(f"{part:<{width}}  {finding.verdict:<7}  {first}".rstrip())
        lines += [f"{'':<{width}}  {'':<7}  {line}" for line in more]
    return "\n".join(lines)


def summary(findings: Sequence[Finding]) -> str:
    """Return the report's last line."""
    mistakes = len(mistakes_in(findings))
    warnings = sum(finding.verdict == "warning" for finding in findings)
    return f"{_count(mistakes, 'mistake')}, {_count(warnings, 'warning')}"


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
