"""Every operation that a person can order, on a store: the command line calls it directly or through the admin API.

`moves` holds what a rollout's steps do to its deployment, for people and for the steward of a server alike.
"""

from pelton.control.control import Control

__all__ = ["Control"]
