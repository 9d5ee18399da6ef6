"""Command line room."""

from .verbs import main

__all__ = ["main"]
