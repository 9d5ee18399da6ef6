"""README, docs and the other pages: the messages, files, names and commands that they quote are those of the code."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from mask2former_dinov3.cli.verbs import build_parser
from mask2former_dinov3.config.train_config import TrainConfig
from mask2former_dinov3.errors import mismatch
from support.paths import BENCHMARKS, DOCS, PACKAGE, ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md")), BENCHMARKS / "README.md"]
# Spans of code that begin so are commands, not messages.
COMMANDS = ("mask2former-dinov3 ", "accelerate ", "ACCELERATE_USE_CPU=", "hf ", "make ", "pip ", "ray ", "torch")
FOREIGN_MESSAGES = (
    "class x1 y1 x2 y2 …",  # a line of YOLO's format
    "DataLoader worker … is killed by signal: Bus error",
    "model type mask2former_dinov3",
    "No module named 'peft'",
    "Unrecognized image processor",
)
# Identifiers of other programs, and of files that they write.
FOREIGN_NAMES = (
    *("CUDA_VISIBLE_DEVICES", "FOUR_EVEN_INTERVALS", "GridSample", "HF_ENDPOINT", "OMP_NUM_THREADS"),
    *("TimeoutStopSec", "cpu_offload", "device_map", "quantize_dynamic"),
    # of programs that read or write annotations (docs/formats.md)
    *("COCODetectionDatasetImporter", "as_coco", "convert_coco_to_ls", "from_coco", "from_yolo", "slice_coco"),
    # transformers' own tests (docs/huggingface.md)
    *("test_batching_equivalence", "test_capture_outputs_decorator", "test_eager_matches_sdpa_inference"),
    *("test_model_get_set_embeddings", "test_model_outputs_equivalence", "test_num_layers_is_small"),
)


def spans_of(text: str) -> Iterator[str]:
    """What stands between single backticks, on one line each; blocks of code are left out."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for found in re.findall(r"`([^`]+)`", prose):
        yield " ".join(found.split())


def blocks_of(text: str) -> Iterator[str]:
    """Blocks of code, each command on one line."""
    for block in re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        yield re.sub(r"\\\n\s*", "", block)


def all_spans() -> list[tuple[Path, str]]:
    return [(page, span) for page in PAGES for span in spans_of(page.read_text(encoding="utf-8"))]


@cache
def strings_of_modules() -> dict[Path, str]:
    """The string literals of each module, docstrings left out; NUL where a literal ends or a value is filled in."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        parts = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
        ]
        found[path] = "\0".join(parts)
    return found


def is_in_source(quote: str) -> bool:
    """Whether one module holds all literal parts of a message.

    "…" stands for values that are filled in; "expected", "got" and ";" are the frame that `mismatch` adds.
    """
    parts = [part.strip(" ,:.") for part in re.split(r"…|\bexpected |\bgot |; ", quote)]
    return any(all(part in text for part in parts) for text in strings_of_modules().values())


def is_message(span: str) -> bool:
    """The rule for all pages: text with "expected …" or with "…", unless it is a command."""
    quotes = span.startswith("expected ") or ("…" in span and re.match(r"[A-Za-z]+ \w", span))
    return bool(quotes) and not span.startswith(COMMANDS) and span not in FOREIGN_MESSAGES


def test_messages__have_one_frame() -> None:
    assert mismatch("…", "…", "…") == "expected …, got …; …"  # what `is_in_source` leaves out


@pytest.mark.parametrize(
    ("quote", "expected"),
    [
        ("expected a folder without a run, got … with an earlier run; resume it with …", True),
        ("stopped at step …; resume with --resume-from-checkpoint …", True),
        ("expected a folder without a run, got a finished run", False),
        ("expected a folder without a run, got … with an earlier run; delete it", False),
        ("README, docs", False),
    ],
)
def test_messages__are_found_only_as_they_are(quote: str, expected: bool) -> None:
    assert is_in_source(quote) == expected


def test_messages__in_headings_of_troubleshooting_are_in_the_source() -> None:
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### (.+)$", text, flags=re.MULTILINE)
    quotes = [span for heading in headings for span in spans_of(heading) if " " in span]
    ours = [quote for quote in quotes if not quote.startswith(COMMANDS) and quote not in FOREIGN_MESSAGES]
    assert len(ours) > 15
    assert [quote for quote in ours if not is_in_source(quote)] == []


def test_messages__on_all_pages_are_in_the_source() -> None:
    wrong = [f"{page.name}: {span}" for page, span in all_spans() if is_message(span) and not is_in_source(span)]
    assert wrong == []


def test_messages__of_other_programs_are_still_quoted() -> None:
    assert set(FOREIGN_MESSAGES) <= {span for _, span in all_spans()}


ROOMS = "|".join([*sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")), "sample"])


def missing_file(span: str) -> bool:
    """Whether a span names a file, folder or module of the repository that is not there.

    `training/run.py`, `model/criterion/` and `weights/loading` are in the package; `inference/postprocess.post_process`
    is a name in one of its modules. ROOM and NAME stand for any.
    """
    span = re.sub("ROOM|NAME", "*", span)
    if re.fullmatch(rf"(?:{ROOMS})/[\w./*{{}}-]*", span):
        base = PACKAGE
    elif re.fullmatch(r"(?:\.ci|\.github|benchmarks|docs|src|tests|tools)/[\w./*-]*", span):
        base = ROOT
    else:
        return False
    path, _, name = span.rpartition(".")
    if name != "py" and (base / f"{path}.py").is_file():
        text = (base / f"{path}.py").read_text(encoding="utf-8")
        return re.search(rf"^(?:def |class )?{name}\b", text, re.MULTILINE) is None
    return not any(list(base.glob(pattern)) for pattern in (span.rstrip("/"), f"{span}.py"))


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ("training/run.py", False),
        ("model/criterion/", False),
        ("weights/loading", False),
        ("inference/postprocess.post_process", False),
        ("tests/support/", False),
        ("training/optim.py", True),
        ("model/loss", True),
        ("inference/postprocess.post_processing", True),
        ("tests/helpers/", True),
        ("runs/first/best", False),
    ],
)
def test_files__missing_ones_are_noticed(span: str, expected: bool) -> None:
    assert missing_file(span) == expected


def test_files__that_pages_name_exist() -> None:
    assert [f"{page.name}: {span}" for page, span in all_spans() if missing_file(span)] == []


def test_names__that_pages_quote_exist() -> None:
    """A span that is one identifier, such as `plan_workers` or `InferenceSettings`, occurs in the code."""
    folders = (PACKAGE, ROOT / "tools", BENCHMARKS)
    texts = [path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob("*.py")]
    texts += [(PACKAGE / "browser/static/viewer.js").read_text(encoding="utf-8")]
    words = {word for text in texts for word in re.findall(r"\w+", text)}
    spans = {(page.name, span) for page, span in all_spans()}
    names = {(page, span) for page, span in spans if re.fullmatch(r"[A-Za-z]+(?:_\w+|[a-z][A-Z]\w+)", span)}
    assert len(names) > 150
    assert sorted(f"{page}: {span}" for page, span in names if span not in words and span not in FOREIGN_NAMES) == []
    assert set(FOREIGN_NAMES) <= {span for _, span in names}


def test_names__that_pages_import_exist() -> None:
    imports = [
        found
        for page in PAGES
        for block in blocks_of(page.read_text(encoding="utf-8"))
        for found in re.findall(r"from (mask2former_dinov3[\w.]*) import ([\w, ]+)", block)
    ]
    assert len(imports) > 10
    for module, names in imports:
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name), f"{module}: {name}"


def test_commands__use_options_that_their_verbs_have() -> None:
    verbs = build_parser().verbs
    known = {name: {option.replace("_", "-") for option in parser.options} for name, parser in verbs.items()}
    known["train"] |= {f"--{name.replace('_', '-')}" for name in TrainConfig.model_fields}
    found = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for line in (*spans_of(text), *(line for block in blocks_of(text) for line in block.splitlines())):
            for verb, rest in re.findall(r"(?:mask2former-dinov3|-m mask2former_dinov3) ([a-z][a-z-]*)([^#|&]*)", line):
                assert verb in verbs, f"{page.name}: {line}"
                flags = {flag.replace("_", "-") for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", rest)}
                assert flags <= known[verb] | {"--help"}, f"{page.name}: {line}"
                found += 1
    assert found > 40


def test_commands__use_targets_of_make() -> None:
    targets = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[0].split()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for line in (*spans_of(text), *(line for block in blocks_of(text) for line in block.splitlines())):
            target = re.match(r"make ([a-z]+)", line)
            assert target is None or target[1] in targets, f"{page.name}: {line}"


def test_readme__is_short_and_starts_with_a_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1200
    assert len(text.partition("```")[0].split()) < 60
