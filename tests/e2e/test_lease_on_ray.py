"""The lease in a real Ray's GCS, as `start.sh` starts it: who wins, who comes after a kill, who is locked out."""

import asyncio
import signal
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from stack import Stack

from reconciler.cli.lock_commands import lock, unlock
from reconciler.core.lease import LASTS_SECONDS, LeaseStoreError, read_lease
from reconciler.host.settings import Settings
from reconciler.loop.lease import NoLeaseError, make_keeper
from reconciler.ray_serve.client import ServeClient
from reconciler.ray_serve.engine_calls import gcs_address
from reconciler.ray_serve.lease_store import GcsLeaseStore

pytestmark = pytest.mark.e2e

HOLD = """
import asyncio, sys
from pathlib import Path
from reconciler.host.settings import Settings
from reconciler.loop.lease import make_keeper
from reconciler.ray_serve.client import ServeClient

async def main():
    settings = Settings(ray_dashboard=sys.argv[1], ray_token_path=Path(sys.argv[2]), state_dir=Path(sys.argv[3]))
    async with ServeClient(settings.ray_dashboard, settings.ray_token_path) as client:
        keeper = make_keeper(settings, client, "reconcile --watch")
        keeper.start()
        await keeper.wait()
        print("held", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def settings_of(bare: Stack, state: Path) -> Settings:
    return Settings(ray_dashboard=bare.dashboard, ray_token_path=bare.state / "ray-token", state_dir=state)


async def test_one_holds_it_the_next_one_comes_after_a_kill_and_a_person_locks_both_out(
    bare: Stack, tmp_path: Path
) -> None:
    token, wrong = bare.state / "ray-token", tmp_path / "wrong"
    wrong.write_text("0" * 64)
    async with ServeClient(bare.dashboard, token) as client:
        with pytest.raises(LeaseStoreError, match="InvalidAuthToken"):
            await GcsLeaseStore(lambda: gcs_address(client), wrong).read()

        # Those who come at once: one gets it.
        places = [settings_of(bare, tmp_path / f"crowd{number}") for number in range(6)]
        crowd = [make_keeper(place, client, "at once") for place in places]
        outcomes = await asyncio.gather(*(each.take() for each in crowd), return_exceptions=True)
        assert sorted(type(each).__name__ for each in outcomes) == ["NoLeaseError"] * 5 + ["NoneType"]
        assert [each.holds() for each in crowd] == [outcome is None for outcome in outcomes]
        for each in crowd:
            await each.close()
        store = GcsLeaseStore(lambda: gcs_address(client), token)
        assert read_lease((await store.read()).text) is None, "given back"

        # One that is killed: its record stays.
        arguments = [bare.dashboard, str(token), str(tmp_path / "first")]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", HOLD, *arguments, stdout=pipe, env=bare.environment
        )
        second = make_keeper(settings_of(bare, tmp_path / "second"), client, "reconcile --watch")
        try:
            assert process.stdout is not None
            while await process.stdout.readline() != b"held\n":
                assert process.returncode is None, "it logs before"
            with pytest.raises(NoLeaseError, match=r"first writes to this cluster \(reconcile --watch\)"):
                await second.take()
            second.start()
            process.send_signal(signal.SIGKILL)
            await process.wait()
            killed = time.monotonic()
            await asyncio.wait_for(second.wait(), LASTS_SECONDS + 10)
            assert time.monotonic() - killed > LASTS_SECONDS / 2

            # A person, by the commands themselves.
            shared: dict[str, object] = {"state_dir": bare.state, "models_dir": None, "output": "json"}
            shown = await asyncio.to_thread(run, lock, [], shared, bare)
            assert str(tmp_path / "second") in shown
            reason = ["--reason", "driver upgrade", "--no-wait"]
            assert "driver upgrade" in await asyncio.to_thread(run, lock, reason, shared, bare)
            await second._try(store)
            assert not second.holds()
            assert "has locked this cluster for another 1 h (driver upgrade)" in second.why_not()
            await asyncio.to_thread(run, unlock, [], shared, bare)
            await second._try(store)
            assert second.holds(), "it comes first"
        finally:
            if process.returncode is None:
                process.kill()
            await second.close()


def run(command: click.Command, arguments: list[str], shared: dict[str, object], bare: Stack) -> str:
    settings = {
        "RECONCILE_RAY_DASHBOARD": bare.dashboard,
        "RECONCILE_RAY_TOKEN_PATH": str(bare.state / "ray-token"),
    }
    result = CliRunner().invoke(command, arguments, obj=shared, env=settings)
    assert result.exit_code == 0, result.output
    return result.output
