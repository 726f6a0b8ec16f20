"""What the symbolic links of a tree are to each other: whoever follows them comes to an end, and finds something."""

import posixpath
from collections.abc import Collection, Iterator, Mapping

from ledger import git


def looping(links: Mapping[str, str], wanted: Collection[str]) -> list[str]:
    """Those of the paths `wanted` from which a walk that follows every link (path → target) comes to no end: a link to
    a folder leads to all links below it. Of several that lead into one loop, the first is named. Work grows with the
    links and their levels.
    """
    leads = {path: leads_to for path, target in links.items() if (leads_to := inside(path, target)) is not None}
    below: dict[str, set[str]] = {}
    for path in leads:
        while path:
            folder = path.rpartition("/")[0]
            if path in below.setdefault(folder, set()):
                break
            below[folder].add(path)
            path = folder
    found: list[str] = []
    ended: set[str] = set()
    for start in sorted(wanted):
        if start not in ended and start in leads and _comes_back(start, leads, below, ended):
            found.append(start)
    return found


def _comes_back(start: str, leads: Mapping[str, str], below: Mapping[str, set[str]], ended: set[str]) -> bool:
    """Whether a walk from `start` meets a place in which it stands already. Adds the places it has left to `ended`."""
    around = {start}
    way = [(start, _next(start, leads, below))]
    comes_back = False
    while way:
        place, rest = way[-1]
        following = next(rest, None)
        if following is None:
            way.pop()
            around.discard(place)
            ended.add(place)
        elif following in around:
            comes_back = True
        elif following not in ended:
            around.add(following)
            way.append((following, _next(following, leads, below)))
    return comes_back


def _next(place: str, leads: Mapping[str, str], below: Mapping[str, set[str]]) -> Iterator[str]:
    """Where a walk goes from `place`: from a link to what it leads to, and from a folder to what lies in it. On the way
    of a link, another one may stand.
    """
    if place not in leads:
        yield from sorted(below.get(place, ()))
        return
    parts = leads[place].split("/")
    ways = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
    yield next((way for way in ways if way in leads), leads[place])


def inside(path: str, target: str) -> str | None:
    """Where the link at `path` leads in its tree by its text ("" is the root); None when it leads out of it."""
    found = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    if found.startswith("/") or found.split("/")[0] == "..":
        return None
    return "" if found == "." else found


def lost(repo: git.StrPath, old: str, new: str, links: Mapping[str, str]) -> dict[str, str]:
    """Those of the links (path → target) that lead to something in the tree `old` and to nothing in `new`, each with
    what is gone.
    """
    leads = {path: found for path, target in links.items() if (found := inside(path, target)) and "\n" not in found}
    gone = git.missing(repo, new, sorted(set(leads.values())))
    gone -= git.missing(repo, old, sorted(gone))
    return {path: found for path, found in leads.items() if found in gone}
