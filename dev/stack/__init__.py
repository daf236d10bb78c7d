"""The whole system as local processes on free ports, each awaited and never orphaned."""

from dev.stack.options import StackOptions
from dev.stack.stack import Stack

__all__ = ["Stack", "StackOptions"]
