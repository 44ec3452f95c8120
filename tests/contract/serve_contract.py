"""How Serve's declarative API behaves, as far as the reconciler leans on it.

Each function of `CONTRACT` asks one thing of a `Subject`: the simulator's fake, or Ray Serve itself. They can
follow one another on one Serve: `have` leaves what is there already, and sends away what the one before has left.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

import pytest

from reconciler.core.state import Application, Json, Status
from reconciler.ray_serve.client import ServeRefusedError, ServeUnreachableError
from reconciler.ray_serve.observed import applications, serve_settings

from .serve_apps import REASON, SLOW_BUILD_SECONDS

FIRST_PUT: Json = {"proxy_location": "Disabled"}
LONGEST = 60.0
"""Seconds that anything may take that takes seconds."""
STEP = 0.2
BUILD_TRIES = 4
"""So often Ray runs a build that fails, before Serve hears of it (`build_serve_application`: `max_retries=3`)."""


class Serve(Protocol):
    """What `ServeClient` offers."""

    async def instance(self) -> Json: ...

    async def put(self, config: Json) -> None: ...


class Subject(Protocol):
    """A Serve, and hands that can do to it what happens to a Serve."""

    @property
    def serve(self) -> Serve: ...

    def application(self, name: str, kind: str = "well", **more: object) -> Json:
        """A configuration; `kind` is well, slow (to build), no build, no replica or no room."""

    def builds(self, name: str) -> int:
        """How often the application's build was begun."""

    async def pass_time(self, seconds: float) -> None: ...

    async def run_by_hand(self, name: str) -> None:
        """`serve.run`."""

    async def kill_controller(self) -> None: ...


async def put(subject: Subject, *configs: Json) -> None:
    """The whole set, with the settings that Serve runs with."""
    settings = serve_settings(await subject.serve.instance()) or FIRST_PUT
    await subject.serve.put({**settings, "applications": list(configs)})


async def look(subject: Subject) -> dict[str, Application]:
    """What the reconciler sees."""
    return applications(await subject.serve.instance())


async def until(subject: Subject, holds: Callable[[dict[str, Application]], bool]) -> dict[str, Application]:
    """Wait for what has to come; gives what was seen then."""
    passed, seen = 0.0, {}
    while passed < LONGEST:
        seen = await look(subject)
        if holds(seen):
            return seen
        await subject.pass_time(STEP)
        passed += STEP
    raise AssertionError(f"it did not come in {LONGEST} s: {seen}")


def runs(*names: str) -> Callable[[dict[str, Application]], bool]:
    """All of them have a running replica, and Serve says so."""
    return lambda seen: all(name in seen and seen[name].status is Status.RUNNING for name in names)


def replicas(seen: dict[str, Application], name: str) -> list[tuple[str, str]]:
    """Its replicas with their states."""
    return [(replica.id, replica.state) for replica in seen[name].replicas]


async def have(subject: Subject, *names: str) -> dict[str, Application]:
    """These run and nothing else; what was there already stays as it is."""
    await put(subject, *(subject.application(name) for name in names))
    return await until(subject, runs(*names))


async def nothing_runs_at_first(subject: Subject) -> None:
    instance = await subject.serve.instance()
    assert serve_settings(instance) is None
    assert applications(instance) == {}


async def a_put_builds_and_then_runs(subject: Subject) -> None:
    config = subject.application("first", "slow")
    await put(subject, config)
    seen = (await look(subject))["first"]
    assert (seen.status, seen.building, seen.replicas) == (Status.DEPLOYING, True, ())
    assert seen.config == config
    done = await until(subject, runs("first"))
    assert [state for _, state in replicas(done, "first")] == ["RUNNING"]
    assert not done["first"].building
    assert done["first"].config == config
    assert serve_settings(await subject.serve.instance()) is not None


async def an_unchanged_application_keeps_its_replicas_beside_a_new_one(subject: Subject) -> None:
    before = replicas(await have(subject, "stays"), "stays")
    built = subject.builds("stays")
    seen = await have(subject, "stays", "comes")
    assert replicas(seen, "stays") == before
    assert subject.builds("stays") == built


async def settings_of_a_deployment_are_changed_in_place(subject: Subject) -> None:
    before = replicas(await have(subject, "stays", "comes"), "stays")
    built = subject.builds("stays")
    tuned = subject.application("stays") | {"deployments": [{"name": "LLMServer:x", "max_ongoing_requests": 7}]}
    await put(subject, tuned, subject.application("comes"))
    seen = await until(subject, lambda seen: runs("stays")(seen) and seen["stays"].config == tuned)
    assert replicas(seen, "stays") == before
    assert subject.builds("stays") == built


async def other_arguments_mean_other_replicas(subject: Subject) -> None:
    before = replicas(await have(subject, "stays", "comes"), "comes")
    built = subject.builds("comes")
    after = subject.application("comes", note="changed")
    await put(subject, subject.application("stays"), after)
    seen = await until(subject, lambda seen: runs("comes")(seen) and replicas(seen, "comes") != before)
    assert seen["comes"].config == after
    assert subject.builds("comes") == built + 1


async def what_a_put_leaves_out_is_deleted_and_its_configuration_forgotten_first(subject: Subject) -> None:
    if "comes" not in await look(subject):
        await have(subject, "stays", "comes")
    await put(subject, subject.application("stays"))
    seen = await until(subject, lambda seen: "comes" not in seen or seen["comes"].status is Status.DELETING)
    if "comes" in seen:
        assert seen["comes"].config is None
    seen = await until(subject, lambda seen: "comes" not in seen)
    assert seen["stays"].config == subject.application("stays")


async def a_put_while_it_builds_begins_the_build_again(subject: Subject) -> None:
    config = subject.application("slow", "slow")
    await put(subject, config)
    await until(subject, lambda seen: subject.builds("slow") == 1)
    await put(subject, config)
    await until(subject, runs("slow"))
    assert subject.builds("slow") == 2


async def a_build_that_failed_is_tried_again_by_the_same_put(subject: Subject) -> None:
    """Other than a replica that failed: without a build there is no version that could be the same."""
    config = subject.application("unbuildable", "no build")
    await put(subject, config)
    seen = (await until(subject, lambda seen: seen["unbuildable"].status is Status.DEPLOY_FAILED))["unbuildable"]
    assert REASON in seen.message
    assert seen.failure == REASON
    assert (seen.config, seen.replicas) == (config, ())
    assert subject.builds("unbuildable") == BUILD_TRIES
    await put(subject, config)
    again = (await look(subject))["unbuildable"]
    assert (again.status, again.building) == (Status.DEPLOYING, True)
    await until(subject, lambda seen: subject.builds("unbuildable") > BUILD_TRIES)


async def a_replica_that_failed_is_not_tried_again_by_the_same_put(subject: Subject) -> None:
    config = subject.application("unstartable", "no replica")
    await put(subject, config)
    first = (await until(subject, lambda seen: bool(seen["unstartable"].failure)))["unstartable"]
    assert first.failure == REASON
    failed = await until(subject, lambda seen: seen["unstartable"].status is Status.DEPLOY_FAILED)
    assert failed["unstartable"].failure == REASON
    await put(subject, config)
    for _ in range(7):
        await subject.pass_time(STEP)
        seen = (await look(subject))["unstartable"]
        assert not any(replica.state == "RUNNING" for replica in seen.replicas)
    assert seen.status is Status.DEPLOY_FAILED
    assert subject.builds("unstartable") == 1


async def what_finds_no_place_waits_without_an_error(subject: Subject) -> None:
    big, stays = subject.application("big", "no room"), subject.application("stays")
    await put(subject, big, stays)
    await until(subject, lambda seen: runs("stays")(seen) and bool(seen["big"].replicas))
    for _ in range(6):
        await subject.pass_time(STEP)
        seen = (await look(subject))["big"]
        assert (seen.status, seen.failure, seen.building) == (Status.DEPLOYING, "", False)
        assert [replica.state for replica in seen.replicas] == ["STARTING"]
    await put(subject, stays)
    await until(subject, lambda seen: "big" not in seen)


async def what_was_made_by_hand_is_left_alone(subject: Subject) -> None:
    await have(subject, "stays")
    await subject.run_by_hand("theirs")
    before = replicas(await until(subject, runs("theirs")), "theirs")
    assert (await look(subject))["theirs"].config is None
    await have(subject, "stays")
    await subject.pass_time(5 * STEP)
    seen = await until(subject, runs("theirs"))
    assert replicas(seen, "theirs") == before
    assert {each.status for each in seen.values()} == {Status.RUNNING}


async def a_set_that_is_not_valid_changes_nothing(subject: Subject) -> None:
    before = replicas(await have(subject, "stays"), "stays")
    other = subject.application("other")
    for bad in ([other, other], [other, other | {"name": "third"}], [other | {"import_path": "nowhere"}]):
        with pytest.raises(ServeRefusedError):
            await put(subject, *bad)
    seen = await look(subject)
    assert replicas(seen, "stays") == before
    assert not {"other", "third"} & seen.keys()


async def what_is_being_deleted_can_be_put_again(subject: Subject) -> None:
    """It is built again; whether its replicas have gone meanwhile is a matter of luck."""
    await have(subject, "stays")
    built, config = subject.builds("stays"), subject.application("stays")
    await put(subject)
    await put(subject, config)
    seen = await until(
        subject,
        lambda seen: runs("stays")(seen) and subject.builds("stays") == built + 1 and not seen["stays"].building,
    )
    assert seen["stays"].config == config


async def a_new_controller_finds_everything_again(subject: Subject) -> None:
    """It never says meanwhile that nothing is there; and a build that was under way is begun again."""
    before = replicas(await have(subject, "stays"), "stays")
    built = subject.builds("stays")
    await put(subject, subject.application("stays"), subject.application("half-built", "slow"))
    await until(subject, lambda seen: subject.builds("half-built") == 1)
    await subject.kill_controller()
    unreachable, passed = 0, 0.0
    while passed < LONGEST:
        try:
            seen = await look(subject)
        except ServeUnreachableError:
            unreachable += 1
        else:
            assert seen.keys() >= {"stays", "half-built"}, f"after {passed} s, {unreachable} without an answer"
            if runs("stays", "half-built")(seen):
                break
        await subject.pass_time(STEP)
        passed += STEP
    assert replicas(seen, "stays") == before
    assert subject.builds("stays") == built
    assert subject.builds("half-built") == 2
    assert passed >= SLOW_BUILD_SECONDS / 2


CONTRACT: tuple[Callable[[Subject], Awaitable[None]], ...] = (
    nothing_runs_at_first,
    a_put_builds_and_then_runs,
    an_unchanged_application_keeps_its_replicas_beside_a_new_one,
    settings_of_a_deployment_are_changed_in_place,
    other_arguments_mean_other_replicas,
    what_a_put_leaves_out_is_deleted_and_its_configuration_forgotten_first,
    a_put_while_it_builds_begins_the_build_again,
    a_build_that_failed_is_tried_again_by_the_same_put,
    a_replica_that_failed_is_not_tried_again_by_the_same_put,
    what_finds_no_place_waits_without_an_error,
    what_was_made_by_hand_is_left_alone,
    a_set_that_is_not_valid_changes_nothing,
    what_is_being_deleted_can_be_put_again,
    a_new_controller_finds_everything_again,
)
