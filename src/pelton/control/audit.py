"""The audit log, and the webhooks that are told of it."""

from __future__ import annotations

import msgspec

from pelton.control.desk import UNKNOWN, Desk
from pelton.events import Event, Events, Webhook


class EventPage(msgspec.Struct, frozen=True):
    """Events, the oldest first. `next`: what to give as `after` for those that come later."""

    events: list[Event]
    next: int


class WebhookList(msgspec.Struct, frozen=True):
    """Webhooks, without their secrets."""

    webhooks: list[Webhook]


class Audit(Desk):
    """The operations on the log and on webhooks."""

    def audit(self, name: str = "", action: str = "", after: int | None = None, limit: int = 100) -> EventPage:
        """Events after an id, or, where that is None, the last `limit`. `name`, `action`: only those."""
        log = Events(self.store)
        if after is None:
            events = log.latest(limit, name, action)
        else:
            events = log.page(after, limit, name, action)
        return EventPage(events, events[-1].id if events else after or 0)

    def add_webhook(
        self, url: str, actions: tuple[str, ...] = (), secret: str | None = None, actor: str = ""
    ) -> Webhook:
        """Has a URL told of events from now on, with signed bodies. The answer is the only one that shows the secret."""
        return Events(self.store).webhook_add(url, secret, actions, actor or UNKNOWN, self.clock())

    def webhooks(self) -> WebhookList:
        """All webhooks, and how far each has been told."""
        return WebhookList(Events(self.store).webhooks())

    def remove_webhook(self, webhook: str, actor: str = "") -> WebhookList:
        """Takes a webhook away and returns those that stay. Raises NotFound."""
        log = Events(self.store)
        log.webhook_remove(webhook, actor or UNKNOWN, self.clock())
        return WebhookList(log.webhooks())
