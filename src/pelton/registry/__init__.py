"""The registry: models, their versions, the aliases that name versions, and what may be forgotten.

    store: versions, aliases, alias_history      what there is, since when, by whom (`pelton.store`)
    home/artifacts/<version>/...                 the packages (`pelton.artifacts`)

Versions are immutable and belong to one model; adding the same package twice gives the same version and makes it the
newest. An entry appears only after its package is whole on the disk, and goes before its package goes. So a process
may be killed anywhere: at worst a package without an entry stays, which nobody sees and which adding it again takes up.

Reading a SQLite store this way imports no SQLAlchemy, which would be a third of the time that a server needs to start.
"""

from pelton.registry.entries import Alias, AliasMove, Collected, Entry, Lineage
from pelton.registry.registry import Registry

__all__ = ["Alias", "AliasMove", "Collected", "Entry", "Lineage", "Registry"]
