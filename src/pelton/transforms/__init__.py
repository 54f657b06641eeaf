"""Carries out what packages declare: callers' fields -> tensors, and outputs -> answers."""

from pelton.transforms.answers import Finish, compile_finish
from pelton.transforms.fields import FieldSpec, Prepared
from pelton.transforms.prepare import Prepare, compile_prepare

__all__ = ["FieldSpec", "Finish", "Prepare", "Prepared", "compile_finish", "compile_prepare"]
