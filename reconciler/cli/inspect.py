"""The command that only looks at everything: status."""

import asyncio

from reconciler.cli.common import exit_code, fail
from reconciler.cli.show import print_json, show_problems, show_status
from reconciler.core.provenance import in_words as source_in_words
from reconciler.core.render import RenderError
from reconciler.core.turn import Options
from reconciler.host import log as logging
from reconciler.host.lock import holder
from reconciler.host.settings import Settings
from reconciler.loop import service
from reconciler.loop.status import source_of, statuses
from reconciler.ray_serve.client import ServeUnreachableError
from reconciler.weights.revisions import PinsUnreadableError


def status(settings: Settings, *, output: str) -> int:
    """Show what is up; exit as a dry run would."""
    logging.configure(json_lines=False, level="error")
    try:
        look = asyncio.run(service.look_once(settings, Options(max_loads=settings.loads_at_once), ask_hub=False))
    except ServeUnreachableError as error:
        fail(str(error))
    except (RenderError, FileNotFoundError, PinsUnreadableError) as error:
        fail(str(error))
    rows = [each.row() for each in statuses(look)]
    pid = holder(settings.state_dir)
    notes = [] if pid else ["no reconciler runs here; `reconcile --watch` keeps models as their files want them"]
    if output == "json":
        print_json(
            {
                "revision": look.desired.revision,
                "source": source_of(look),
                "reconciler_pid": pid,
                "models": rows,
                "problems": [str(problem) for problem in look.desired.problems],
                "refused": [refusal.reason for refusal in look.plan.refused],
            }
        )
    else:
        show_problems(look.desired.problems)
        if look.desired.provenance is not None:
            notes.append(source_in_words(look.desired.provenance, look.observed.now))
        show_status(rows, notes + [f"refused: {refusal.reason}" for refusal in look.plan.refused])
    return exit_code(look.plan, problems=bool(look.desired.problems))
