"""Model folder room."""

from .bundled_code import write_code

__all__ = ["write_code"]
