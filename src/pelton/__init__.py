"""Pelton puts trained models into production."""

__version__ = "0.1.0"
