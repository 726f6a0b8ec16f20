"""Which tool does a task: request, rules and a snapshot of the tools in, one decision with its reasons out."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from math import sqrt
from typing import Any

from pipeline.refusals import InvalidField, MissingField, Refused
from pipeline.taskspec import ALIASES

STRATEGIES = ("fixed", "round_robin", "auto", "manual")
STRATEGY_ALIASES: Mapping[str, str] = {"metrics": "auto"}
PREDICATES = ("task_kind", "risk_tier", "complexity", "domain")

# The score of `auto` (domain.md §2.1.8): success weighs more than speed, and an untried tool counts as even odds.
SUCCESS_WEIGHT, SPEED_WEIGHT, UNTRIED = 0.7, 0.3, 0.5
# How many of a tool's latest attempts a snapshot counts.
STATISTICS_ATTEMPTS = 50
# The standard normal quantile of 0.9: a two-sided interval of 80 %.
Z_80 = 1.2815515655446004

_SEMVER = re.compile(r"\d+\.\d+\.\d+(?:[-+][0-9A-Za-z.+-]+)?")


class NoRoutableTool(Refused):
    """No tool is left for the task. `parts`: `candidates` with the reason of exclusion of each, the `rule`, and
    `temporary`, true when a tool was shut out by nothing but breaker, slots, quota or the switch: it may come back."""

    code = "no_routable_tool_for_phase"
    status = 422


@dataclass(frozen=True)
class Tool:
    """A tool as the snapshot sees it. `available` facts: enabled, breaker_admits, slot_free, no quota hold (`held`)."""

    key: str
    order: int = 0
    kind: str = "tool"
    task_kinds: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    enabled: bool = True
    breaker_admits: bool = True
    breaker_closed: bool = True
    slot_free: bool = True
    held: bool = False
    # What an attempt is expected to cost; None when nobody knows. Ties of `auto` only.
    cost: Decimal | None = None


@dataclass(frozen=True)
class Rule:
    """One routing rule. `match` names predicates (PREDICATES), each with one text or a list; all must hold."""

    key: str
    match: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    select_from: tuple[str, ...] = ()
    fallback_to: tuple[str, ...] = ()
    validate_with: tuple[str, ...] = ()
    strategy: str = "fixed"
    required: bool = False
    cursor: int = 0


@dataclass(frozen=True)
class Request:
    """What is asked for. The three lists of permitted tools restrict nothing when None; `disallowed` always does."""

    task_kind: str
    classification: Mapping[str, str] = field(default_factory=dict)
    allowed_tools: tuple[str, ...] | None = None
    phase_tools: tuple[str, ...] | None = None
    profile_tools: tuple[str, ...] | None = None
    disallowed: tuple[str, ...] = ()

    def fact(self, predicate: str) -> str | None:
        """What the task says about one of PREDICATES, or None."""
        return self.task_kind if predicate == "task_kind" else self.classification.get(predicate)


@dataclass(frozen=True)
class Stats:
    """A tool's latest attempts (at most STATISTICS_ATTEMPTS): how many, how many succeeded, their mean latency."""

    attempts: int = 0
    successes: int = 0
    mean_latency_seconds: float = 0.0


@dataclass(frozen=True)
class Candidate:
    """One tool that was looked at: `excluded` says why it cannot be taken ("" when it can), `score` is of `auto`."""

    tool: str
    excluded: str = ""
    temporary: bool = False
    score: float | None = None
    attempts: int | None = None
    interval: tuple[float, float] | None = None
    fallback: bool = False

    def document(self) -> dict[str, Any]:
        """The candidate as plain JSON, without what does not apply."""
        told: dict[str, Any] = {"tool": self.tool}
        if self.excluded:
            told["excluded"] = self.excluded
        if self.score is not None:
            told["score"] = round(self.score, 6)
        if self.interval is not None:
            told |= {"attempts": self.attempts, "interval": [round(bound, 6) for bound in self.interval]}
        if self.fallback:
            told["fallback"] = True
        return told


@dataclass(frozen=True)
class Decision:
    """What was decided and why. `chosen` is None only with strategy `manual`: a person picks among the candidates.

    `cursor` is the rule's new cursor after `round_robin`, else None. `fell_back` is true when the rule's strategy is
    not one of ours, so that the first candidate was taken (`routing.fell_back`).
    """

    chosen: str | None
    strategy: str
    reason: str
    candidates: tuple[Candidate, ...]
    rule: str | None = None
    validators: tuple[str, ...] = ()
    required: bool = False
    cursor: int | None = None
    fell_back: bool = False


def wilson(successes: int, attempts: int, z: float = Z_80) -> tuple[float, float]:
    """Lower and upper bound of the Wilson score interval of a success rate; (0, 1) for no attempts.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the American
    Statistical Association 22 (1927) 209-212. Raises ValueError unless 0 ≤ successes ≤ attempts.
    """
    if not 0 <= successes <= attempts:
        raise ValueError("successes must lie between 0 and attempts")
    if attempts == 0:
        return 0.0, 1.0
    rate, square = successes / attempts, z * z
    centre = rate + square / (2 * attempts)
    spread = z * sqrt(rate * (1 - rate) / attempts + square / (4 * attempts * attempts))
    scale = 1 + square / attempts
    return max((centre - spread) / scale, 0.0), min((centre + spread) / scale, 1.0)


def score(stats: Stats) -> float:
    """The score of `auto`: 0.7 · lower bound of the 80 % Wilson interval + 0.3 / (1 + mean latency in seconds).

    A tool without attempts gets 0.5 for the bound and no latency, so that it is tried.
    """
    if stats.attempts == 0:
        return SUCCESS_WEIGHT * UNTRIED + SPEED_WEIGHT
    bound, _ = wilson(stats.successes, stats.attempts)
    return SUCCESS_WEIGHT * bound + SPEED_WEIGHT / (1 + stats.mean_latency_seconds)


def matches(rule: Rule, request: Request) -> bool:
    """True when every predicate that the rule names holds; one that the task says nothing about does not."""
    for predicate, wanted in rule.match.items():
        fact = request.fact(predicate)
        if fact is None or fact not in ((wanted,) if isinstance(wanted, str) else wanted):
            return False
    return True


def decide(
    request: Request,
    rules: Iterable[Rule],
    tools: Iterable[Tool],
    stats: Mapping[str, Stats] | None = None,
) -> Decision | None:
    """The decision for `request` by the algorithm of domain.md §2.1.8; the same snapshot gives the same answer.

    `rules` come in their order; the first that matches and selects wins. Matching rules that select nothing add their
    validators. Without a matching rule the capable tools of kind `tool` stand in their `order`, the first that is left
    is taken; without a capable one the answer is None. Raises NoRoutableTool when tools were named, or are capable,
    and none is left.
    """
    known = {tool.key: tool for tool in sorted(tools, key=lambda tool: (tool.order, tool.key))}
    matching = [rule for rule in rules if matches(rule, request)]
    winner = next((rule for rule in matching if rule.select_from), None)
    told = [rule for rule in matching if rule is winner or not rule.select_from]
    validators = tuple(dict.fromkeys(key for rule in told for key in rule.validate_with))
    if winner is None:
        capable = [tool for tool in known.values() if tool.kind == "tool" and not _incapable(tool, request)]
        if not capable:
            return None
        winner = Rule(key="", select_from=tuple(tool.key for tool in capable))
    candidates = [_judged(key, request, known) for key in winner.select_from]
    left = [candidate for candidate in candidates if not candidate.excluded]
    if left:
        decision = _by_strategy(winner, candidates, known, stats or {})
    else:
        decision = _by_fallback(winner, candidates, request, known)
    required = any(rule.required for rule in told)
    return replace(decision, rule=winner.key or None, validators=validators, required=required)


def _incapable(tool: Tool, request: Request) -> str:
    domain = request.fact("domain")
    if request.task_kind not in tool.task_kinds:
        return f"cannot do {request.task_kind}"
    if domain is not None and tool.domains and domain not in tool.domains:
        return f"does not know the domain {domain}"
    return ""


def _judged(key: str, request: Request, known: Mapping[str, Tool], fallback: bool = False) -> Candidate:
    """The candidate with the first reason that shuts it out. Being capable comes before being free to work now."""
    tool = known.get(key)
    if tool is None:
        return Candidate(key, "is not a known tool", fallback=fallback)
    for permitted, words in (
        (request.allowed_tools, "is not allowed by the request"),
        (request.phase_tools, "is not allowed in the phase"),
        (request.profile_tools, "is not in the project's profile"),
    ):
        if permitted is not None and key not in permitted:
            return Candidate(key, words, fallback=fallback)
    if key in request.disallowed:
        return Candidate(key, "is disallowed", fallback=fallback)
    if incapable := _incapable(tool, request):
        return Candidate(key, incapable, fallback=fallback)
    for shut, words in (
        (not tool.enabled, "is switched off"),
        (not tool.breaker_admits, "its circuit breaker is open"),
        (not tool.slot_free, "has no free slot"),
        (tool.held, "waits for its quota"),
    ):
        if shut:
            return Candidate(key, words, temporary=True, fallback=fallback)
    return Candidate(key, fallback=fallback)


def _by_strategy(
    rule: Rule, candidates: Sequence[Candidate], known: Mapping[str, Tool], stats: Mapping[str, Stats]
) -> Decision:
    strategy = STRATEGY_ALIASES.get(rule.strategy, rule.strategy)
    left = [candidate for candidate in candidates if not candidate.excluded]
    first = left[0].tool
    all_of_them = tuple(candidates)
    if strategy == "manual":
        return Decision(None, strategy, "A person picks the tool", all_of_them)
    if strategy == "round_robin":
        # The cursor counts places, so that two claims in a row take two tools even when one between is shut.
        turns = range(rule.cursor, rule.cursor + len(candidates))
        place = next(place for place in turns if not candidates[place % len(candidates)].excluded)
        taken = candidates[place % len(candidates)].tool
        return Decision(taken, strategy, f"{taken} is next in turn", all_of_them, cursor=place + 1)
    if strategy == "auto":
        scored = tuple(_scored(candidate, stats) for candidate in candidates)
        best = min((c for c in scored if not c.excluded), key=lambda c: _rank(c, known[c.tool]))
        return Decision(best.tool, strategy, f"{best.tool} has the best score, {best.score:.3f}", scored)
    if strategy == "fixed":
        why = "the first that is left" if rule.key else "the first capable tool; no rule matches"
        return Decision(first, strategy, f"{first} is {why}", all_of_them)
    reason = f"{first} is the first that is left; the strategy {rule.strategy!r} is unknown"
    return Decision(first, "fixed", reason, all_of_them, fell_back=True)


def _scored(candidate: Candidate, stats: Mapping[str, Stats]) -> Candidate:
    if candidate.excluded:
        return candidate
    of_tool = stats.get(candidate.tool, Stats())
    interval = wilson(of_tool.successes, of_tool.attempts)
    return replace(candidate, score=score(of_tool), attempts=of_tool.attempts, interval=interval)


def _rank(candidate: Candidate, tool: Tool) -> tuple[float, bool, bool, Decimal, int, str]:
    """Best first: score, then breaker closed, cheaper (an unknown cost is the dearest), order, key."""
    score = round(candidate.score or 0, 9)
    return (-score, not tool.breaker_closed, tool.cost is None, tool.cost or Decimal(0), tool.order, tool.key)


def _by_fallback(rule: Rule, candidates: Sequence[Candidate], request: Request, known: Mapping[str, Tool]) -> Decision:
    judged = [*candidates, *(_judged(key, request, known, fallback=True) for key in rule.fallback_to)]
    for candidate in judged[len(candidates) :]:
        if not candidate.excluded:
            reason = f"{candidate.tool} is the fallback; none of {', '.join(rule.select_from)} is left"
            return Decision(candidate.tool, "fixed", reason, tuple(judged))
    told = "; ".join(f"{candidate.tool} {candidate.excluded}" for candidate in judged)
    raise NoRoutableTool(
        f"No routable tool for {request.task_kind}: {told}",
        candidates=[candidate.document() for candidate in judged],
        rule=rule.key or None,
        temporary=any(candidate.temporary for candidate in judged),
    )


class RouterInvalid(Refused):
    """A router document that cannot be loaded; codes router_missing_apps, router_missing_routing, unknown_tool,
    invalid_strategy."""

    code = "router_missing_apps"
    status = 422


def check_router(document: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The rules of a router document in order, when it may be loaded: `{version, apps, routing, defaults?}`.

    `apps` maps tool key to its description, `routing` is a list of rules or `{rules: [...]}`; a rule has `id` or
    `key`, and what Rule has; aliases in its `match` are resolved as in a TaskSpec. Raises MissingField, InvalidField,
    and RouterInvalid with `router_missing_apps`, `router_missing_routing`, `unknown_tool` or `invalid_strategy`.
    """
    if not isinstance(document, Mapping):
        raise InvalidField("router", "must be an object")
    if not isinstance(document.get("apps"), Mapping):
        raise RouterInvalid("Router document: missing 'apps'")
    routing = document.get("routing")
    listed = routing.get("rules", []) if isinstance(routing, Mapping) else routing
    if not isinstance(listed, list):
        raise RouterInvalid("Router document: missing 'routing'", code="router_missing_routing")
    for key in document:
        if key not in ("version", "apps", "routing", "defaults"):
            raise InvalidField(f"router.{key}", "unknown key")
    if "version" in document and not _SEMVER.fullmatch(str(document["version"])):
        raise InvalidField("router.version", f"must be a semantic version such as 1.0.0, not {document['version']!r}")
    defaults = document.get("defaults", {})
    if not isinstance(defaults, Mapping):
        raise InvalidField("router.defaults", "must be an object")
    strategy = _strategy(defaults.get("strategy", "fixed"), "router.defaults.strategy")
    rules = tuple(_rule(at, told, document["apps"], strategy) for at, told in enumerate(listed))
    keys = [rule.key for rule in rules]
    for key in keys:
        if keys.count(key) > 1:
            raise InvalidField("router.routing", f"two rules are called {key}")
    return rules


def _strategy(given: Any, where: str) -> str:
    strategy = STRATEGY_ALIASES.get(given, given) if isinstance(given, str) else given
    if strategy not in STRATEGIES:
        raise RouterInvalid(
            f"{where}: unknown strategy {given!r}; known are {', '.join(STRATEGIES)}",
            code="invalid_strategy",
            field=where,
            allowed=list(STRATEGIES),
        )
    return str(strategy)


_RULE_KEYS = ("id", "key", "match", "select_from", "fallback_to", "validate_with", "strategy", "required")


def _rule(at: int, told: Any, apps: Mapping[str, Any], default_strategy: str) -> Rule:
    where = f"router.routing[{at}]"
    if not isinstance(told, Mapping):
        raise InvalidField(where, "must be an object")
    for name in told:
        if name not in _RULE_KEYS:
            raise InvalidField(f"{where}.{name}", "unknown key")
    key = told.get("key", told.get("id"))
    if not key:
        raise MissingField(f"{where}.id")
    required = told.get("required", False)
    if not isinstance(key, str) or not isinstance(required, bool):
        raise InvalidField(where, "id must be text and required true or false")
    return Rule(
        key=key,
        match=_match(told.get("match", {}), f"{where}.match"),
        select_from=_tools(told.get("select_from", []), f"{where}.select_from", apps),
        fallback_to=_tools(told.get("fallback_to", []), f"{where}.fallback_to", apps),
        validate_with=_tools(told.get("validate_with", []), f"{where}.validate_with", apps),
        strategy=_strategy(told.get("strategy", default_strategy), f"{where}.strategy"),
        required=required,
    )


def _match(given: Any, where: str) -> dict[str, str | Sequence[str]]:
    if not isinstance(given, Mapping):
        raise InvalidField(where, "must be an object")
    read: dict[str, str | Sequence[str]] = {}
    for predicate, wanted in given.items():
        if predicate not in PREDICATES:
            raise InvalidField(f"{where}.{predicate}", f"unknown predicate; known are {', '.join(PREDICATES)}")
        if not isinstance(wanted, str) and not (isinstance(wanted, list) and all(isinstance(w, str) for w in wanted)):
            raise InvalidField(f"{where}.{predicate}", "must be text or a list of texts")
        aliases = ALIASES.get(predicate, {})
        read[predicate] = (
            aliases.get(wanted, wanted) if isinstance(wanted, str) else [aliases.get(w, w) for w in wanted]
        )
    return read


def _tools(given: Any, where: str, apps: Mapping[str, Any]) -> tuple[str, ...]:
    keys = [given] if isinstance(given, str) else given
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise InvalidField(where, "must be a list of tool keys")
    for key in keys:
        if key not in apps:
            raise RouterInvalid(f"{where}: unknown tool {key}", code="unknown_tool", field=where, tool=key)
    return tuple(dict.fromkeys(keys))
