"""Pure: which events a reader wants, by kind, channel and severity; one rule for lists, streams and subscriptions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from pipeline.kinds import CHANNELS, KINDS, SEVERITIES
from pipeline.refusals import InvalidField

MAX_PATTERNS = 50
MAX_PATTERN_LENGTH = 64
_PATTERN = re.compile(r"[a-z0-9_.*]+")


@dataclass(frozen=True)
class Selection:
    """The kinds that match one of `patterns` (`*`, `run.*`, `*.failed` or exact), in one of `channels` (none given: in
    all), of at least `min_severity`.
    """

    patterns: Sequence[str] = ("*",)
    channels: Sequence[str] = ()
    min_severity: str = "debug"

    @classmethod
    def checked(
        cls,
        patterns: Sequence[str],
        channels: Sequence[str] = (),
        min_severity: str = "debug",
        *,
        field: str = "patterns",
    ) -> "Selection":
        """A selection of what a person or program sent. Raises InvalidField naming what is wrong and what is right."""
        if not isinstance(patterns, list | tuple) or not 1 <= len(patterns) <= MAX_PATTERNS:
            raise InvalidField(field, f"a list of 1 to {MAX_PATTERNS} patterns such as run.* or patch.committed")
        for pattern in patterns:
            if not isinstance(pattern, str) or len(pattern) > MAX_PATTERN_LENGTH or not _PATTERN.fullmatch(pattern):
                raise InvalidField(
                    field, f"“{pattern}” is no pattern: a kind such as patch.committed, or with *: run.*"
                )
            if not any(_matches(pattern, kind) for kind in KINDS):
                raise InvalidField(field, f"“{pattern}” matches no kind of event; `manage.py flow` lists them")
        if not isinstance(channels, list | tuple) or not set(channels) <= set(CHANNELS.values()):
            raise InvalidField("channels", f"a list of {', '.join(CHANNELS.values())}")
        if min_severity not in SEVERITIES:
            raise InvalidField("min_severity", f"one of {', '.join(SEVERITIES)}, not “{min_severity}”")
        return cls(tuple(patterns), tuple(channels), min_severity)

    @cached_property
    def kinds(self) -> frozenset[str]:
        """Every registered kind that one of the patterns matches."""
        return frozenset(kind for kind in KINDS if any(_matches(pattern, kind) for pattern in self.patterns))

    @cached_property
    def severities(self) -> tuple[str, ...]:
        """The severities from `min_severity` on."""
        return SEVERITIES[SEVERITIES.index(self.min_severity) :]

    def wants(self, kind: str, channel: str, severity: str) -> bool:
        """Whether an event of this kind, channel and severity is selected."""
        return kind in self.kinds and severity in self.severities and (not self.channels or channel in self.channels)


def _matches(pattern: str, kind: str) -> bool:
    """`*` stands for any text, dots included; everything else for itself. Linear in time whatever the pattern."""
    return fnmatchcase(kind, pattern)
