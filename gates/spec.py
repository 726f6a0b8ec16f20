"""What the runner tells its launcher (`launch.py`), which starts too often to import what types are made of."""

from typing import TypedDict


class Box(TypedDict):
    """How the command is put into a box.

    `argv` is bubblewrap with its options. Where `expose` is not empty, the folders and files in it are first bound to
    their names below launch.STAGE, so that another user reaches them whatever lies above them; that takes root.
    `processes` is set in the box where it is not 0: the kernel counts a box's processes apart from its user's others
    (Linux 5.14).
    """

    argv: list[str]
    expose: dict[str, str]
    processes: int


class Spec(TypedDict):
    """What the runner asks for. Sizes in bytes, times in seconds; `uid` None keeps the user; `parent` is the runner.

    `confined` False leaves out limits, other user and no_new_privs (sandbox level 0). `all_memory_bytes` holds for all
    processes together, `disk_bytes` and `disk_files` for all below `folders`, each only where it is not 0. `groups` are
    the files of control groups that the command joins (level 3).
    """

    argv: list[str]
    cwd: str
    env: dict[str, str]
    parent: int
    uid: int | None
    confined: bool
    timeout_seconds: float
    grace_seconds: float
    memory_bytes: int
    cpu_seconds: int
    file_bytes: int
    open_files: int
    processes: int
    all_memory_bytes: int
    disk_bytes: int
    disk_files: int
    folders: list[str]
    groups: list[str]
    box: Box | None
