"""The wheel, the lock file, the workflows and forms, and the tools that keep documents and releases in step."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mask2former_dinov3

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "mask2former_dinov3"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FORMS = sorted((ROOT / ".github").rglob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def tool(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of tools/."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module(name)


def commands_of(target: str) -> list[str]:
    """The commands of a target in the Makefile, with .venv/bin written out."""
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe is not None, f"Makefile has no target {target}"
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]


def pinned() -> dict[str, str]:
    """Package -> version of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pin) == 2 for pin in pins), "expected name==version in every line of constraints.txt"
    return {canonicalize_name(name): version for name, version in pins}


def test_wheel__holds_all_files_of_the_package(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    with zipfile.ZipFile(built) as wheel:
        names = set(wheel.namelist())
    inside = {name for name in names if name.startswith("mask2former_dinov3/")}
    files = {path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    assert inside == {name for name in files if "__pycache__" not in name}
    (folder,) = {name.split("/")[0] for name in names - inside}
    assert {f"{folder}/licenses/{name}" for name in PROJECT["license-files"]} <= names


def test_source_archive__holds_what_make_needs(tmp_path: Path) -> None:
    from hatchling.builders.sdist import SdistBuilder

    (built,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path))
    with tarfile.open(built) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    needs = re.sub(r"(?m)^\trm .*$", "", MAKEFILE)  # what `make clean` removes may be there or not
    named = {
        word for word in re.findall(r"[\w./-]+", needs) if not word.startswith(".venv/") and (ROOT / word).is_file()
    }
    assert {"pyproject.toml", "constraints.txt", ".ci/wheel"} <= named
    assert named <= held


def test_constraints__pin_what_dependencies_bring_along() -> None:
    pins = pinned()
    waiting = [Requirement(f"mask2former-dinov3[dev] @ file://{ROOT}")]
    done: set[tuple[str, str]] = set()
    missing = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name == PROJECT["name"]:
            found = [*PROJECT["dependencies"]]
            found += [line for extra in wanted.extras for line in PROJECT["optional-dependencies"][extra]]
        elif name not in pins:
            missing.add(name)
            continue
        elif (
            metadata.version(name) != pins[name] and name != "torch"
        ):  # another environment, such as the lowest versions
            continue
        else:
            found = metadata.requires(name) or []
        extras = ["", *wanted.extras]
        for requirement in map(Requirement, found):
            key = (requirement.name, ",".join(sorted(requirement.extras)))
            marker = requirement.marker
            if key not in done and (marker is None or any(marker.evaluate({"extra": extra}) for extra in extras)):
                done.add(key)
                waiting.append(requirement)
    assert not missing, f"add to constraints.txt: {sorted(missing)}"
    assert len(done) > len(PROJECT["dependencies"])


def test_makefile__demo_brings_no_extra_and_install_those_of_dev() -> None:
    extras = re.search(r"^EXTRAS := (.+)$", MAKEFILE, re.MULTILINE)
    assert extras is not None
    assert f"{PROJECT['name']}[{extras[1]}]" in PROJECT["optional-dependencies"]["dev"]
    wanted = dict(re.findall(r"^(\w+): \$\((\w+)\)$", MAKEFILE, re.MULTILINE))
    assert wanted["demo"] == "WITH_PACKAGE"
    assert wanted["install"] == "WITH_EXTRAS"
    assert {wanted[target] for target in ("test", "check", "bench")} == {"WITH_TOOLS"}
    assert re.search(r"^\$\(WITH_PACKAGE\): WHAT = \.$", MAKEFILE, re.MULTILINE)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_makefile__names_every_target_in_its_help() -> None:
    targets = re.findall(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)[0].split()
    printed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert sorted(re.findall(r"^make (\w+)", printed, re.MULTILINE)) == sorted(set(targets) - {"help"})
    for target in targets:
        run = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr


def test_pre_commit__runs_what_make_check_runs() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert [hook["entry"] for hook in hooks] == commands_of("check")
    assert len({hook["id"] for hook in hooks}) == len(hooks)
    for hook in hooks:
        assert (hook["language"], hook["pass_filenames"]) == ("system", False)


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms__are_yaml_with_the_keys_that_github_asks_for(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.parent.name == "workflows":
        assert form["name"]
        assert form[True]  # `on` is a boolean in YAML 1.1
        assert form["permissions"] == {"contents": "read"}
        for job in form["jobs"].values():
            assert ("runs-on" in job and job["steps"]) or job["uses"].startswith("./.github/workflows/")
    elif path.stem == "dependabot":
        assert form["version"] == 2
        assert {update["package-ecosystem"] for update in form["updates"]} == {"pip", "github-actions"}
    elif path.stem != "config":
        assert form["name"]
        assert form["description"]
        assert all(field["attributes"]["label"] for field in form["body"])


def test_forms__of_a_bug_asks_for_command_version_and_data() -> None:
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text(encoding="utf-8"))
    assert [field["id"] for field in form["body"]] == ["command", "result", "version", "data"]


def test_workflows__run_files_that_exist() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / ".github/workflows").glob("*.yml"))
    called = set(re.findall(r"(?:run: (?:python )?|uses: \./)((?:\.ci|\.github|tools)/[\w./-]+)", text))
    assert {".ci/run", ".ci/wheel", "tools/lowest_constraints.py", "tools/check_release.py"} <= called
    for name in called:
        assert (ROOT / name).is_file(), name


def test_citation__has_the_version_and_licence_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == mask2former_dinov3.__version__
    assert (citation["title"], citation["license"]) == (PROJECT["name"], PROJECT["license"])
    assert {"cff-version", "message", "authors"} <= citation.keys()


def release_files(root: Path, *, package: str = "1.2.0", changelog: str = "[1.2.0] - 2026-01-31") -> Path:
    """A repository's files that name its version."""
    (root / "src/mask2former_dinov3").mkdir(parents=True)
    (root / "pyproject.toml").write_text('[project]\nversion = "1.2.0"\n')
    (root / "src/mask2former_dinov3/version.py").write_text(f'"""Version."""\n\n__version__ = "{package}"\n')
    (root / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.0\n")
    (root / "CHANGELOG.md").write_text(f"# Changelog\n\n## {changelog}\n\n## [1.1.0] - 2025-01-31\n")
    return root


@pytest.mark.parametrize(
    ("tag", "changes", "expected"),
    [
        ("v1.2.0", {}, []),
        (None, {}, []),
        (None, {"changelog": "[1.2.0] - unreleased"}, []),
        ("v1.2.0", {"package": "1.1.0"}, ["src/mask2former_dinov3/version.py: expected 1.2.0, got 1.1.0"]),
        (
            "v1.2.0",
            {"changelog": "[1.2.0] - unreleased"},
            ["CHANGELOG.md: expected a section '## [1.2.0] - YYYY-MM-DD'"],
        ),
    ],
)
def test_check_release__compares_all_versions_with_the_tag(
    tag: str | None, changes: dict[str, str], expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tool("check_release", monkeypatch).faults(release_files(tmp_path, **changes), tag) == expected


def test_check_release__refuses_a_tag_of_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = tool("check_release", monkeypatch).faults(release_files(tmp_path), "v1.3.0")
    assert faults[0] == "pyproject.toml: expected 1.3.0, got 1.2.0"
    assert len(faults) == 5


def test_check_release__versions_of_the_repository_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tool("check_release", monkeypatch).faults(ROOT, None) == []


def test_lowest_constraints__are_the_lower_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    lowest_versions = tool("lowest_constraints", monkeypatch).lowest_versions
    project = {
        "name": "ours",
        "dependencies": ["numpy>=2.4", "Zebra[data]>=1.2.3,<2"],
        "optional-dependencies": {"one": ["triton>=3 ; sys_platform == 'linux'"], "all": ["ours[one]", "numpy>=2.4"]},
    }
    assert lowest_versions(project) == ["numpy==2.4", "triton==3; sys_platform == 'linux'", "Zebra==1.2.3"]
    with pytest.raises(ValueError, match=r"expected a lower bound such as scipy>=1\.0, got 'scipy'"):
        lowest_versions({**project, "dependencies": ["scipy"]})
    with pytest.raises(ValueError, match=r"numpy has two lower bounds: numpy==2\.0 and numpy==2\.4"):
        lowest_versions({**project, "dependencies": ["numpy>=2.0"]})


def test_lowest_constraints__of_this_project_are_below_the_tested_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    pins = pinned()
    for line in tool("lowest_constraints", monkeypatch).lowest_versions(PROJECT):
        requirement = Requirement(line.replace("==", "<=").replace("<=", ">=", 1))
        version = pins.get(canonicalize_name(requirement.name))
        assert version is None or requirement.specifier.contains(version), line


def test_check_language__fires_on_the_example_of_each_idiom(monkeypatch: pytest.MonkeyPatch) -> None:
    check = tool("check_language", monkeypatch)
    for idiom in check.IDIOMS:
        hits = [message for _, message in check.faults(idiom.example)]
        assert any(message.endswith(f"write {idiom.instead!r}") for message in hits), idiom
        assert not idiom.regex().search(idiom.instead), idiom


@pytest.mark.parametrize(
    "sentence",
    [
        "The run resumes at the last checkpoint and logs a warning; a user can fix the path.",
        "Two kinds of overlap can be told apart. Courses of hours; a newer file; it amends nothing.",
        "At least one score per GPU. The operation is in place. The rest of the images is read again.",
    ],
)
def test_check_language__passes_plain_sentences(sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(tool("check_language", monkeypatch).faults(sentence)) == []


def test_check_language__names_file_line_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check = tool("check_language", monkeypatch)
    (tmp_path / "page.md").write_text("# Title\n\nA file is written whole\nor not at all.\n")
    code = [
        '"""Reads a file."""',
        "anew = told = 1",
        "# It is gone",
        "# on with.",
        'TEXT = ("the file is "',
        '    "told")',
    ]
    code += ["WORDS = ['is', 'told']", "f'{path} is read anew'"]
    (tmp_path / "code.py").write_text("\n".join(code) + "\n")
    assert check.main([str(tmp_path / "page.md"), str(tmp_path / "code.py")]) == 1
    lines = [line.removeprefix(f"{tmp_path}/") for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "page.md:3: 'whole or not at all': write 'atomically'",
        "code.py:3: 'gone on with': write 'resume, continue'",
        "code.py:5: 'is told': write 'reported; named'",
        "code.py:8: 'anew': write 'again'",
        "4 idioms: write the plain words instead",
    ]
    (tmp_path / "page.md").write_text("# Title\n\nA file is written atomically.\n")
    assert check.main([str(tmp_path / "page.md")]) == 0


def example(a: int, b: str = "x", *, c: float | None = None) -> list[int]:
    """N*H*W numbers of `a*b`."""
    return [a]


def test_make_api__signature_has_no_quotes_and_breaks_where_long(monkeypatch: pytest.MonkeyPatch) -> None:
    api = tool("make_api", monkeypatch)
    assert api.signature("example", example) == "example(a: int, b: str = 'x', *, c: float | None = None) -> list[int]"
    monkeypatch.setattr(api, "WIDTH", 40)
    assert api.signature("example", example) == (
        "example(\n    a: int,\n    b: str = 'x',\n    *,\n    c: float | None = None,\n) -> list[int]"
    )
    assert api.docstring(example) == r"N\*H\*W numbers of `a*b`."


def test_make_api__refuses_a_name_that_is_missing_or_without_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    api = tool("make_api", monkeypatch)
    module = ModuleType("somewhere")
    with pytest.raises(
        AttributeError, match=r"somewhere has no public name 'lost': correct PUBLIC in tools/make_api\.py"
    ):
        api.section(module, "lost")
    module.__dict__["bare"] = lambda: None
    with pytest.raises(ValueError, match=r"somewhere\.bare: expected a docstring, found none"):
        api.section(module, "bare")


def test_make_api__page_names_all_public_names() -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    for name in mask2former_dinov3.__all__:
        assert name.startswith("__") or f"\n### `{name}`\n" in page, name


def test_make_api__check_says_when_the_page_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    api = tool("make_api", monkeypatch)
    monkeypatch.setattr(api, "PAGE", tmp_path / "api.md")
    monkeypatch.setattr(api, "PUBLIC", {"visualize": ("draw_instances",)})
    assert api.main(["--check"]) == 1
    assert "run: python tools/make_api.py" in capsys.readouterr().err
    assert api.main([]) == 0
    assert api.main(["--check"]) == 0
    assert api.main(["--wrong"]) == 2
