"""The parts of the edge that need no process."""

from dataclasses import replace
from pathlib import Path

import pytest
from edge_harness import TEMPLATE
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.endpoints import ROUTED_PATHS
from reconciler.edge.config import fingerprint, render_config, stamp
from reconciler.edge.maps import ROUTES, parse_entries
from reconciler.edge.options import EdgeOptions
from reconciler.edge.process import complaint_in
from reconciler.edge.replies import reply_files
from reconciler.edge.usage import Usage, add_up, parse_table

OPTIONS = EdgeOptions(Path("/var/lib/edge"))
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/:+@-]{0,20}", fullmatch=True)
applications = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True)
routes = st.dictionaries(names, applications, max_size=8)


def test_the_configuration_has_the_options_and_every_path() -> None:
    text = render_config(TEMPLATE, replace(OPTIONS, serve_host="::1", serve_port=9, threads=3))
    assert "bind 127.0.0.1:4000 proto h1\n" in text
    assert "server serve [::1]:9\n" in text
    assert "nbthread 3\n" in text
    assert all(f" {path}" in text for path in ROUTED_PATHS)
    assert "nbthread" not in render_config(TEMPLATE, OPTIONS)


@pytest.mark.parametrize(
    "changes",
    [
        {"listen_host": "127.0.0.1\n stats"},
        {"listen_host": "a b"},
        {"listen_host": ""},
        {"listen_host": "*"},
        {"listen_port": 0},
        {"listen_port": 65536},
        {"listen_port": "80\nx"},
        {"listen_port": True},
        {"body_buffer_bytes": 100},
        {"body_buffer_bytes": 2**30},
        {"max_connections": 0},
        {"threads": -1},
        {"folder": Path("relative")},
        {"folder": Path("/a\nb")},
        {"folder": Path("/" + "a" * 120)},
    ],
)
def test_a_value_that_haproxy_could_misread_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        render_config(TEMPLATE, replace(OPTIONS, **changes))  # type: ignore[arg-type]


def test_a_template_with_an_unknown_variable_is_refused() -> None:
    with pytest.raises(ValueError, match=r"edge\.cfg\.j2.*nothing"):
        render_config("{{ nothing }}", OPTIONS)


def test_a_stamped_configuration_carries_its_fingerprint() -> None:
    text = render_config(TEMPLATE, OPTIONS)
    assert fingerprint(text) in stamp(text)
    assert fingerprint(text) != fingerprint(text + " ")


def test_the_template_names_every_reply_that_there_is_and_no_other() -> None:
    named = {word.removeprefix("errors/") for word in TEMPLATE.split() if word.startswith("errors/")}
    assert named - {"."} == set(reply_files())


@settings(deadline=None)
@given(routes)
def test_a_map_file_is_read_back_as_it_was_written(wanted: dict[str, str]) -> None:
    assert ROUTES.parse(ROUTES.format(wanted)) == wanted


def test_a_map_file_may_hold_what_is_no_route() -> None:
    assert ROUTES.parse("# a comment\n\nm app\n  n   other  \nalone\na b c\n#n app\nm a/b\n") == {
        "m": "app",
        "n": "other",
    }


@settings(deadline=None)
@given(routes, routes)
def test_the_commands_lead_from_one_map_to_the_other(live: dict[str, str], wanted: dict[str, str]) -> None:
    now = dict(live)
    for command in ROUTES.commands(live, wanted):
        verb, _, _, name, *value = command.split()
        assert (name in now) is (verb != "add")
        if verb == "del":
            assert name not in wanted  # a name that stays is never taken away
            del now[name]
        else:
            now[name] = value[0]
    assert now == wanted
    assert ROUTES.commands(wanted, wanted) == []


def test_of_two_entries_with_one_name_the_first_counts() -> None:
    assert parse_entries("0x1 m a\n0x2 m b\n\n") == {"m": "a"}


def test_the_table_tells_what_is_in_flight_and_since_when_nothing_is() -> None:
    answer = """# table: applications, type: string, size:10240, used:2
0x48a74c8: key=app-1 use=0 exp=2073598750 shard=0 conn_cur=0
0x48a74c9: key=app-2 use=2 exp=2073500000 shard=0 conn_cur=2
"""
    assert parse_table(answer) == {"app-1": Usage(0, 1.25), "app-2": Usage(2, 0.0)}


def test_tables_add_up() -> None:
    tables = [
        {"a": Usage(0, None), "b": Usage(0, 9.0)},
        {"a": Usage(0, 3.0), "b": Usage(2, 0.0)},
        {"b": Usage(1, 0.0)},
    ]
    assert add_up(tables) == {"a": Usage(0, 3.0), "b": Usage(3, 0.0)}


def test_a_complaint_is_the_alerts_or_else_everything() -> None:
    text = "[NOTICE]   (1) : hello\n[ALERT]    (1) : config : bad\n[ALERT]    (1) : worse\n"
    assert complaint_in(text) == "config : bad; worse"
    assert complaint_in("error while loading shared libraries\n") == "error while loading shared libraries"
    assert complaint_in("") == "it said nothing"
