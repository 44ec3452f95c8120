"""The journal: what is written down of a life of the simulated world, and what becomes of it on a real disk."""

import json
import os
import random
import stat
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

sys.path.insert(0, str(Path(__file__).parents[1]))  # The simulator is a package beside this folder.

from simulation.world import BUILD, TEMPLATE, World, model_file

from reconciler.core.desired import Desired, Snapshot
from reconciler.core.diff import Effect, FieldChange
from reconciler.core.journal import QUIET_SECONDS, Book
from reconciler.core.journal_entry import (
    MAX_TEXT,
    By,
    Entry,
    Outcome,
    cleaned,
    field_of,
    iso_of,
    looks_secret,
    moment,
)
from reconciler.core.overrides import Kind, Override
from reconciler.core.plan import Plan
from reconciler.core.provenance import Commit, Provenance
from reconciler.core.rollback import Rollback, Version, digest_of
from reconciler.core.rollback import apply as roll_back
from reconciler.core.state import Observed
from reconciler.core.turn import Options
from reconciler.loop import journal as shell
from reconciler.loop import memory
from reconciler.loop.journal import FOLDER, KEPT_REVISIONS, KEPT_VERSIONS, NEWEST, OLDER, Journal, Versions, read

ADA = Commit("a" * 40, "Ada", 1.0, "Longer context")
TIP = Commit("b" * 40, "Bob", 2.0, "Something else")


@dataclass
class Recorded(World):
    """A world whose loop keeps a journal."""

    provenance: Provenance | None = None

    def start_process(self) -> None:
        super().start_process()
        self.journal = Journal(self.folder, wall_clock=lambda: self.now)

    def _act(self, plan: Plan, desired: Desired, observed: Observed) -> None:
        held = tuple(self.rollbacks.values())
        files = roll_back(self.source, held).files
        snapshot = Snapshot(desired.revision, files, "/models", provenance=self.provenance)
        self.journal.note(desired, observed, plan, snapshot, held)
        super()._act(plan, desired, observed)

    def entries(self, model: str = "") -> list[Entry]:
        return [entry for entry in read(self.folder) if not model or entry.model == model]

    def told(self, model: str = "") -> list[str]:
        """Each entry in short."""
        return [f"{entry.what} {entry.outcome}" for entry in self.entries(model)]


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    monkeypatch.setattr(memory, "write_atomic", write)
    monkeypatch.setattr(shell, "write_atomic", write)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Recorded]:
    count = 0

    def made(**options: object) -> Recorded:
        nonlocal count
        count += 1
        folder = tmp_path / f"state{count}"
        folder.mkdir()
        return Recorded(folder, **options)  # type: ignore[arg-type]  # the world's own fields

    return made


# --- what is written down ---------------------------------------------------------------------------------


def test_a_change_is_noted_once_when_it_is_new_and_once_when_it_ended(make: Callable[..., Recorded]) -> None:
    world = make()
    world.edit(a=model_file())
    world.settle()
    first, last = world.entries("a")
    assert (first.what, first.outcome, first.by, first.file) == ("add", "started", "file", "models.d/a.yaml")
    assert (first.cause, first.new) == ("models.d/a.yaml declares it", world.target("a"))
    assert (last.outcome, last.since, last.revision) == ("done", first.at, first.revision)
    assert last.seconds == pytest.approx(moment(last.at) - moment(first.at))
    assert last.seconds is not None
    assert last.seconds > 1
    for _ in range(50):
        world.turn()
        world.tick()
    assert len(world.entries()) == 2


def test_the_commit_that_changed_the_file_and_its_author_are_named(make: Callable[..., Recorded]) -> None:
    world = make()
    world.edit(a=model_file(), b=model_file())
    world.settle()
    world.provenance = Provenance("url", "main", TIP, {"models.d/a.yaml": ADA})
    world.edit(a=model_file(2048))
    world.settle()
    started = world.entries("a")[-2]
    assert (started.what, started.commit, started.author, started.subject) == (
        "replace", "a" * 12, "Ada", "Longer context",
    )  # fmt: skip
    assert [(field.path, field.old, field.new) for field in started.fields] == [
        ("engine.max_model_len", 1024, 2048)
    ]
    gone = {"models.d/b.yaml": TIP}
    world.provenance = Provenance("url", "main", ADA, {}, removed=gone)
    world.edit(b=None)
    world.settle()
    removed = world.entries("b")[-1]
    assert (removed.what, removed.outcome, removed.commit, removed.cause) == (
        "remove", "done", "b" * 12, "models.d/b.yaml is gone",
    )  # fmt: skip


def test_nobody_is_named_where_the_source_cannot_tell_who_it_was(make: Callable[..., Recorded]) -> None:
    world = make()
    world.provenance = Provenance("url", "main", TIP, {})
    world.edit(a=model_file())
    world.settle()
    assert {(each.commit, each.author, each.subject) for each in world.entries("a")} == {("", "", "")}


def test_a_newer_version_supersedes_one_that_was_under_way(make: Callable[..., Recorded]) -> None:
    world = make()
    world.edit(a=model_file())
    world.settle()
    world.edit(a=model_file(2048))
    for _ in range(3):
        world.turn()
        world.tick()
    world.edit(a=model_file(4096))
    world.settle()
    assert world.told("a") == [
        "add started", "add done", "replace started", "replace superseded", "replace started", "replace done",
    ]  # fmt: skip
    superseded = world.entries("a")[3]
    assert "models.d/a.yaml changed" in superseded.reason
    assert world.desired.revision[:12] in superseded.reason


def test_a_failure_is_noted_with_its_reason_and_not_again_at_every_retry(make: Callable[..., Recorded]) -> None:
    world = make()
    world.edit(a=model_file())
    world.settle()
    world.edit(a=model_file(2048))
    world.faults = {"a": BUILD}
    for _ in range(600):
        world.turn()
        world.tick(5)
    failures = world.memory.failures[world.target("a")]
    assert failures.attempts > 3
    told = world.told("a")
    assert told[2:] == ["replace started", "replace failed"], told
    assert failures.reason.splitlines()[0][:20] in world.entries("a")[3].reason
    # That it came up after all is news.
    world.faults = {}
    for _ in range(200):
        world.turn()
        world.tick(5)
    assert world.serves("a")
    assert world.told("a")[4:] == ["replace done"]


def test_an_invalid_file_is_a_hold_and_over_once_it_was_away_for_a_while(make: Callable[..., Recorded]) -> None:
    world = make()
    world.edit(a=model_file(), b=model_file())
    world.settle()
    valid = world.files["models.d/a.yaml"]
    world.edit(a="sourc: {repo: o/m}\n")
    world.settle()
    held = world.entries("a")[-1]
    assert (held.what, held.outcome, held.kind) == ("hold", "held", "invalid file")
    assert "models.d/a.yaml:1:1" in held.cause
    before = len(world.entries())
    for text in (valid, "sourc: {repo: o/m}\n") * 5:
        world.edit(a=text)
        world.settle()
        world.tick(10)
    assert len(world.entries()) == before, "it comes and goes, which is one hold"
    world.edit(a=valid)
    world.settle()
    world.tick(QUIET_SECONDS)
    world.turn()
    assert world.entries("a")[-1].outcome == "over"
    assert world.entries("a")[-1].since == held.at


def test_a_refusal_names_the_models_and_the_flag(make: Callable[..., Recorded]) -> None:
    world = make()
    world.edit(a=model_file(), b=model_file(), c=model_file())
    world.settle()
    world.edit(a=None, b=None)
    world.settle()
    refusal = world.entries()[-1]
    assert (refusal.what, refusal.outcome, refusal.by) == ("refusal", "refused", "safety")
    assert refusal.models == ("a", "b")
    assert refusal.kind == "--dangerous-allow-removals"
    assert "more than half" in refusal.cause
    # With it the removals are what was meant.
    world.options = Options(allow_removals=True)
    world.settle()
    assert world.told("a")[-2:] == ["remove started", "remove done"]


def test_an_unreadable_source_ends_nothing(make: Callable[..., Recorded]) -> None:
    world = make()
    world.edit(a=model_file())
    world.turn()
    world.unreadable = "Permission denied"
    for _ in range(30):
        world.turn()
        world.tick()
    assert [entry.outcome for entry in world.entries()] == ["started", "refused"]
    world.unreadable = ""
    world.settle()
    assert world.told("a") == ["add started", "add done"]


def test_traffic_and_idleness_and_commands_say_by_whom(make: Callable[..., Recorded]) -> None:
    world = make()
    world.edit(a=model_file(policy="on_demand", lifecycle="idle_timeout: 1m"))
    world.settle()
    world.ask("a")
    world.settle()
    world.until(lambda: not world.apps, turns=400)
    world.settle()
    loads = [(entry.what, entry.outcome, entry.by) for entry in world.entries("a")]
    assert loads == [
        ("load", "started", "traffic"), ("load", "done", "traffic"),
        ("unload", "started", "traffic"), ("unload", "done", "traffic"),
    ]  # fmt: skip
    assert world.entries("a")[2].cause.startswith("idle ")
    world.overrides["a"] = Override("a", Kind.PIN, world.now, world.now + 50)
    world.settle()
    assert [(e.what, e.outcome, e.by) for e in world.entries("a")[4:]] == [
        ("pin", "given", "hand"), ("load", "started", "hand"), ("load", "done", "hand"),
    ]  # fmt: skip
    world.tick(60)
    world.turn()
    ended = next(entry for entry in world.entries("a") if entry.outcome is Outcome.ENDED)
    assert (ended.what, ended.reason) == ("pin", "its time is over")


def test_the_template_and_a_lost_cluster_are_told_from_the_file(make: Callable[..., Recorded]) -> None:
    world = make()
    world.edit(a=model_file())
    world.settle()
    world.template = TEMPLATE.replace('"runtime_env": {"env_vars": {{', '"runtime_env": {"x": 1, "env_vars": {{')
    assert world.template != TEMPLATE
    world.settle()
    assert (world.entries("a")[-1].what, world.entries("a")[-1].by) == ("replace", By.SETTINGS)


def test_a_load_goes_on_where_nobody_waits_any_more(make: Callable[..., Recorded]) -> None:
    world = make()
    world.edit(a=model_file(policy="on_demand"))
    world.settle()
    world.ask("a")
    world.turn()
    world.tick()
    world.queue.clear()
    world.settle()
    assert world.told("a") == ["load started", "load done"]


def test_two_edits_at_the_front_door_in_a_row_are_two_changes(make: Callable[..., Recorded]) -> None:
    world = make()
    world.edit(a=model_file())
    world.settle()
    for alias in ("x", "y"):
        world.edit(a=model_file(aliases=alias))
        world.turn()
        world.tick()
    world.settle()
    assert world.told("a")[2:] == ["front door started", "front door done"] * 2
    assert [entry.fields[0].new for entry in world.entries("a")[2:] if entry.fields] == ['["x"]', '["y"]']


def test_a_rollback_is_told_as_one_and_leaves_the_order_of_versions(make: Callable[..., Recorded]) -> None:
    world = make()
    texts = [model_file(1024), model_file(2048)]
    for text in texts:
        world.edit(a=text)
        world.settle()
    kept = Versions(world.folder).of("a")
    path = "models.d/a.yaml"
    of_now = {path: digest_of(texts[1].encode())}
    world.rollbacks["a"] = Rollback(
        "a", {path: texts[0]}, "now", kept[1].revision, world.now, reason="slow", source=of_now
    )
    world.settle()
    assert [(e.what, e.outcome, e.by, e.revision) for e in world.entries("a")[4:]] == [
        ("rollback", "given", "hand", kept[1].revision),
        ("replace", "started", "rollback", kept[1].revision),
        ("replace", "done", "rollback", kept[1].revision),
    ]  # fmt: skip
    assert Versions(world.folder).of("a") == kept
    world.rollbacks.clear()
    world.settle()
    assert Versions(world.folder).of("a") == kept
    assert "rollback ended" in world.told("a")


# --- a restart --------------------------------------------------------------------------------------------


def test_a_change_that_outlives_the_reconciler_is_one_change(make: Callable[..., Recorded]) -> None:
    world = make()
    world.edit(a=model_file())
    world.turn()
    world.tick()
    world.start_process()
    world.settle()
    first, last = world.entries("a")
    assert (first.outcome, last.outcome) == ("started", "done")
    assert last.seconds == pytest.approx(moment(last.at) - moment(first.at))


def test_a_change_that_nobody_saw_end_is_interrupted_or_done(make: Callable[..., Recorded]) -> None:
    world = make()
    world.edit(a=model_file(), b=model_file(), c=model_file())
    world.turn()
    quiet = Journal(world.folder)
    # The reconciler dies; a is removed meanwhile, and c comes up under another that kept no journal.
    world.edit(a=None)
    world.journal.note = lambda *_: None  # type: ignore[method-assign]
    world.settle()
    world.journal = quiet
    world.start_process()
    world.turn()
    ends = {entry.model: entry for entry in world.entries() if entry.outcome is not Outcome.STARTED}
    assert ends["a"].outcome == "interrupted"
    assert "by a restart" in ends["a"].reason
    assert (ends["c"].outcome, ends["c"].seconds) == ("done", None)


@pytest.mark.parametrize("seed", range(12))
def test_whatever_happens_each_change_begins_once_and_ends_once(seed: int, make: Callable[..., Recorded]) -> None:
    chance = random.Random(seed)
    world = make(options=Options(max_loads=2, allow_removals=True))
    for _ in range(40):
        stem = chance.choice("abc")
        event = chance.randrange(7)
        if event < 3:
            world.edit(**{stem: model_file(chance.choice([1024, 2048]), aliases=chance.choice(["", f"x{stem}"]))})
        elif event == 3 and f"models.d/{stem}.yaml" in world.files:
            world.edit(**{stem: None})
        elif event == 4:
            world.edit(**{stem: "{"})
        elif event == 5:
            world.faults = {stem: BUILD} if chance.random() < 0.5 else {}
        else:
            world.start_process()
        for _ in range(chance.randrange(12)):
            world.turn()
            world.tick()
    world.faults = {}
    world.edit(a=model_file(), b=model_file(), c=model_file())
    for _ in range(400):
        world.turn()
        world.tick(5)
    entries = world.entries()
    actions = [entry for entry in entries if entry.what not in ("hold", "refusal")]
    begun = Counter((e.model, e.what, e.at) for e in actions if e.outcome is Outcome.STARTED)
    ended = Counter((e.model, e.what, e.since) for e in actions if e.outcome is not Outcome.STARTED)
    assert max(begun.values()) == max(ended.values()) == 1
    assert begun.keys() <= ended.keys(), "nothing is left open"
    # Retries of what failed begin unsaid, and are told where they end otherwise.
    assert all(
        e.outcome is not Outcome.FAILED for e in actions if e.since and (e.model, e.what, e.since) not in begun
    )
    assert [moment(e.at) for e in entries] == sorted(moment(e.at) for e in entries)
    # Read anew, the book has nothing to add.
    assert Book(entries).turn(Desired(), Observed(now=world.now), Plan()) == []


# --- what must not be in it -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("runtime_env.env_vars.X", "value"),
        ("engine_kwargs.hf_token", "value"),
        ("engine.args.API_KEY", "value"),
        ("description", "hf_abcdefghijklmnop"),
        ("source.path", "https://user:value@host/x"),
        ("labels.note", ["Bearer value"]),
    ],
)
def test_what_looks_secret_is_blanked(path: str, value: object) -> None:
    field = field_of(FieldChange(path, None, value, Effect.NEW_ENGINE))
    assert field.old is None
    assert "***" in field.new
    assert "value" not in field.new
    assert "abcdef" not in field.new


def test_numbers_of_tokens_are_no_secrets() -> None:
    for path in ("engine.max_num_batched_tokens", "source.tokenizer", "engine.args.tokenizer_mode"):
        assert field_of(FieldChange(path, 1, 2, Effect.NEW_ENGINE)).new == 2


def test_texts_from_elsewhere_are_printable_and_short() -> None:
    assert cleaned("a\x1b[31m\nb\u202e") == "a\\x1b[31m b\\u202e"
    assert len(cleaned("x" * 10**6)) == MAX_TEXT
    assert field_of(FieldChange("x", 10**400, "y" * 10**6, Effect.NEW_ENGINE)).new.endswith("…")
    assert looks_secret("token: ghp_" + "a" * 36)
    assert not looks_secret("source: {repo: org/model}")


# --- on the disk ------------------------------------------------------------------------------------------


def entry(number: int, **fields: object) -> Entry:
    return replace(Entry(iso_of(1e9 + number), "m", "sync", Outcome.DONE, cause=f"no. {number}"), **fields)  # type: ignore[arg-type]


def test_what_is_written_is_what_is_read(make: Callable[..., Recorded]) -> None:
    world = make()
    world.provenance = Provenance("url", "main", TIP, {})
    world.edit(a=model_file())
    world.settle()
    world.edit(a=model_file(2048, aliases="x"))
    world.settle()
    lines = (world.folder / FOLDER / NEWEST).read_text().splitlines()
    assert len(lines) == len(world.entries()) == 4
    assert json.loads(lines[2])["fields"][1] == {
        "path": "engine.max_model_len", "old": 1024, "new": 2048, "effect": "new engine",
    }  # fmt: skip
    assert stat.S_IMODE((world.folder / FOLDER / NEWEST).stat().st_mode) == 0o600


def test_the_journal_is_bounded_and_the_newest_stays(tmp_path: Path) -> None:
    journal = Journal(tmp_path, max_bytes=5000)
    for number in range(500):
        journal.command("sync", "", f"no. {number}")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / FOLDER).iterdir()}
    assert sizes.keys() == {NEWEST, OLDER}
    assert max(sizes.values()) <= 5000
    numbers = [int(entry.cause.split()[1]) for entry in read(tmp_path, max_bytes=5000)]
    assert numbers == list(range(numbers[0], 500))
    assert len(numbers) > 30


def test_torn_and_foreign_lines_are_skipped_and_spoil_no_other(tmp_path: Path) -> None:
    Journal(tmp_path).command("sync", "", "first")
    file = tmp_path / FOLDER / NEWEST
    good = file.read_bytes()
    foreign = b'{"at": "x", "model": "m", "what": "w", "outcome": "done"}\n'
    for spoiled in (
        b"\n", b"\0\xff\n", b"[1]\n", foreign, b"{" * 100_000,
        good.replace(b"2", b"99999", 1), good.replace(b'"done"', b'"eaten"'), good[: len(good) // 2],
    ):  # fmt: skip
        with file.open("ab") as append:
            append.write(spoiled)
        Journal(tmp_path).command("sync", "", "next")
        assert read(tmp_path)[-1].cause == "next"
    assert [entry.cause for entry in read(tmp_path)] == ["first"] + 8 * ["next"]
    # Cut anywhere, whatever is whole is read.
    for cut in range(len(good)):
        file.write_bytes(good + good[:cut])
        assert len(read(tmp_path)) == 1 + (cut == len(good) - 1)


def test_a_disk_that_cannot_be_written_costs_one_warning_and_no_entry(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / NEWEST).mkdir()
    with capture_logs() as logs:
        journal = Journal(tmp_path)
        for number in range(3):
            journal.command("sync", "", f"no. {number}")
    assert [event["event"] for event in logs] == ["journal.unsaved"]
    (tmp_path / FOLDER / NEWEST).rmdir()
    journal.command("sync", "", "no. 3")
    assert [entry.cause for entry in read(tmp_path)] == [f"no. {number}" for number in range(4)]


def test_what_got_through_before_the_disk_was_full_is_not_there_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    journal.command("sync", "", "first")
    write, cuts = os.write, iter([150, 0])

    def short(handle: int, text: bytes) -> int:
        return write(handle, text[: next(cuts, None)])

    monkeypatch.setattr(os, "write", short)
    for number in range(3):
        journal.command("sync", "", f"no. {number}")
    assert [entry.cause for entry in read(tmp_path)] == ["first", "no. 0", "no. 1", "no. 2"]


def test_what_stands_in_its_place_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / NEWEST).symlink_to(victim)
    with capture_logs() as logs:
        Journal(tmp_path).command("sync", "", "x")
    assert victim.read_text() == "precious"
    assert logs
    (tmp_path / FOLDER / NEWEST).unlink()
    os.mkfifo(tmp_path / FOLDER / NEWEST)
    Journal(tmp_path).command("sync", "", "x")
    assert read(tmp_path) == []


# --- the versions that served -----------------------------------------------------------------------------


def test_the_text_that_served_is_kept_the_newest_first(make: Callable[..., Recorded]) -> None:
    world = make()
    texts = [model_file(1024 + number) for number in range(KEPT_VERSIONS + 2)]
    for text in texts:
        world.edit(a=text)
        world.settle()
    versions = Versions(world.folder).of("a")
    assert [version.text for version in versions] == texts[: -KEPT_VERSIONS - 1 : -1]
    assert versions[0].revision == world.desired.revision
    assert Versions(world.folder).of("b") == []
    assert list(Versions(world.folder).all()) == ["a"]
    # What never served is nothing to come back to, and a comment is no version.
    world.faults = {"a": BUILD}
    world.edit(a=model_file(9999))
    for _ in range(100):
        world.turn()
        world.tick()
    world.faults = {}
    world.edit(a=texts[-1] + "# why\n")
    world.settle()
    assert Versions(world.folder).of("a") == versions


def test_whole_revisions_of_a_folder_are_kept_where_all_of_it_is_valid(make: Callable[..., Recorded]) -> None:
    world = make()
    seen: list[tuple[str, dict[str, str]]] = []
    for number in range(KEPT_REVISIONS + 2):
        world.edit(a=model_file(1024 + number), b=model_file())
        world.turn()
        seen.append((world.desired.revision, dict(world.files)))
        stamp = 1_000_000_000 + number
        os.utime(world.folder / "versions" / "revisions" / f"{seen[-1][0]}.json", (stamp, stamp))
    versions = Versions(world.folder)
    assert versions.revisions() == [revision for revision, _ in reversed(seen[2:])]
    assert versions.revision(seen[-3][0][:7]) == seen[-3]
    assert versions.revision(seen[0][0]) is None
    assert versions.revision("../../x") is None
    # One that is there again is the newest.
    world.files = dict(seen[4][1])
    world.turn()
    assert versions.revisions()[0] == seen[4][0]
    assert len(versions.revisions()) == KEPT_REVISIONS
    world.edit(b="{")
    world.turn()
    assert versions.revision(world.desired.revision) is None
    world.provenance = Provenance("url", "main", TIP, {})
    world.edit(b=model_file(5))
    world.turn()
    assert versions.revision(world.desired.revision) is None, "git remembers by itself"


def test_a_text_with_a_secret_is_not_kept(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    text = "source: {repo: o/m}  # hf_abcdefghijklmnop\n"
    versions.add(Version("a", "models.d/a.yaml", text, "r", 1.0, "d"))
    versions.add_revision(Snapshot("abcdef123456", {"models.d/a.yaml": text.encode()}, "/m"))
    assert versions.of("a") == []
    assert versions.revisions() == []
