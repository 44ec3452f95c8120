"""Room for a model that is to come up: beside what is there, or in place of models that may leave. Pure.

Who may leave, in this order; never one that is pinned, or that comes up for requests of its own:

0. models that are leaving already, or that come up though nobody waits for them any more;
1. idle ones that have stayed their `min_stay`;
2. where these are not enough, ones in use (a moment ago counts) that had their turn: new requests for them wait
   from then on, those in flight are answered to the last byte. A turn lasts `min_stay`, and as long as the next
   model takes to load, so that two models that fight for one GPU spend no more time on loading than on answering.

Of those the smallest sufficient set leaves: the least important first (`priority`), then the fewest, then those
that were used longest ago.
"""

import bisect
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from reconciler.core.main_memory import PROCESSES, source_of
from reconciler.core.memory_plan import memory_of
from reconciler.core.residency import last_serving, pin_ends_in
from reconciler.core.spec import parse_duration
from reconciler.core.state import Application, Status
from reconciler.core.target import Target
from reconciler.core.turn import Turn
from reconciler.core.want import Want, Wish
from reconciler.core.weights import in_words
from reconciler.core.words import in_time

_MOST_WEIGHED = 12
"""Candidates among which every small set is tried; beyond, one after the other leaves until it is enough."""
_LARGEST_SET_WEIGHED = 3
_MOST_NAMED = 3
IN_USE_SECONDS = 10.0
"""For so long after a request a model counts as in use: whoever asked may be about to ask again."""


class Place(Enum):
    """What there is for a model that is to come up."""

    HERE = "here"
    """Room, now."""
    SOON = "soon"
    """Room, once what leaves is gone."""
    QUEUED = "queued"
    """Room, once somebody may leave."""
    NEVER = "never"
    """No room, whoever leaves of those that may."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may leave.

    Attributes:
        rank: The lower, the sooner; see the module's docstring.
        idle: Seconds since it was last used.
    """

    model: str
    names: tuple[str, ...]
    rank: int
    priority: int
    idle: float
    in_flight: int


def find_place(turn: Turn, target: Target, want: Want) -> tuple[Place, str]:
    """Where `target` finds room, with a reason where it has to wait; models that have to leave are told so.

    Its own versions that are there count as gone: they make way for it.
    """
    place, why = _find(turn, target, want)
    if place is Place.HERE and not turn.has_slot():
        _take_slot(turn, target)
    if place is Place.QUEUED:
        turn.queue(target)
    return place, why


def _find(turn: Turn, target: Target, want: Want) -> tuple[Place, str]:
    gone = {*turn.leaving, *(app.name for app in turn.live.get(target.model, ()))}
    mates = mates_of(turn, target)
    rivals = [model for model in mates if model in turn.live or model in turn.reserved]
    rivals = [model for model in rivals if model not in turn.sent_away]
    later = gone | _names(turn, _leaves_one_day(turn, target))
    if elder := turn.in_the_way_of(target, later):
        return Place.QUEUED, f"queued behind {elder}"
    if not mates and turn.has_room(target):
        return Place.HERE, ""
    if not rivals and turn.has_room(target, gone):
        return Place.SOON, "waits until what leaves is gone"
    return _find_by_sending_away(turn, target, want, rivals, gone)


def _find_by_sending_away(
    turn: Turn, target: Target, want: Want, rivals: Sequence[str], gone: set[str]
) -> tuple[Place, str]:
    if reason := no_room_ever(turn, target):
        return Place.NEVER, reason
    free = [model for model in _movable(turn, target) if model not in turn.planned]
    everyone = [each for model in free if (each := _candidate(turn, model, target, want)) is not None]
    slot = turn.has_slot(for_later=True)
    # Nobody is sent away for a model that then waits for another one's load; who leaves already makes room anyhow.
    candidates = [each for each in everyone if slot or each.rank == 0]
    chosen = _who_leaves(turn, target, candidates, gone, rivals)
    if chosen is None and not slot:
        if _who_leaves(turn, target, everyone, gone, rivals) is not None:
            _take_slot(turn, target)
        return Place.QUEUED, "queued behind another load"
    if chosen is None and _something_goes(turn):
        return Place.QUEUED, "waits until what is being deleted is gone"
    if chosen is None:
        return Place.QUEUED, _in_use(rivals or _leaves_one_day(turn, target) or [*turn.reserved])
    for each in chosen:
        turn.send_away(each.model, _why(target, each))
    return Place.SOON, f"waits until {', '.join(each.model for each in chosen) or 'what leaves'} made room"


def no_room_at_rest(turn: Turn, target: Target) -> str:
    """The same for a model of which nothing is there, found out once for all that need the same.

    Main memory is not looked at: how much of it is free changes with everything else on the machine.
    """
    if not target.demand.gpus:
        return ""
    if target.spec.lifecycle.group is not None:
        return no_room_ever(turn, target)
    key = (target.demand, turn.memory.of(target.config), target.spec.lifecycle.wait_timeout)
    if key not in turn.no_room:
        turn.no_room[key] = no_room_ever(turn, target)
    return turn.no_room[key]


def no_room_ever(turn: Turn, target: Target) -> str:
    """Why `target` finds no room whoever leaves of those that may; empty where it may find some."""
    others = turn.wants.keys() - {target.model}
    evictable = {model for model in others if _may_leave_in_time(turn, model, target)}
    stuck = [
        model
        for model in mates_of(turn, target)
        if model not in evictable and (model in turn.live or model in turn.reserved)
    ]
    if stuck:
        return f"{', '.join(stuck)} of its group {target.spec.lifecycle.group} is up and may not leave"
    if turn.has_room(target) or _something_goes(turn):
        return ""
    gone = {*turn.leaving, *(app.name for app in turn.live.get(target.model, ()))}
    if turn.could_have_room(target, gone | _names(turn, _leaves_one_day(turn, target)), evictable):
        return ""
    reason = _shortage(turn, target)
    pinned = sorted(
        model
        for model in turn.live.keys() | turn.reserved.keys()
        if model != target.model and model not in evictable
    )
    return reason + (f"; {', '.join(pinned[:_MOST_WEIGHED])} may not leave" if pinned else "")


def _something_goes(turn: Turn) -> bool:
    """An application is being deleted of which a reconciler that has just started cannot tell what it holds."""
    return any(app.status is Status.DELETING and app.model is None for app in turn.observed.applications.values())


def mates_of(turn: Turn, target: Target) -> list[str]:
    """Models of its group of which anything is there, or that come up in this turn."""
    group = target.spec.lifecycle.group
    if group is None:
        return []
    there = {app.model for app in turn.observed.applications.values()} | turn.reserved.keys()
    return sorted(
        model
        for model, other in turn.desired.targets.items()
        if model in there and model != target.model and other.spec.lifecycle.group == group
    )


def _movable(turn: Turn, target: Target) -> list[str]:
    """Models that are there and may be asked to leave, now or later, and do not leave yet."""
    return [model for model in _leaves_one_day(turn, target) if not turn.wants[model].pinned]


def _leaves_one_day(turn: Turn, target: Target) -> list[str]:
    """The same, with those that are kept up by hand for so short a time that it can be waited for."""
    return [
        model
        for model in turn.live
        if model != target.model
        and model not in turn.sent_away
        and model in turn.wants
        and _may_leave_in_time(turn, model, target)
    ]


def _may_leave_in_time(turn: Turn, model: str, target: Target) -> bool:
    """It is not pinned, or by hand only, to an end that a request for `target` lives to see."""
    if not turn.wants[model].pinned:
        return True
    if turn.wants[target.model].wish is not Wish.REST and target.model not in turn.observed.waiting:
        return False  # No request is asking, so nobody says for how long to wait.
    ends_in = pin_ends_in(turn, turn.desired.targets[model])
    return ends_in is not None and ends_in < parse_duration(target.spec.lifecycle.wait_timeout)


def _take_slot(turn: Turn, target: Target) -> None:
    """Have a load that nobody waits for any more give way to `target`, which finds all places for loads taken."""
    for model, apps in turn.live.items():
        want = turn.wants.get(model)
        if want is None or want.wish is not Wish.STAY or want.pinned or last_serving(turn, model) is not None:
            continue
        loads = [app for app in apps if turn.takes_slot(app)]
        # Who has left may be about to ask again.
        unasked = all(turn.observed.idle_seconds.get(app.name, 0.0) >= IN_USE_SECONDS for app in loads)
        if loads and unasked and model not in turn.sent_away and model not in turn.planned:
            turn.send_away(model, f"nobody waits for it any more, and {target.model} waits for its place to load")
            return


def _names(turn: Turn, models: Iterable[str]) -> set[str]:
    return {app.name for model in models for app in turn.live[model]}


def _who_leaves(
    turn: Turn, target: Target, candidates: Iterable[Candidate], gone: set[str], rivals: Sequence[str]
) -> list[Candidate] | None:
    """The smallest set without which there is room; None where those that may leave now are not enough."""
    order = sorted(candidates, key=lambda each: (each.rank, each.priority, -each.idle, each.model))
    must = [each for each in order if each.model in rivals]
    if len(must) < len(rivals):
        return None

    def enough(chosen: Iterable[Candidate]) -> bool:
        return turn.has_room(target, gone | {name for each in (*must, *chosen) for name in each.names})

    chosen = _smallest([each for each in order if each not in must], enough)
    return None if chosen is None else [*must, *chosen]


def _candidate(turn: Turn, model: str, target: Target, want: Want) -> Candidate | None:
    """`model` as one that may leave now for `target`; None where it has to stay for the time being."""
    app = last_serving(turn, model)
    rank = _rank_of(turn, model, app, target, want)
    if rank is None:
        return None
    name = app.name if app is not None else ""
    return Candidate(
        model=model,
        names=tuple(each.name for each in turn.live[model]),
        rank=rank,
        priority=turn.desired.targets[model].spec.lifecycle.priority,
        idle=turn.observed.idle_seconds.get(name, 0.0),
        in_flight=(turn.observed.in_flight or {}).get(name, 0),
    )


def _rank_of(turn: Turn, model: str, app: Application | None, target: Target, want: Want) -> int | None:
    other, observed = turn.wants[model], turn.observed
    record = turn.record(model)
    if record is not None and record.previous is not None:
        return None  # It is being replaced, and has no other version to fall back to.
    if other.wish is Wish.REST:
        return 0  # It goes anyway.
    if app is None or turn.routed(model) != app.name:
        is_next = app is not None and (want.pinned or other.since <= want.since)
        return 0 if other.wish is not Wish.UP or is_next else None
    stayed = observed.up_seconds.get(app.name, 0.0)
    least = parse_duration(turn.desired.targets[model].spec.lifecycle.min_stay)
    if observed.in_flight is None or stayed < least:
        return None
    quiet = observed.idle_seconds.get(app.name, 0.0) >= IN_USE_SECONDS and not observed.in_flight.get(app.name, 0)
    if quiet and model not in observed.waiting:
        return 1
    # For a new version that nobody waits for, what is in use is not interrupted. For others a turn lasts as long
    # whoever waits, so that the first in the queue gets the first grip.
    needed = want.wish is Wish.UP or want.pinned
    turn_length = max(observed.load_seconds.get(name, 0.0) for name in (target.model, *turn.queue_of()))
    return 2 if needed and stayed >= turn_length else None


def _smallest(order: Sequence[Candidate], enough: Callable[[Iterable[Candidate]], bool]) -> list[Candidate] | None:
    """The smallest set that is enough, of candidates in the order in which they leave; None where all are not."""
    if enough(()):
        return []
    if not enough(order):
        return None
    number = 1 + bisect.bisect_left(range(1, len(order)), True, key=lambda number: enough(order[:number]))
    # Who is no more important than the last that is needed if one after the other leaves.
    prefix, last = list(order[:number]), order[number - 1]
    tier = [each for each in order if (each.rank, each.priority) <= (last.rank, last.priority)]
    if len(tier) <= _MOST_WEIGHED:
        for size in range(1, min(number, _LARGEST_SET_WEIGHED + 1)):
            for chosen in itertools.combinations(tier, size):
                if enough(chosen):
                    return list(chosen)
    # Whoever went in vain stays, the most important first.
    for each in reversed(prefix[:-1]):
        fewer = [other for other in prefix if other is not each]
        if enough(fewer):
            prefix = fewer
    return prefix


def _why(target: Target, each: Candidate) -> str:
    use = f"{each.in_flight} in flight" if each.in_flight else f"idle {in_time(each.idle)}"
    use += ", had its turn" if each.rank == 2 or each.in_flight else ""  # noqa: PLR2004 -- in use
    return f"{use}, priority {each.priority}, to make {amount(target)} for {target.model}"


def amount(target: Target) -> str:
    """What a version needs, in words: memory where it is known, else GPUs."""
    memory = memory_of(target)
    if memory is not None:
        each = in_words(memory.needed)
        return f"{memory.ranks} x {each}" if memory.ranks > 1 else each
    return _gpus(target) if target.demand.gpus else "room"


def _gpus(target: Target) -> str:
    demand = target.demand
    what = f"{demand.ranks} x {demand.gpus:g} GPU" if demand.ranks > 1 else f"{demand.gpus:g} GPU"
    return what + (f" of type {demand.accelerator}" if demand.accelerator else "")


def _shortage(turn: Turn, target: Target) -> str:
    everyone = [app.name for apps in turn.live.values() for app in apps]
    if not turn.fits_without(target.demand, everyone) or turn.memory.left() is None or target.demand.gpus:
        return f"it needs {_gpus(target)}; {turn.describe_free()}"
    needed, left = turn.memory.of(target.config), max(0, turn.memory.left() or 0)
    weights = turn.observed.folder_bytes.get(source_of(target.config), 0)
    return (
        f"it needs {in_words(needed)} of main memory (weights {in_words(weights)}, KV cache "
        f"{in_words(needed - weights - PROCESSES)}, processes {in_words(PROCESSES)}), and {in_words(left)} are "
        "left; a smaller engine.kv_cache_memory_gib may do"
    )


def _in_use(models: Sequence[str]) -> str:
    """What a model waits for that finds no room yet; the same words for as long as it waits for the same."""
    names = sorted(models)
    more = f" or {len(names) - _MOST_NAMED} others" if len(names) > _MOST_NAMED else ""
    return f"waits for room: {' or '.join(names[:_MOST_NAMED])}{more} has to leave first, once it may"
