"""The `attrace` command."""

from attrace.cli.app import main

__all__ = ["main"]
