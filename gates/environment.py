"""What a verdict rests on beside tree and gate: the programs, packages and settings that a gate's command would meet.

Cheap enough to ask before a verdict is reused: names, sizes and times of files are read, never what is in them.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import sysconfig
from typing import TYPE_CHECKING, Any

from django.conf import settings

from gates import runner

if TYPE_CHECKING:
    from gates.models import Gate

MAX_WORDS = 20


def digest(gate: Gate, sandbox_level: int | None) -> str:
    """64 hexadecimal digits that differ when the gate's command would meet something else than before.

    In it: the machine's system, our interpreter and its installed packages, every program that the command names on
    the path a gate has (by place, size and time), the values of the variables it may see, and the sandbox level.
    """
    facts = {
        "system": [platform.system(), platform.machine(), _file("/etc/os-release")],
        "interpreter": [sys.version, _file(os.path.realpath(sys.executable)), _packages()],
        "programs": {word: _file(place) for word, place in _programs(gate.command)},
        "variables": {name: os.environ.get(name) for name in sorted(gate.env_allow)},
        "level": sandbox_level,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _programs(command: list[str]) -> list[tuple[str, str]]:
    path = runner.search_path(settings.SIGNALBOX_GATE_READONLY)
    named = (word for word in command[:MAX_WORDS] if word and not word.startswith("-") and " " not in word)
    found = [(word, shutil.which(word, path=path)) for word in named]
    return [(word, os.path.realpath(place)) for word, place in found if place]


def _file(path: str) -> list[Any] | None:
    try:
        told = os.stat(path)
    except OSError:
        return None
    return [path, told.st_size, told.st_mtime_ns]


def _packages() -> list[str]:
    """The installed distributions with their versions, as the names of their folders say them."""
    try:
        return sorted(name for name in os.listdir(sysconfig.get_path("purelib")) if name.endswith(".dist-info"))
    except OSError:
        return []
