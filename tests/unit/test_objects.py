"""Relative paths of a model file in a source whose folders belong to their content."""

from reconciler.core.desired import Snapshot, compile_desired
from reconciler.core.render import Renderer
from reconciler.core.target import Platform
from reconciler.host.templates import read_template

FILE = b"name: a\nsource: {path: ./weights/a}\n"


def _paths(objects: dict[str, str]) -> set[str]:
    renderer = Renderer(read_template("application.json.j2", None), Platform(device="cpu"))
    snapshot = Snapshot("r", {"models.d/a.yaml": FILE}, "/tree/models.d", objects=objects)
    return set(compile_desired(snapshot, renderer).targets["a"].paths)


def test_a_relative_path_leads_to_what_belongs_to_its_content() -> None:
    assert _paths({"weights/a": "/objects/0123"}) == {"/objects/0123"}


def test_what_the_source_does_not_have_starts_at_its_folder() -> None:
    assert _paths({"weights/b": "/objects/0123"}) == {"/tree/models.d/weights/a"}
