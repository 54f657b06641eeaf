"""Runtimes: one file each; a runtime turns a loaded package into a callable."""
