"""Constant streaming load, in a thread of its own, that remembers everything that went wrong."""

import asyncio
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import openai


@dataclass
class Tally:
    """What became of the requests to one model."""

    answered: int = 0
    failures: list[str] = field(default_factory=list)


class Traffic:
    """Streams chat completions from each of `models` without a pause, and checks that every one ends properly.

    Args:
        url: The front door.
        models: Names to ask for; more can be added while it runs.
        tokens: Length of one answer.
    """

    def __init__(self, url: str, models: list[str], *, tokens: int = 24) -> None:
        self._url = url
        self._tokens = tokens
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self.tallies = {model: Tally() for model in models}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=60)

    def answered(self, model: str) -> int:
        """Requests answered in full so far."""
        return self.tallies[model].answered

    def failures(self) -> list[str]:
        """Everything that went wrong so far."""
        return [failure for tally in self.tallies.values() for failure in tally.failures]

    async def _run(self) -> None:
        async with openai.AsyncOpenAI(base_url=self._url, api_key="none", max_retries=0, timeout=120) as client:
            await asyncio.gather(*(self._ask_on(client, model) for model in self.tallies))

    async def _ask_on(self, client: openai.AsyncOpenAI, model: str) -> None:
        tally = self.tallies[model]
        while not self._stop.is_set():
            started = time.strftime("%H:%M:%S")
            try:
                stream = await client.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": "Hello"}],
                    max_tokens=self._tokens,
                    stream=True,
                    extra_body={"ignore_eos": True},
                )
                finish = None
                async for chunk in stream:
                    finish = chunk.choices[0].finish_reason or finish if chunk.choices else finish
                if finish != "length":
                    tally.failures.append(f"{started} {model}: the stream ended with {finish}")
                else:
                    tally.answered += 1
            except Exception as error:  # noqa: BLE001 -- whatever it is, it is what the test is about
                tally.failures.append(f"{started}-{time.strftime('%H:%M:%S')} {model}: {error!r}")
                await asyncio.sleep(0.2)
            # Two cores also have to load models meanwhile: constant traffic, not saturation.
            await asyncio.sleep(1.5)
