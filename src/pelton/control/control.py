"""All operations in one object."""

from __future__ import annotations

from pelton.control.applying import Applying
from pelton.control.deploys import Deploys


class Control(Deploys, Applying):
    """What people order, about one store. Safe between threads and processes; raises PeltonErrors that say what to do."""
