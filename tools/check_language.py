"""Refuse idioms in prose: `python tools/check_language.py [FILE ...]`, by default all of the repository's text.

Prose is Markdown, HTML and JavaScript as a whole, and of Python files the comments and strings (docstrings, help,
messages). Each hit is printed with file and line, and with what to write instead; the exit code is then 1. The list is
short on purpose: an entry must never refuse a plain sentence.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES: tuple[str, ...] = (
    "*.md",
    "*.py",
    "docs/*.md",
    "benchmarks/*.md",
    "benchmarks/*.py",
    ".github/**/*.md",
    "tools/*.py",
)
PLACES += tuple(f"{folder}/**/*.{kind}" for folder in ("src", "tests") for kind in ("py", "md", "html", "js"))
# Texts of other people, and those that have to spell the idioms.
SKIPPED = {"DINOV3_LICENSE.md", "ATTRIBUTION.md", "check_language.py", "test_packaging.py"}


@dataclass(frozen=True)
class Idiom:
    """A phrase that is refused. A space in `pattern` is any run of spaces and line breaks."""

    pattern: str
    instead: str
    example: str

    def regex(self) -> re.Pattern[str]:
        return re.compile(rf"\b(?:{self.pattern})\b".replace(" ", r"\s+"), re.IGNORECASE)


IDIOMS = (
    Idiom("anew", "again", "The file is read anew."),
    Idiom("aloud", "logged as a warning", "It starts from the beginning, aloud."),
    Idiom("(?:is|are|was|were|be|been|being) told(?! apart)", "reported; named", "Others are told to come back."),
    Idiom("mend(?:s|ed|ing)?", "fix", "An error that a user can mend."),
    Idiom("whole or not at all", "atomically", "A shard is written whole or not at all."),
    Idiom("(?:go|goes|going|gone|went) on (?:with|where)", "resume, continue", "A stopped run is gone on with."),
    Idiom("a rest (?:to|for|of)", "the remainder", "What a node has, but a rest to read."),
    Idiom("of ours", "name the thing (this package, a model folder)", "A model of ours."),
    Idiom("born", "initialised, created", "Queries are born at seeds."),
    Idiom("in place of", "instead of", "The file in place of the model."),
    Idiom("one an? (?:GPU|node|process|image|class|worker)", "one per", "Models: one a GPU."),
    Idiom("(?:takes?|taken|taking) along", "lost with", "Batches that a dying node takes along."),
    Idiom("complain(?:s|ed|ing)? of", "report", "Options read and complained of."),
    Idiom("in the house", "in the queue; in the package", "A request takes its place in the house."),
    Idiom("is sure of (?:less|more)", "has a lower score, has a higher score", "Of a model that is sure of less."),
    Idiom("as ever", "as before", "Computed in float32 as ever."),
)


def prose_of_python(source: str) -> str:
    """The comments and strings of Python source, each at its own line and column.

    Code is replaced by NUL characters, so that no phrase reaches across it; quotes and `#` are replaced by spaces, so
    that one does reach across lines of a comment and across strings that Python joins.
    """
    lines = source.splitlines(keepends=True)
    prose = [re.sub(r"\S", "\0", line) for line in lines]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (tokenize.COMMENT, tokenize.STRING) and "FSTRING" not in tokenize.tok_name[token.type]:
            continue
        for row in range(token.start[0], token.end[0] + 1):
            start = token.start[1] if row == token.start[0] else 0
            end = token.end[1] if row == token.end[0] else len(lines[row - 1])
            text = re.sub(
                r"#|\b[rbfuRBFU]{1,2}(?=[\"'])|[\"']", lambda found: " " * len(found[0]), lines[row - 1][start:end]
            )
            prose[row - 1] = prose[row - 1][:start] + text + prose[row - 1][end:]
    return "".join(prose)


def faults(text: str) -> Iterator[tuple[int, str]]:
    """Line (from 1) and message of each idiom in a text."""
    for idiom in IDIOMS:
        for found in idiom.regex().finditer(text):
            phrase = " ".join(found[0].split())
            yield text.count("\n", 0, found.start()) + 1, f"{phrase!r}: write {idiom.instead!r}"


def check(path: Path) -> list[str]:
    """The faults of one file as `path:line: message`, in the order of lines."""
    text = path.read_text(encoding="utf-8")
    prose = prose_of_python(text) if path.suffix == ".py" else text
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    return [f"{name}:{line}: {message}" for line, message in sorted(faults(prose))]


def main(arguments: list[str]) -> int:
    chosen = [Path(name).resolve() for name in arguments]
    found = {path for place in PLACES for path in ROOT.glob(place) if path.name not in SKIPPED}
    lines = [line for path in chosen or sorted(found) for line in check(path)]
    for line in lines:
        print(line, file=sys.stderr)
    if lines:
        print(f"{len(lines)} idioms: write the plain words instead", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
