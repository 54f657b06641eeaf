"""Triton kernels. Each has a reference in plain torch (`pelton.runtimes.lm.reference`) that tests compare it with."""
