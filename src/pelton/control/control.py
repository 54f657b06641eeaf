"""All operations in one object."""

from __future__ import annotations

from pelton.control.applying import Applying
from pelton.control.audit import Audit
from pelton.control.deploys import Deploys
from pelton.control.models import Models
from pelton.control.rollouts import Rollouts
from pelton.control.views import Views


class Control(Deploys, Rollouts, Applying, Views, Models, Audit):
    """What people order, about one store. Safe between threads and processes; raises PeltonErrors that say what to do."""
