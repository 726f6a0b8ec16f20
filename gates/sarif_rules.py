"""Pure: the rules that a SARIF run describes, in its driver and in its extensions, and the level that each gives.

Runs in evidence.py's bounded child. By SARIF 2.1.0: reportingDescriptorReference (3.52), toolComponentReference (3.54),
configurationOverride (3.51) and the procedure for a result's level (3.27.10). Where a report leaves it open, the
stricter reading is taken: of several rules that a result may mean the most severe, and of a rule that is named in a
place which does not describe it, error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gates.reading import Unreadable, need

LEVELS = ("none", "note", "warning", "error")
DEFAULT = "warning"

Rule = Mapping[str, Any]

# In files of their own, which nobody sends us.
_ELSEWHERE = ("driver", "extensions", "invocations")


@dataclass(frozen=True, slots=True)
class Named:
    """The rules that a result may mean, and why it is not known which, where the report does not describe it."""

    rules: tuple[Rule, ...] = ()
    lost: str = ""

    @property
    def shown(self) -> Rule:
        """The one whose texts are shown."""
        return self.rules[0] if self.rules else {}


class _Component:
    """The driver or an extension, with its rules by position, id and guid."""

    def __init__(self, component: Mapping[str, Any], what: str) -> None:
        name = component.get("name", "")
        self.name: str = need(name, str, f"{what}.name")
        self.guid = _word(component, "guid", what)
        listed = need(component.get("rules") or [], list, f"the rules of {what}")
        self.rules: list[Rule] = [need(rule, dict, "a rule") for rule in listed]
        self.by_id: dict[str, list[Rule]] = defaultdict(list)
        self.by_guid: dict[str, list[Rule]] = defaultdict(list)
        for rule in self.rules:
            self.by_id[_word(rule, "id", "a rule")].append(rule)
            if guid := _word(rule, "guid", "a rule"):
                self.by_guid[guid].append(rule)

    def of_id(self, rule_id: str) -> list[Rule]:
        """The rules of this id, or of the longest part of it that has any: `CA1000/1` is a case of `CA1000`."""
        while rule_id:
            if rule_id in self.by_id:
                return self.by_id[rule_id]
            rule_id = rule_id.rpartition("/")[0]
        return []


class Rules:
    """The rules of one run, and how its invocations configured them."""

    def __init__(self, run: Mapping[str, Any]) -> None:
        tool = need(run.get("tool"), dict, "tool")
        self.driver = _Component(need(tool.get("driver"), dict, "tool.driver"), "tool.driver")
        self.extensions = [
            _Component(need(one, dict, "an extension"), "an extension")
            for one in need(tool.get("extensions") or [], list, "tool.extensions")
        ]
        outside = need(run.get("externalPropertyFileReferences") or {}, dict, "externalPropertyFileReferences")
        self.elsewhere = [name for name in _ELSEWHERE if outside.get(name)]
        self.invocations = [
            need(one, dict, "an invocation") for one in need(run.get("invocations") or [], list, "invocations")
        ]
        # For each invocation, the levels that it gives: to rules that are described by which object, else by their id.
        self.described: list[dict[int, list[str]]] = []
        self.undescribed: list[dict[str, list[str]]] = []
        for invocation in self.invocations:
            self._note_overrides(invocation)

    def _note_overrides(self, invocation: Mapping[str, Any]) -> None:
        described: dict[int, list[str]] = defaultdict(list)
        undescribed: dict[str, list[str]] = defaultdict(list)
        overrides = invocation.get("ruleConfigurationOverrides") or []
        for override in need(overrides, list, "ruleConfigurationOverrides"):
            configuration = need(override, dict, "an override").get("configuration")
            level = need(configuration or {}, dict, "the configuration of an override").get("level")
            if level is None:
                continue
            reference = need(override.get("descriptor"), dict, "the descriptor of an override")
            named = self.named(reference)
            for rule in named.rules:
                described[id(rule)].append(known(level))
            if not named.rules:
                undescribed[_word(reference, "id", "the descriptor of an override")].append(known(level))
        self.described.append(described)
        self.undescribed.append(undescribed)

    def of_result(self, result: Mapping[str, Any]) -> Named:
        """What `rule`, `ruleId` and `ruleIndex` of a result name. Raises Unreadable for a place that is not there."""
        reference = dict(need(result.get("rule") or {}, dict, "rule"))
        rule_id, index = _word(result, "ruleId", "a result"), _position(result, "ruleIndex")
        also = _word(reference, "id", "rule")
        reference["id"] = rule_id or also
        if index >= 0:
            if _position(reference, "index") not in (-1, index):
                raise Unreadable(f"a result names rule {index} and rule {reference['index']}: which one?")
            reference["index"] = index
        named = self.named(reference)
        if also and rule_id and also != rule_id:
            other = self.named({**reference, "id": also})
            named = Named((*named.rules, *other.rules), named.lost or other.lost)
        return named

    def named(self, reference: Mapping[str, Any]) -> Named:
        """The rules to which a reportingDescriptorReference may refer. Raises Unreadable for a position that its
        component does not have.
        """
        component, lost = self._component(reference)
        rule_id, guid = _word(reference, "id", "a rule's name"), _word(reference, "guid", "a rule's name")
        index = _position(reference, "index")
        if component is None:
            return Named(tuple(rule for one in self._all() for rule in one.of_id(rule_id)), lost)
        found: list[Rule] = []
        if index >= 0:
            if index >= len(component.rules):
                of = f" of {component.name[:80]}" if component is not self.driver else ""
                raise Unreadable(f"a result names rule {index} of {len(component.rules)}{of}")
            found.append(component.rules[index])
        if guid:
            of_guid = component.by_guid.get(guid, [])
            found += of_guid
            lost = lost or ("" if of_guid else f"no rule of {component.name[:80]} has the guid {guid[:40]}")
        if rule_id and not _is_case_of(rule_id, found):
            of_id = component.of_id(rule_id)
            if not of_id and component is self.driver and not found:
                of_id = [rule for one in self.extensions for rule in one.of_id(rule_id)]
            if not of_id and component is not self.driver and not lost:
                lost = f"{component.name[:80]} does not describe the rule {rule_id[:80]}"
            found += of_id
        return Named(tuple(found), lost)

    def _component(self, reference: Mapping[str, Any]) -> tuple[_Component | None, str]:
        """The component that a reference means, the driver where it means none; None and why where it is not there."""
        given = need(reference.get("toolComponent") or {}, dict, "toolComponent")
        index, guid = _position(given, "index"), _word(given, "guid", "toolComponent")
        name = _word(given, "name", "toolComponent")
        if index >= 0:
            if index >= len(self.extensions):
                raise Unreadable(f"a result names a rule of extension {index} of {len(self.extensions)}")
            return self.extensions[index], ""
        if guid or name:
            same = [one for one in self._all() if (one.guid == guid if guid else one.name == name)]
            if len(same) != 1:
                return None, f"{len(same) or 'no'} parts of the tool are called {(guid or name)[:80]}"
            return same[0], ""
        return self.driver, ""

    def _all(self) -> Iterator[_Component]:
        yield self.driver
        yield from self.extensions

    def level(self, result: Mapping[str, Any], named: Named) -> tuple[str, str]:
        """The level that the rules give a result which names none, and a sentence where the report leaves it open."""
        lost = named.lost
        if not lost and self.elsewhere:
            lost = f"the report keeps its {' and '.join(self.elsewhere)} in another file"
        if lost:
            return LEVELS[-1], f"taken as error: {lost}"
        at = _position(need(result.get("provenance") or {}, dict, "provenance"), "invocationIndex")
        if at >= len(self.invocations):
            raise Unreadable(f"a result names invocation {at} of {len(self.invocations)}")
        rule_id = _word(result, "ruleId", "a result") or _word(result.get("rule") or {}, "id", "rule")
        candidates = [self._configured(rule, rule_id, at) for rule in named.rules or ({},)]
        return max((level for each in candidates for level in each), key=LEVELS.index), ""

    def _configured(self, rule: Rule, rule_id: str, at: int) -> list[str]:
        """What a rule may be set to: by the invocation that found the result, or where that is not said, by any."""
        default = need(rule.get("defaultConfiguration") or {}, dict, "defaultConfiguration").get("level") or DEFAULT
        levels = []
        for number in range(len(self.invocations)) if at < 0 else [at]:
            levels += self.described[number].get(id(rule), [])
            if not rule:
                levels += [level for key, each in self.undescribed[number].items() if _is_part(key, rule_id)
                           for level in each]  # fmt: skip
        return levels if levels and at >= 0 else [known(default), *levels]


def known(level: Any) -> str:
    """The level. Raises Unreadable when the standard has none of that name."""
    if level not in LEVELS:
        raise Unreadable(f"a result of level {str(level)[:40]!r}")
    return str(level)


def _is_case_of(rule_id: str, rules: list[Rule]) -> bool:
    return any(_is_part(str(rule.get("id", "")), rule_id) for rule in rules)


def _is_part(key: str, rule_id: str) -> bool:
    return bool(key) and (rule_id == key or rule_id.startswith(f"{key}/"))


def _word(given: Mapping[str, Any], name: str, what: str) -> str:
    return str(need(given.get(name) or "", str, f"{name} of {what}"))


def _position(given: Mapping[str, Any], name: str) -> int:
    return int(need(given.get(name, -1), int, name))
