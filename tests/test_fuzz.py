"""A sample of `tools/fuzz_inputs.py`: changed inputs end in a clear error, or are read."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

from support.paths import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_inputs", ROOT / "tools/fuzz_inputs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_inputs"] = module
    spec.loader.exec_module(module)
    return module


def test_fuzz__sound_inputs_are_accepted(fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "mutate_tree", lambda _, tree: tree)
    monkeypatch.setattr(fuzz, "to_bytes", lambda _, tree: fuzz.json.dumps(tree).encode())
    monkeypatch.setattr(fuzz, "_mutate_weights", lambda _, data: data)
    counts, findings = fuzz.fuzz(fuzz.KINDS, range(len(fuzz.KINDS)), 0)
    assert not findings
    assert counts == {f"{kind}: accepted": 1 for kind in fuzz.KINDS}


def test_fuzz__changed_inputs_end_in_a_clear_error_or_are_read(fuzz: ModuleType) -> None:
    counts, findings = fuzz.fuzz(fuzz.KINDS, range(1_000_000, 1_000_020), 0)
    assert not findings, "\n".join(findings)
    assert sum(counts.values()) == 20
    assert sum(count for name, count in counts.items() if name.endswith("refused")) > 5


def test_judge__counts_what_is_no_clear_error(fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A harness that found nothing at all would pass the test above."""

    def fail() -> None:
        raise ZeroDivisionError("a fault of this package")

    def refuse() -> None:
        raise fuzz.Refusal("a.json: expected less")

    def wait() -> None:
        while True:
            pass

    def fill() -> None:
        held = [bytearray(50_000_000) for _ in range(100)]
        held.clear()

    cases = ((fail, "traceback"), (refuse, "refused"), (wait, "hang"), (fill, "memory"), (lambda: None, "accepted"))
    for read, expected in cases:
        monkeypatch.setattr(fuzz, "SECONDS", 1.0 if expected == "hang" else 60.0)
        assert fuzz.judge(fuzz.Case(read, ("a.json",)))[0] == expected
    assert fuzz.judge(fuzz.Case(refuse, ("b.json",)))[0] == "nameless"


def test_mutations__are_the_same_for_the_same_seed(fuzz: ModuleType) -> None:
    tree = {"a": [1, 2, {"b": [3.5, "x"]}], "c": None}
    made = [fuzz.to_bytes(random.Random(1), fuzz.mutate_tree(random.Random(seed), tree)) for seed in (1, 1, 2, 3)]
    assert made[0] == made[1]
    assert len(set(made)) > 1
    assert tree == {"a": [1, 2, {"b": [3.5, "x"]}], "c": None}
