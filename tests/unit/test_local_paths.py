"""Folders of a source that model files name: a change of only their content is told as what it is."""

from reconciler.core.desired import Desired, Snapshot, compile_desired
from reconciler.core.diff import Effect
from reconciler.core.journal import Book
from reconciler.core.journal_entry import By
from reconciler.core.local_paths import folders_of, only_content
from reconciler.core.plan import Action, Change
from reconciler.core.planner import make_plan
from reconciler.core.provenance import Commit, Provenance
from reconciler.core.render import Renderer
from reconciler.core.state import Application, Node, Observed, Record, Replica, Status
from reconciler.core.target import Platform, Target
from reconciler.core.tree_difference import Kind, difference
from reconciler.host.templates import read_template

A, HERE = "models.d/a.yaml", "../weights/a"
TEXT = "source: {path: ../weights/a}\nlifecycle: {policy: pinned}\n"
ADA = Commit("1" * 40, "Ada", 1.0, "The file")


def desired(content: str, text: str = TEXT) -> Desired:
    snapshot = Snapshot("r", {A: text.encode()}, "/m", objects={HERE: f"/objects/{content}", "../other": "/o/x"})
    return compile_desired(
        snapshot, Renderer(read_template("application.json.j2", None), Platform(simulate_gpus=True))
    )


def serving(target: Target) -> Observed:
    name = target.application
    app = Application(
        name,
        Status.RUNNING,
        target.config,
        target.model,
        replicas=(Replica("r", "RUNNING"),),
        demand=target.demand,
    )
    return Observed(
        applications={name: app},
        nodes=(Node("n", 8.0, accelerator="H100"),),
        routes={target.model: name},
        ready=frozenset([name]),
        up_seconds={name: 1000.0},
        idle_seconds={name: 0.0},
        ages={name: 1000.0},
        records={target.model: Record(target.model, target.file, name, target.fields)},
        now=1000.0,
    )


def test_the_plan_and_the_journal_say_that_a_folder_changed_and_blame_nobody() -> None:
    now = desired("new")
    observed = serving(desired("old").targets["a"])
    plan = make_plan(now, observed)
    (change,) = plan.changes
    assert isinstance(change, Change)
    assert (change.action, change.cause) == (
        Action.REPLACE, "the content of a folder that models.d/a.yaml names changed",
    )  # fmt: skip
    assert [(each.path, each.old, each.new, each.effect) for each in change.fields] == [
        ("source.content", "old", "new", Effect.NEW_ENGINE)
    ]
    (entry,) = Book().turn(now, observed, plan, provenance=Provenance("u", "main", ADA, {A: ADA}))
    assert (entry.by, entry.commit, entry.author) == (By.FILE, "", "")


def test_two_trees_differ_in_what_a_folder_holds() -> None:
    (change,) = difference(desired("old"), desired("new")).changes
    assert (change.kind, change.effect) == (Kind.CHANGED, Effect.NEW_ENGINE)
    assert change.cause == "the content of a folder that models.d/a.yaml names changed"
    assert not difference(desired("new"), desired("new")).changes
    both = difference(desired("old"), desired("new", TEXT + "description: x\n")).changes[0]
    assert both.cause == "models.d/a.yaml changed"


def test_only_what_a_file_names_is_its_own() -> None:
    text = "source: {path: ./w/}\nadapters: [{name: x, path: ../l}]\n"
    snapshot = Snapshot("r", {A: text.encode()}, "/m", objects={"w": "/o/1", "../l": "/o/2", "../n": "/o/3"})
    made = compile_desired(
        snapshot, Renderer(read_template("application.json.j2", None), Platform(simulate_gpus=True))
    )
    target = made.targets["a"]
    assert folders_of(target.spec, snapshot.objects) == {"w": "/o/1", "../l": "/o/2"}
    assert (target.fields["source"]["content"], target.fields["adapters"][0]["content"]) == ("1", "2")
    assert only_content(["adapters.0.content"])
    assert not only_content(["engine.args.content"])
