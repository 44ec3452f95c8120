"""A plan on a pull request: what it looks like, that no file puts markup into it, and its length."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.desired import Desired, Snapshot, compile_desired
from reconciler.core.diff import Effect, FieldChange
from reconciler.core.fit.gpus import GIB
from reconciler.core.markdown import MAX_CHARACTERS, Page, code, text
from reconciler.core.parse import Problem
from reconciler.core.plan import Action, Change, GpuUse, Held, HeldKind, Memory, Note, Order, Plan, Refusal
from reconciler.core.plan_markdown import MARK, difference_markdown, plan_markdown
from reconciler.core.render import Renderer
from reconciler.core.target import Platform
from reconciler.core.tree_difference import Kind, counts, difference
from reconciler.core.weights import CopyPlan

ROOT = Path(__file__).parents[2]
TEMPLATE = (ROOT / "templates" / "application.json.j2").read_text(encoding="utf-8")
RENDERER = Renderer(TEMPLATE, Platform(simulate_gpus=True))
HOSTILE = (
    "a | b `c` <img src=x onerror=1> @team/x #12 org/r#3 GH-4 !5 ~bug %1 $2 &6 &#64;you [l](http://x.y) ![i](//z) "
    "www.evil.org **b** _e_ \\| </details> <!-- x --> m@x.org\n## heading\r\n/merge\u2028- item \u202e \x00 \t end"
)

PLAN = Plan(
    changes=(
        Change("new", Action.ADD, "models.d/new.yaml declares it", new="new-1", file="models.d/new.yaml",
               memory=Memory("h100", 80 * GIB, 2, 0.5, 31 * GIB, 35 * GIB, 28 * GIB, 2 * GIB, 999, 8192, "tensors",
                             fits_safely=False),
               downloads=(CopyPlan("o/new", "main", "0123456789" * 4, 30 * GIB, 10 * GIB, 99 * GIB),)),
        Change("qwen", Action.REPLACE, "models.d/qwen.yaml changed",
               (FieldChange("engine.max_model_len", 4096, None, Effect.NEW_ENGINE),
                FieldChange("aliases", ["q"], [], Effect.FRONT_DOOR)),
               old="qwen-1", new="qwen-2", order=Order.BESIDE, phase="loading the model", file="m.yaml"),
        Change("gone", Action.REMOVE, "models.d/gone.yaml is gone", old="gone-1", file="models.d/gone.yaml"),
    ),
    held=(Held("big", HeldKind.DOES_NOT_FIT, "needs 131 GiB of 79", advice=("max_model_len: 4096 (70.0 GiB)",)),),
    refused=(Refusal(("x", "y"), "2 of the 3 models would go", "--dangerous-allow-removals"),),
    notes=(Note("qwen", "its branch moved, and it does not follow"),),
    gpus=(
        GpuUse("box", 0, "H100", 80 * GIB, 0.5, 1.0, applications=("new-1", "qwen-2")),
        GpuUse("box", 1, "H100", 80 * GIB, 0.0, 0.5, foreign=0.1, applications=("new-1",)),
        GpuUse("box", 2, "H100", 80 * GIB, 0.0, 0.0, failed="XID 79"),
        GpuUse("box", 3, "H100", 80 * GIB, 0.5, 0.5),
    ),
    revision="81cc07aa5e21", desired_digest="d1", observed_digest="o1",
)  # fmt: skip

GOLDEN = """\
<!-- reconcile-plan -->
## Plan: 1 to add, 1 to replace, 1 to remove; 1 held, 1 refused

Between what runs now and the proposed tree <code>pull/7</code>. Nothing was changed.

|  | Model | Action | Why | Memory |
| --- | --- | --- | --- | --- |
| + | <code>new</code> | add | models.d/new.yaml declares it | 31.0 GiB each, up to 35.0 GiB of \
2 x h100, 50% of it |
| ± | <code>qwen</code> | replace, beside the old version (loading the model) | models.d/qwen.yaml changed |  |
| - | <code>gone</code> | remove | models.d/gone.yaml is gone |  |

### Refused by a safety rule

- <code>x, y</code>: 2 of the 3 models would go (<code>--dangerous-allow-removals</code> allows it)

### Held

- <code>big</code>: does not fit. needs 131 GiB of 79<br>it would with max_model_len: 4096 (70.0 GiB)

### Mistakes in files

- <code>models.d/bad.yaml:4:3</code>: unknown key 'max' (did you mean 'min'?)

<details><summary>Fields of <code>qwen</code></summary>

Version <code>qwen-1</code> → <code>qwen-2</code>

| Field | Before | After | Takes |
| --- | --- | --- | --- |
| <code>engine.max_model_len</code> | <code>4096</code> | <code>(absent)</code> | new engine |
| <code>aliases</code> | <code>&#91;&quot;q&quot;&#93;</code> | <code>&#91;&#93;</code> | front door |

</details>

### GPUs

| GPU | Memory | Before | After | With |
| --- | --- | --- | --- | --- |
| box 0 H100 | 80.0 GiB | █████░░░░░ 50% | ██████████ 100% | new-1, qwen-2 |
| box 1 H100 | 80.0 GiB | ▒░░░░░░░░░ 10% | █████▒░░░░ 60% | new-1 |
| box 2 H100 | 80.0 GiB |  | failed: XID 79 |  |

1 more GPU unchanged.

### Downloads

- <code>new</code>: <code>o/new@&#8203;01234567 (main)</code>, 20.0 GiB to fetch

### Notes

- <code>qwen</code>: its branch moved, and it does not follow

<sub>Revision <code>81cc07aa5e21</code>. Made from: desired <code>d1</code>, observed <code>o1</code>.</sub>
"""
PROBLEMS = (Problem("models.d/bad.yaml", 4, 3, "unknown key 'max'", "did you mean 'min'?"),)


def test_what_a_plan_looks_like() -> None:
    assert plan_markdown(PLAN, PROBLEMS, proposed="pull/7") == GOLDEN


def test_a_plan_without_a_change_says_so() -> None:
    lines = plan_markdown(Plan(revision="r", desired_digest="d", observed_digest="o")).splitlines()
    assert lines == [
        "<!-- reconcile-plan -->",
        "## Plan: no change",
        "",
        "Between what runs now and the model files. Nothing was changed.",
        "",
        "<sub>Revision <code>r</code>. Made from: desired <code>d</code>, observed <code>o</code>.</sub>",
    ]


# --- two trees --------------------------------------------------------------------------------------------


def tree(revision: str, **files: str) -> Desired:
    contents = {f"models.d/{name}.yaml": content.encode() for name, content in files.items()}
    return compile_desired(Snapshot(revision, contents, "/m"), RENDERER)


REPO = "source: {repo: o/m}\n"
BASE = tree(
    "base",
    same=REPO,
    shape=REPO + "engine: {max_model_len: 4096}\naliases: [s]\n",
    scale=REPO + "resources: {replicas: {max: 2}}\n",
    words=REPO,
    old=REPO + "name: moved\n",
    broken=REPO,
    gone=REPO,
    was="{",
)
PROPOSED = tree(
    "proposed",
    same=REPO + "# a comment\n",
    shape=REPO + "engine: {max_model_len: 8192}\n",
    scale=REPO + "resources: {replicas: {max: 3}}\n",
    words=REPO + "description: '@team | `x`'\n",
    new_place=REPO + "name: moved\n",
    broken="source: {repo: o/m}\nengin: {}\n",
    fresh=REPO,
    was=REPO,
)
TREES_GOLDEN = """\
<!-- reconcile-plan -->
## Model files: 2 added, 4 changed, 1 removed; 1 file invalid

**Only the files of two trees were compared: <code>HEAD^1</code> and <code>models.d</code>. Nobody looked at the \
cluster:** what runs, whether there is room, and what would be held is not known here. <code>reconcile plan \
--against</code>, run where the cluster can be reached, says that.

|  | Model | What | Why |
| --- | --- | --- | --- |
| + | <code>fresh</code> | added | models.d/fresh.yaml declares it |
| - | <code>gone</code> | removed | models.d/gone.yaml is gone |
| ± | <code>moved</code> | changed: front door | declared in models.d/new_place.yaml, \
no longer in models.d/old.yaml |
| ± | <code>scale</code> | changed: in place | models.d/scale.yaml changed |
| ± | <code>shape</code> | changed: new engine | models.d/shape.yaml changed |
| + | <code>was</code> | added | models.d/was.yaml declares it, and was invalid before |
| ± | <code>words</code> | changed: front door | models.d/words.yaml changed |

### Would be held

- <code>models.d/broken.yaml</code> is invalid; <code>broken</code> stays as it is

### Mistakes in files

- <code>models.d/broken.yaml:2:1</code>: """


def test_what_the_difference_of_two_trees_looks_like() -> None:
    page = difference_markdown(difference(BASE, PROPOSED), base="HEAD^1", proposed="models.d")
    assert page.startswith(TREES_GOLDEN)
    assert "| <code>engine.max_model_len</code> | <code>4096</code> | <code>8192</code> | new engine |" in page
    assert "<code>&quot;@&#8203;team &#124; &#96;x&#96;&quot;</code> | front door |" in page
    assert page.endswith("<sub>Base <code>base</code>, proposed <code>proposed</code>; 1 model unchanged.</sub>\n")


def test_an_invalid_file_removes_no_model() -> None:
    found = difference(BASE, PROPOSED)
    assert "broken" not in {change.model for change in found.changes}
    assert [(each.file, each.models) for each in found.kept] == [("models.d/broken.yaml", ("broken",))]
    nameless = difference(tree("b", a=REPO), tree("p", a="{"))
    assert (nameless.changes, [each.models for each in nameless.kept]) == ((), [("a",)])


def test_every_model_is_counted_once() -> None:
    number = counts(difference(BASE, PROPOSED))
    assert number == {
        "added": 2, "changed": 4, "removed": 1, "front door": 2, "in place": 1, "new engine": 1, "invalid": 1,
        "unchanged": 1,
    }  # fmt: skip


def test_a_tree_against_itself_differs_in_nothing() -> None:
    found = difference(BASE, BASE)
    assert (found.changes, found.refused, found.unchanged) == ((), None, 7)


def test_what_a_safety_rule_would_refuse_is_said_beforehand() -> None:
    found = difference(tree("b", a=REPO, b=REPO), tree("p"))
    assert [change.kind for change in found.changes] == [Kind.REMOVED, Kind.REMOVED]
    page = difference_markdown(found, base="b", proposed="p")
    assert "### Would be refused by a safety rule" in page
    assert "there is no model file at all" in page
    assert "--dangerous-allow-removals" in page


# --- hostile text -----------------------------------------------------------------------------------------

ALLOWED = re.compile(r"<!-- reconcile-plan -->|</?(?:code|details|summary|sub)>|<br>")
GAP = "&#8203;"


def raw_markup(page: str) -> list[str]:
    """What a forge could take for more than text."""
    left = ALLOWED.sub("", page)
    found = re.findall(r"[<\[\]`\\]|[@!~](?=\w)|#(?=\w)|://|www\.|&(?!(?:amp|lt|gt|quot|#\d+);)", left)
    # The sign inside an entity is none.
    return [each for each in found if each != "#" or re.search(r"(?<!&)#(?=\w)", left)]


def hostile_plan(value: str) -> Plan:
    return Plan(
        changes=(
            Change(value, Action.REPLACE, value, (FieldChange(value, value, [value], Effect.IN_PLACE),), old=value,
                   new=value, phase=value, file=value, downloads=(CopyPlan(value, value, value, note=value),),
                   memory=Memory(value, 1, 1, 1.0, 1, 1, 1, 1, 1, 1, "tensors", fits_safely=True)),
        ),
        held=(Held(value, HeldKind.FAILED, value, file=value, advice=(value,)),),
        refused=(Refusal((value,), value, ""),),
        notes=(Note(value, value),),
        gpus=(GpuUse(value, 0, value, 1, 0.0, 1.0, applications=(value,)),
              GpuUse(value, 1, value, 1, 0.0, 1.0, failed=value)),
        revision=value, desired_digest=value, observed_digest=value,
    )  # fmt: skip


def hostile_page(value: str) -> str:
    return plan_markdown(hostile_plan(value), (Problem(value, 1, 1, value, value),), proposed=value)


def test_a_text_is_one_line_without_markup() -> None:
    assert text(HOSTILE, 400) == (
        "a &#124; b &#96;c&#96; &lt;img src=x onerror=1&gt; @&#8203;team/x #&#8203;12 org/r#&#8203;3 GH-&#8203;4 "
        "!&#8203;5 &#126;&#8203;bug %&#8203;1 &#36;&#8203;2 &amp;&#8203;6 &amp;#&#8203;64;you "
        "&#91;l&#93;(http:&#8203;//x.y) !&#91;i&#93;(//z) www&#8203;.evil.org &#42;&#42;b&#42;&#42; &#95;e&#95; "
        "&#92;&#124; &lt;/details&gt; &lt;!-- x --&gt; m@&#8203;x.org ## heading /merge - item "
        "&#92;u202e &#92;x00 end"
    )


def test_nothing_in_a_page_is_markup_of_a_file() -> None:
    harmless_lines, hostile_lines = hostile_page("x").splitlines(), hostile_page(HOSTILE).splitlines()
    assert raw_markup("\n".join(hostile_lines)) == []
    # Not a line, not a cell more than where all is well.
    assert [line.count("|") for line in hostile_lines] == [line.count("|") for line in harmless_lines]
    assert [line[:2] for line in hostile_lines] == [line[:2] for line in harmless_lines]


@given(st.text(alphabet=st.sampled_from("a1_*`|<>[]()!@#&;:/\\~$% \n\r\t\u2028\x00\u200bwW.gGhH-"), max_size=40))
def test_no_text_makes_markup(value: str) -> None:
    assert raw_markup(text(value)) == []
    assert "\n" not in text(value)
    assert "|" not in text(value)


def test_a_name_is_left_as_it_is() -> None:
    assert code("max_model_len: qwen3-0.6b (Qwen/Qwen3-0.6B)") == (
        "<code>max_model_len: qwen3-0.6b (Qwen/Qwen3-0.6B)</code>"
    )


def test_a_megabyte_is_cut_and_costs_little() -> None:
    assert text("x" * 1_000_000) == "x" * 299 + "…"
    assert text(" " * 1_000_000 + "x") == "…"


# --- length -----------------------------------------------------------------------------------------------


def many(number: int, value: str = "x") -> Plan:
    change = PLAN.changes[1]
    return Plan(
        changes=tuple(
            Change(f"m{i}", Action.REPLACE, value, change.fields, old="o", new="n", file="f")
            for i in range(number)
        ),
        held=tuple(Held(f"h{i}", HeldKind.FAILED, value) for i in range(number)),
        revision="r",
    )


@pytest.mark.parametrize("number", [1, 10, 100, 1000, 10_000])
@pytest.mark.parametrize("value", ["x", "|" * 5000], ids=["short", "long"])
def test_a_page_never_is_too_long(number: int, value: str) -> None:
    page = plan_markdown(many(number, value), [Problem("f", 1, 1, value)] * number)
    assert len(page) <= MAX_CHARACTERS
    assert page.startswith(MARK)
    assert page.count("<details>") == page.count("</details>")
    assert page.splitlines()[-1].startswith("<sub>Revision")
    assert page.count("<code>") == page.count("</code>")


def test_what_was_cut_is_said() -> None:
    page = plan_markdown(many(10_000))
    shown = page.count("\n| ± |")
    assert 100 < shown < 10_000
    assert f"**Cut, because this would be too long: {10_000 - shown:,} of changes, 10,000 of held models" in page
    assert "Cut" not in plan_markdown(many(10))


def test_a_section_shows_the_rows_that_there_is_room_for() -> None:
    page = Page(1_000 + len("head\n" + "row\n" * 3 + "tail\n\n"))
    page.section("rows", ["head"], ["row"] * 5, str, ["tail"])
    page.section("others", ["head"], ["row"], str)
    assert page.end().splitlines()[:6] == ["head", "row", "row", "row", "tail", ""]
    assert "2 of rows, 1 of others" in page.end()


# --- what posts it ----------------------------------------------------------------------------------------


def commenter() -> ModuleType:
    path = ROOT / "deploy" / "ci" / "comment.py"
    spec = importlib.util.spec_from_file_location("comment", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["comment"] = module
    spec.loader.exec_module(module)
    return module


COMMENT = commenter()


@pytest.mark.parametrize(
    "page",
    [
        GOLDEN,
        hostile_page(HOSTILE),
        plan_markdown(many(10_000)),
        difference_markdown(difference(BASE, PROPOSED), base="HEAD^1", proposed="models.d"),
    ],
    ids=["plan", "hostile", "cut", "trees"],
)
def test_who_posts_it_finds_nothing_to_take_out(page: str) -> None:
    assert COMMENT.MARK == MARK
    body = page.removeprefix(MARK).strip()
    assert COMMENT.bounded(COMMENT.harmless(body)) == body


@given(st.text(alphabet=st.sampled_from("a1_*`|<>[]()!@#&;:/\\~$% \n\t\u200bwW.gGhH-"), max_size=40))
def test_who_posts_it_lets_through_what_this_writes(value: str) -> None:
    assert COMMENT.harmless(f"- {code(value)}: {text(value)}") == f"- {code(value)}: {text(value)}"
