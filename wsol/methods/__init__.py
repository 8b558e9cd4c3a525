"""Training methods of weakly supervised localization, each in a file of its own; `METHODS` is the list."""

from wsol.methods.registry import METHODS, MethodEntry, MethodOption

__all__ = ["METHODS", "MethodEntry", "MethodOption"]
