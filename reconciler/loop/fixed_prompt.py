"""Ask a version the fixed prompt, whose answer is the same before a sleep and after it."""

import json

import aiohttp

from reconciler.core.sleep import answer_in, fixed_prompt

_OK = 200


class NoAnswerError(Exception):
    """A version did not answer the fixed prompt; the text says what it said instead."""


async def ask_fixed(base_url: str, model: str, task: str, *, patience: float = 60.0) -> str:
    """What a version answers to the fixed prompt, in a form that can be compared.

    Args:
        base_url: The application's own route at Serve's HTTP proxy.
        model: The model's name.
        task: What the model does, a `Task` value.
        patience: Seconds to wait.

    Raises:
        NoAnswerError: It did not answer, or there is nothing to ask such a model.
    """
    request = fixed_prompt(model, task)
    if request is None:
        raise NoAnswerError(f"there is no fixed prompt for the task {task}")
    path, body = request
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=patience)) as session,
            session.post(base_url + path, json=body) as answer,
        ):
            text = await answer.text(errors="replace")
            said = answer_in(json.loads(text)) if answer.status == _OK else ""
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, RecursionError) as error:
        raise NoAnswerError(str(error) or type(error).__name__) from error
    if not said:
        raise NoAnswerError(f"HTTP {answer.status}: {' '.join(text.split())[:300]}")
    return said
