"""Which model answers: the one that the settings name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from app.models import Model
from app.models.anthropic import Messages
from app.models.openai import ChatCompletions
from app.models.remote import Remote, Wire, connections
from app.models.simulated import Simulated
from app.settings import Settings

WIRES: dict[str, Callable[[Settings], Wire]] = {"anthropic": Messages, "openai": ChatCompletions}


@asynccontextmanager
async def chosen(settings: Settings) -> AsyncIterator[Model]:
    """Give the model, and keep its connections meanwhile."""
    if settings.model == "sim":
        yield Simulated(settings.sim_delay_ms, settings.sim_seed)
        return
    async with connections() as session:
        yield Remote(session, WIRES[settings.model_provider](settings), settings)
