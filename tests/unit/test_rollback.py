"""Going back by hand: what it lays over the source, what ends it, and that nothing of it is lost on the way."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from reconciler.core import rollback as rules
from reconciler.core.desired import Desired, Snapshot, compile_desired, revision_of, wanted_in
from reconciler.core.parse import Problem, parse_all
from reconciler.core.provenance import Commit, Provenance
from reconciler.core.render import Renderer
from reconciler.core.rollback import ALL, Pinned, Rollback, RollbackError, UnknownRevisionError, Version
from reconciler.core.state import Observed, Record
from reconciler.core.target import Platform
from reconciler.core.weights import Resolution
from reconciler.loop.journal import Versions
from reconciler.loop.rollbacks import (
    FILE,
    RollbackAsked,
    RollbackHand,
    RollbackStore,
    RollbacksUnreadableError,
)

NOW = 1_790_000_000.0
A, B = "models.d/a.yaml", "models.d/b.yaml"
ONE, TWO, THREE = (f"source: {{repo: o/a}}\nengine: {{max_model_len: {n}}}\n" for n in (1, 2, 3))
OTHER = "source: {repo: o/b}\n"
OLD, NEW = "1" * 40, "2" * 40


def snapshot(revision: str = "", **fields: object) -> Snapshot:
    """Files by path; a folder's revision where none is said."""
    files = {f"models.d/{stem}.yaml": str(text).encode() for stem, text in fields.items()}
    return Snapshot(revision or revision_of(files), files, "/m")


def version(
    text: str, revision: str, *, model: str = "a", file: str = A, commit: str = "", pin: str = ""
) -> Version:
    pins = (Pinned(model, f"o/{model}", "main", pin),) if pin else ()
    return Version(model, file, text, revision, NOW - 100, f"digest of {text}{pin}", commit, pins)


def went_back(
    source: Snapshot, *versions: Version, current: Rollback | None = None, to: str | None = None
) -> Rollback:
    return rules.to_version("a", versions, source, current, to=to, now=NOW)


# --- which version ----------------------------------------------------------------------------------------


def test_it_goes_to_the_version_before_the_one_that_is_declared() -> None:
    source = snapshot(a=THREE, b=OTHER)
    kept = [version(THREE, "r3"), version(TWO, "r2"), version(ONE, "r1")]
    found = went_back(source, *kept)
    assert (found.files, found.revision_to, found.revision_from) == ({A: TWO}, "r2", source.revision)
    assert rules.apply(source, [found]).files == {A: TWO.encode(), B: OTHER.encode()}
    assert rules.apply(source, [found]).revision == source.revision
    # Once more is one more back, and then there is nothing left.
    further = went_back(source, *kept, current=found)
    assert further.files == {A: ONE}
    with pytest.raises(RollbackError, match="no version of a before r1 is kept"):
        went_back(source, *kept, current=further)


def test_from_a_version_that_never_served_it_goes_to_the_last_that_did() -> None:
    kept = [version(TWO, "r2"), version(ONE, "r1")]
    assert went_back(snapshot(a=THREE), *kept).files == {A: TWO}
    assert went_back(snapshot(a="sourc: x"), *kept).files == {A: TWO}
    # Or was removed by mistake.
    gone = went_back(snapshot(b=OTHER), *kept)
    assert gone.files == {A: TWO}
    assert rules.apply(snapshot(b=OTHER), [gone]).files == {A: TWO.encode(), B: OTHER.encode()}


def test_a_comment_makes_no_version() -> None:
    assert went_back(snapshot(a=TWO + "# why\n"), version(TWO, "r2"), version(ONE, "r1")).files == {A: ONE}


def test_it_goes_to_the_version_of_a_revision_or_of_the_commit_that_wrote_it() -> None:
    kept = [version(THREE, "3" * 40), version(TWO, "2" * 40, commit="c" * 12), version(ONE, "1" * 40)]
    source = snapshot(a=THREE)
    assert went_back(source, *kept, to="1" * 7).files == {A: ONE}
    assert went_back(source, *kept, to="c" * 8).files == {A: TWO}
    with pytest.raises(UnknownRevisionError, match="kept are those of 333333333333, 222222222222, 111111111111"):
        went_back(source, *kept, to="2" * 6)
    with pytest.raises(RollbackError, match=r"333333333333 is what models.d/a.yaml declares now"):
        went_back(source, *kept, to="3" * 40)


def test_a_folder_that_holds_something_else_now_is_not_taken_back() -> None:
    text = "source: {path: ../weights/a}\n"
    here = "../weights/a"
    source = replace(snapshot(NEW, a=text, b=OTHER), objects={here: "/objects/new"})
    then = replace(version(text, OLD), objects={here: "/objects/old"})
    now = replace(version(text, NEW, commit=OLD[:12]), objects={here: "/objects/new"})
    why = r"\.\./weights/a holds something else now than at 111111111111"
    for to in (None, OLD, OLD[:7]):
        with pytest.raises(RollbackError, match=why):
            went_back(source, now, then, to=to)
    with pytest.raises(RollbackError, match=why):
        rules.to_revision(OLD, {A: text}, [], source, now=NOW, objects={here: "/objects/old"})
    # Of a folder that no file of it names nothing hangs.
    assert rules.to_revision(OLD, {B: OTHER}, [], source, now=NOW, objects={here: "/objects/old"}).model is None
    assert went_back(source, now, replace(version("source: {path: ../weights/a}\ndescription: x\n", "r1"),
                                          objects={here: "/objects/new"})).revision_to == "r1"  # fmt: skip


def test_there_may_be_nothing_to_go_back_to() -> None:
    with pytest.raises(RollbackError, match="no version of a has served yet"):
        went_back(snapshot(a=ONE))
    with pytest.raises(RollbackError, match="cannot be read: Permission denied"):
        went_back(Snapshot("", {}, "/m", unreadable="Permission denied"), version(ONE, "r1"))


def test_a_text_that_is_not_valid_any_more_is_refused() -> None:
    with pytest.raises(RollbackError, match=r"would not do now: models.d/a.yaml:1:1"):
        went_back(snapshot(a=TWO), version(TWO, "r2"), version("sourc: x", "r1"))
    # Its alias is another model's by now.
    with pytest.raises(RollbackError, match=r"would not do now: models.d/a.yaml:3:11: the alias 'b' is also"):
        went_back(snapshot(a=TWO, b=OTHER), version(TWO, "r2"), version(ONE + "aliases: [b]\n", "r1"))


def test_a_file_that_was_renamed_comes_back_under_its_old_name() -> None:
    named = "name: a\n" + TWO
    kept = [version(named, "r2", file="models.d/c.yaml"), version(ONE, "r1")]
    source = snapshot(c=named, b=OTHER)
    found = went_back(source, *kept)
    assert rules.apply(source, [found]).files == {A: ONE.encode(), B: OTHER.encode()}
    assert not rules.why_ended(found, source, NOW)
    # Who declares another model in the old place, or changes the new one, ends it.
    assert (
        rules.why_ended(found, snapshot(c=named + "\n", b=OTHER), NOW) == "models.d/c.yaml changed in the source"
    )
    with pytest.raises(RollbackError, match="declares another model by now"):
        went_back(snapshot(c=named, a="name: x\n" + OTHER), *kept)


# --- how long ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (snapshot(a=THREE, b=OTHER), ""),
        (snapshot("another", a=THREE, b=ONE), ""),
        (snapshot(a=THREE + "\n", b=OTHER), f"{A} changed in the source"),
        (snapshot(b=OTHER), f"{A} was removed in the source"),
        (Snapshot("", {}, "/m", unreadable="gone"), ""),
        (Snapshot("r", {B: b""}, "/m", problems=(Problem(A, 1, 1, "Permission denied"),)), ""),
    ],
)
def test_that_of_a_model_ends_when_its_own_file_changes(changed: Snapshot, why: str) -> None:
    found = went_back(snapshot(a=THREE, b=OTHER), version(THREE, "r3"), version(TWO, "r2"))
    assert rules.why_ended(found, changed, NOW + 1) == why


def test_that_of_all_ends_with_the_next_revision() -> None:
    source = snapshot("r2", a=TWO, b=OTHER)
    found = rules.to_revision("r1", {A: ONE}, [version(ONE, "r1", pin=OLD)], source, now=NOW)
    assert rules.apply(source, [found]).files == {A: ONE.encode()}
    assert found.pins == (Pinned("a", "o/a", "main", OLD),)
    assert not rules.why_ended(found, source, NOW)
    assert rules.why_ended(found, snapshot("r3", a=TWO, b=OTHER), NOW) == "the source moved on to r3"
    assert not rules.why_ended(found, Snapshot("", {}, "/m", unreadable="gone"), NOW)
    with pytest.raises(RollbackError, match="is what the source says now"):
        rules.to_revision("r2", {A: ONE}, [], source, now=NOW)
    with pytest.raises(RollbackError, match="declares no model"):
        rules.to_revision("r1", {A: "{"}, [], source, now=NOW)


def test_an_unreadable_source_stays_unreadable() -> None:
    source = Snapshot("", {}, "/m", unreadable="gone")
    found = went_back(snapshot(a=THREE), version(THREE, "r3"), version(TWO, "r2"))
    assert rules.apply(source, [found]) is source


def test_that_of_a_model_goes_before_that_of_all() -> None:
    source = snapshot("r3", a=THREE, b=OTHER)
    one = went_back(source, version(THREE, "r3"), version(TWO, "r2"))
    everything = rules.to_revision("r1", {A: ONE, B: OTHER}, [], source, now=NOW)
    for order in ([one, everything], [everything, one]):
        laid_over = rules.apply(source, order)
        assert laid_over.files == {A: TWO.encode(), B: OTHER.encode()}
        assert laid_over.taken_back == {A: "r2", B: "r1"}


def test_nobody_is_named_for_a_text_that_is_not_the_newest() -> None:
    commit = Commit("9" * 40, "Eve", 0.0, "breaks it")
    newest = Provenance("u", "main", commit, changed={A: commit, B: commit})
    desired = Desired(revision="r3", provenance=newest, taken_back={A: "r2"})
    assert (desired.revision_of(A), desired.changed_last(A)) == ("r2", None)
    assert (desired.revision_of(B), desired.changed_last(B)) == ("r3", commit)


def test_it_is_said_what_it_was_and_when_it_ends() -> None:
    found = went_back(snapshot("9" * 40, a=THREE), version(THREE, "9" * 40), version(TWO, "3fa9c1d2e0aabbcc"))
    assert rules.in_words(found, NOW) == (
        "it was rolled back by hand to 3fa9c1d2e0aa (before: 999999999999); "
        "ends when models.d/a.yaml changes in the source"
    )
    assert [(note.model, note.text[:23]) for note in rules.notes([found], NOW)] == [
        ("a", "it was rolled back by h")
    ]


# --- the same commit ----------------------------------------------------------------------------------------


def test_the_text_with_a_branch_goes_back_to_the_commit_that_it_was() -> None:
    """`revision: main` names another commit by now: without the pins the old text would be a new version."""
    source = snapshot(a=TWO)
    renderer = Renderer(
        (Path(__file__).parents[2] / "templates" / "application.json.j2").read_text(encoding="utf-8"),
        Platform(hub_cache="/cache"),
    )

    def compiled(files: Snapshot, commit: str, rollbacks: tuple[Rollback, ...] = ()) -> tuple[str, Version | None]:
        wanted = wanted_in(parse_all(files.files))
        found = {each: Resolution(commit) for each in wanted} | rules.resolutions(rollbacks, wanted)
        desired = compile_desired(files, renderer, found)
        target = desired.targets["a"]
        records = {"a": Record("a", A, target.application, target.fields)}
        observed = Observed(records=records, now=NOW)
        return target.application, rules.version_of("a", desired, observed, files.files)

    first, then = compiled(snapshot(a=ONE), OLD)
    assert then is not None
    assert then.pins == (Pinned("a", "o/a", "main", OLD),)
    _, now = compiled(source, NEW)
    assert now is not None
    back = went_back(source, now, then)
    laid_over = rules.apply(source, [back])
    assert compiled(laid_over, NEW, (back,))[0] == first
    assert compiled(laid_over, NEW)[0] != first


def test_where_only_a_branch_moved_the_text_is_the_same_and_the_commit_is_not() -> None:
    tracked = ONE.replace("o/a", "o/a, track: true")
    kept = [version(tracked, "r1", pin=NEW), version(tracked, "r1", pin=OLD)]
    back = went_back(snapshot(a=tracked), *kept)
    assert back.pins == (Pinned("a", "o/a", "main", OLD),)


# --- the store ----------------------------------------------------------------------------------------------


def test_what_was_given_outlives_a_restart_and_ends_with_an_event(tmp_path: Path) -> None:
    source = snapshot(a=THREE, b=OTHER)
    woken: list[bool] = []
    store = RollbackStore(tmp_path, wall_clock=lambda: NOW)
    store.wake = lambda: woken.append(True)
    with capture_logs() as logs:
        store.give(went_back(source, version(THREE, "r3"), version(TWO, "r2")))
    assert [event["event"] for event in logs] == ["rollback.given"]
    assert woken == [True]
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    again = RollbackStore(tmp_path, wall_clock=lambda: NOW)
    assert again.active() == store.active()
    assert again.apply(source).files[A] == TWO.encode()
    with capture_logs() as logs:
        assert again.apply(snapshot(a=ONE, b=OTHER)).files[A] == ONE.encode()
    assert [(event["event"], event["why"]) for event in logs] == [("rollback.ended", f"{A} changed in the source")]
    # It does not come back when the file does.
    assert again.apply(source) == source
    assert RollbackStore(tmp_path).active() == ()


def test_one_who_only_looks_leaves_the_file_alone(tmp_path: Path) -> None:
    source = snapshot(a=THREE)
    RollbackStore(tmp_path).give(went_back(source, version(THREE, "r3"), version(TWO, "r2")))
    before = (tmp_path / FILE).read_bytes()
    with capture_logs() as logs:
        looks = RollbackStore(tmp_path, read_only=True)
        assert looks.apply(snapshot(a=ONE)).files[A] == ONE.encode()
    assert not logs
    assert (tmp_path / FILE).read_bytes() == before


def test_its_time_may_be_limited(tmp_path: Path) -> None:
    clock = [NOW]
    source = snapshot(a=THREE)
    hand = the_hand(tmp_path, source, clock, version(THREE, "rrrrrrr3"), version(TWO, "rrrrrrr2"))
    given = asyncio.run(hand.carry_out(RollbackAsked(model="a", seconds=60, reason="too slow")))
    assert given.until == NOW + 60
    assert given.text.endswith("changes in the source, or in 1 min; too slow")
    store = RollbackStore(tmp_path, wall_clock=lambda: clock[0])
    clock[0] += 59
    assert store.apply(source).files[A] == TWO.encode()
    clock[0] += 1
    assert store.apply(source) == source


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"model": "a"}]', "[" * 100_000])
def test_a_file_that_nobody_can_read_stops_the_start(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(RollbacksUnreadableError, match="mend it, or remove it"):
        RollbackStore(tmp_path)


def test_a_disk_that_is_full_gives_no_rollback_and_ends_one_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = snapshot(a=THREE)
    found = went_back(source, version(THREE, "r3"), version(TWO, "r2"))
    store = RollbackStore(tmp_path)
    store.give(found)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("reconciler.loop.rollbacks.write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        store.end("a")
    assert store.active() == (found,)
    with capture_logs() as logs:
        assert store.apply(snapshot(a=ONE)).files[A] == ONE.encode()
    assert {event["event"] for event in logs} == {"rollback.ended", "rollbacks.unsaved"}
    with pytest.raises(OSError, match="No space"):
        store.give(found)
    assert store.active() == ()


# --- the command --------------------------------------------------------------------------------------------


def the_hand(
    folder: Path,
    source: Snapshot,
    clock: list[float],
    *kept: Version,
    at: Callable[[str], Awaitable[Snapshot]] | None = None,
) -> RollbackHand:
    versions = Versions(folder)
    for each in reversed(kept):
        versions.add(each)

    async def read() -> Snapshot:
        return source

    store = RollbackStore(folder, wall_clock=lambda: clock[0])
    return RollbackHand(store, versions, read, at, wall_clock=lambda: clock[0])


@pytest.fixture
def hand(tmp_path: Path) -> RollbackHand:
    source = snapshot(a=THREE + "aliases: [chat]\n", b=OTHER)
    return the_hand(
        tmp_path, source, [NOW], version(THREE + "aliases: [chat]\n", "rrrrrrr3"), version(TWO, "rrrrrrr2")
    )


async def test_a_command_is_carried_out_and_ended(hand: RollbackHand, tmp_path: Path) -> None:
    given = await hand.carry_out(RollbackAsked(model="chat"))
    assert (given.about, given.revision, given.files) == ("a", "rrrrrrr2", (A,))
    assert json.loads((tmp_path / FILE).read_text())[0]["files"] == {A: TWO}
    ended = await hand.carry_out(RollbackAsked(model="a", end=True))
    assert ended.text == "the rollback to rrrrrrr2 has ended; the source holds again"
    assert RollbackStore(tmp_path).active() == ()
    with pytest.raises(RollbackError, match="a was not rolled back"):
        await hand.carry_out(RollbackAsked(model="a", end=True))
    with pytest.raises(RollbackError, match="the models together were not rolled back"):
        await hand.carry_out(RollbackAsked(end=True))


async def test_an_unknown_name_is_told_its_near_ones(hand: RollbackHand) -> None:
    with pytest.raises(RollbackError) as caught:
        await hand.carry_out(RollbackAsked(model="chatt"))
    assert caught.value.near == ("chat",)


async def test_all_models_go_back_to_a_revision_that_was_kept(hand: RollbackHand, tmp_path: Path) -> None:
    earlier = snapshot(a=ONE)
    Versions(tmp_path).add_revision(earlier)
    given = await hand.carry_out(RollbackAsked(to=earlier.revision[:8]))
    assert (given.about, given.revision, given.files) == (ALL, earlier.revision, (A,))
    store = RollbackStore(tmp_path)
    assert store.apply(await hand._source()).files == earlier.files
    # One model may go back to what it was at a revision that was another's.
    await hand.carry_out(RollbackAsked(end=True))
    await hand.carry_out(RollbackAsked(model="a", to=earlier.revision))
    assert RollbackStore(tmp_path).apply(await hand._source()).files == {A: ONE.encode(), B: OTHER.encode()}
    with pytest.raises(UnknownRevisionError, match=f"revision deadbeef is not kept; kept are: {earlier.revision}"):
        await hand.carry_out(RollbackAsked(to="deadbeef"))


async def test_a_source_with_a_history_gives_the_files_of_any_revision(tmp_path: Path) -> None:
    async def at(revision: str) -> Snapshot:
        if revision == "v1":
            return snapshot(OLD, a=ONE, b=OTHER)
        return Snapshot("", {}, "/m", unreadable=f"no commit is called {revision}")

    hand = the_hand(
        tmp_path, snapshot(NEW, a=THREE), [NOW], version(THREE, NEW), version(ONE, "0" * 40, pin=OLD), at=at
    )
    given = await hand.carry_out(RollbackAsked(to="v1"))
    assert (given.revision, given.files) == (OLD, (A, B))
    await hand.carry_out(RollbackAsked(model="a", to="v1"))
    assert {each.about for each in hand._store.active()} == {ALL, "a"}
    # What was read then is read again, though that commit of the source was not the one that brought it.
    assert [each.pins for each in hand._store.active()] == 2 * [(Pinned("a", "o/a", "main", OLD),)]
    with pytest.raises(RollbackError, match="no commit is called v2"):
        await hand.carry_out(RollbackAsked(model="a", to="v2"))
    with pytest.raises(RollbackError, match="no model file declares or declared 'c'"):
        await hand.carry_out(RollbackAsked(model="c", to="v1"))


async def test_a_newer_rollback_of_all_takes_those_of_models_with_it(hand: RollbackHand, tmp_path: Path) -> None:
    await hand.carry_out(RollbackAsked(model="a"))
    earlier = snapshot(a=ONE, b=OTHER)
    Versions(tmp_path).add_revision(earlier)
    await hand.carry_out(RollbackAsked(to=earlier.revision))
    assert [each.about for each in RollbackStore(tmp_path).active()] == [ALL]
