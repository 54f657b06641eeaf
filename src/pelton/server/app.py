"""Everything beside inference: health, metadata, statistics, repository, metrics, OpenAPI. Made when first asked."""

from __future__ import annotations

from pelton.engine import Engine
from pelton.server.asgi import App, Message
from pelton.server.fleet import Fleet
from pelton.server.limits import Limits
from pelton.settings import Settings


class Site:
    """What the pages may look at. `stopping`: SIGTERM came, so readiness is 503."""

    def __init__(self, engine: Engine, fleet: Fleet, settings: Settings, limits: Limits) -> None:
        self.engine = engine
        self.fleet = fleet
        self.settings = settings
        self.limits = limits
        self.stopping = False


def lazy_app(site: Site) -> App:
    """The ASGI application; its framework is imported at the first request, which keeps start and memory small."""
    made: list[App] = []

    async def app(scope: Message, receive: object, send: object) -> None:
        if not made:
            from pelton.server.pages import make_app

            made.append(make_app(site))
        await made[0](scope, receive, send)  # type: ignore[arg-type]  # passed through as they came

    return app
