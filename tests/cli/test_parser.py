"""Both spellings of every option of every verb, and wrong usage in the wording of this package."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from mask2former_dinov3.cli import main
from mask2former_dinov3.cli.parser import parse_words, write_with_dashes
from mask2former_dinov3.cli.verbs import build_parser
from mask2former_dinov3.config.train_config import TrainConfig, load_config

OPTIONS = [
    (verb, action.option_strings[-1])
    for verb, parser in build_parser().verbs.items()
    for action in parser._actions
    if action.option_strings and not isinstance(action, argparse._HelpAction)
]


def words_for(verb: str, option: str) -> list[str]:
    """A valid command line of a verb with this option."""
    parser = build_parser().verbs[verb]
    words: list[str] = [verb]
    if verb == "export" and option not in ("--output", "--web"):  # one of the two
        words += ["--output", "1"]
    for action in parser._actions:
        if option in action.option_strings or (action.required and action.option_strings):
            words.append(option if option in action.option_strings else action.option_strings[0])
        elif action.option_strings or action.nargs == "?":
            continue
        if action.nargs != 0:
            value = str((action.choices or ["1"])[0] if isinstance(action.choices, tuple) else "1")
            words += [value] * (action.nargs if isinstance(action.nargs, int) else 1)
    return words


@pytest.mark.parametrize(("verb", "option"), OPTIONS)
def test_parse_words__takes_both_spellings_of_every_option(verb: str, option: str) -> None:
    assert "_" not in option  # the help shows dashes
    words = words_for(verb, option)
    underscored = [f"--{word[2:].replace('-', '_')}" if word.startswith("--") else word for word in words]
    arguments, rest = parse_words(build_parser(), words)
    others, other_rest = parse_words(build_parser(), underscored)
    assert rest == other_rest == []
    values = [{k: v for k, v in vars(one).items() if k not in ("parser", "run")} for one in (arguments, others)]
    assert values[0] == values[1]
    assert values[0][option[2:].replace("-", "_")] is not None


@pytest.mark.parametrize("key", sorted(TrainConfig.model_fields))
def test_load_config__takes_both_spellings_of_every_key(key: str) -> None:
    default = TrainConfig.model_fields[key].default
    value = "8" if key in ("save_total_limit", "max_train_steps") else "x" if default is None else str(default)
    fixed = {"output_dir": "o", "dataset_name": "d"}
    configs = []
    for flag in (f"--{key}", f"--{key.replace('_', '-')}"):
        _, rest = parse_words(build_parser(), ["train", flag, value if key not in fixed else "x"])
        words = [*(word for name in fixed.keys() - {key} for word in (f"--{name}", fixed[name])), *rest]
        try:
            configs.append(str(load_config(None, words)[0]))
        except ValueError as error:  # "x" is not a value of every option
            configs.append(str(error).replace("-", "_"))
    assert configs[0] == configs[1]
    assert "unknown" not in configs[0].split("expected")[0]


def test_parse_words__leaves_values_alone() -> None:
    words = ["predict", "--output=a_b", "--model", "m_1", "--max_detections=3", "in_put", "--", "--max_detections"]
    arguments, _ = parse_words(build_parser(), words)
    assert (str(arguments.output), arguments.model, arguments.max_detections) == ("a_b", "m_1", 3)
    assert arguments.inputs == ["in_put", "--max_detections"]
    assert list(write_with_dashes(["--learning_rate", "--batch_size"], ["--batch-size"])) == [
        "--learning_rate",  # of the JSON file: `train` reads it itself, and names it as typed
        "--batch-size",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "VERB: required; see `mask2former-dinov3 --help`"),
        ("predikt", "nearest is predict"),
        ("predict --output o x", "--model: required; see `mask2former-dinov3 predict --help`"),
        ("predict --model m --output o", "INPUT: required; see `mask2former-dinov3 predict --help`"),
        ("predict --model m --output o --batch-size 0 x", "--batch-size: expected a whole number above 0, got 0"),
        ("predict --model m --output o --batch_size x x", '--batch_size: expected a whole number above 0, got "x"'),
        ("predict --model m --output o --threshold high x", '--threshold: expected a number, got "high"'),
        ("predict --model", "--model: expected a value, got none"),
        ("predict --model m --output o x --max_detection 3", "--max_detection: unknown option; nearest is --max-detec"),
        (
            "predict --model m --output o x --quick --tiles 3",
            "2 errors on the command line\n  --quick: unknown option; see `mask2former-dinov3 predict --help`\n"
            "  --tiles: unknown option; nearest is --tile\n",
        ),
        ("demo a b", "a b: expected no further argument"),
        ("serve --model m --port -1", "--port: expected a whole number of at least 0, got -1"),
        ("push --model m --repo a/b --private=yes", '--private: expected no value, got "yes"'),
        ("export --model m --output o --precision bf16", '--precision: expected one of fp32, fp16, int8, got "bf16"'),
        ("export --model m --output o --size 64", "--size: expected 2 values, got fewer"),
        ("export --model m --output o --size 64 64 --dynamic", "--dynamic: cannot be combined with --size"),
        ("evaluate --annotations a --output o --images i", "expected --model and --images, or --predictions"),
        (
            "evaluate --annotations a --output o --predictions p --images i",
            "--predictions: cannot be combined with --images; add --report, whose pictures need them",
        ),
        ("--vers", "VERB: required"),
        ("check-data", "expected the PATH of a data set, or --train-annotations and --train-images"),
    ],
)
def test_main__wrong_usage_is_told_in_one_wording(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 2
    shown = capsys.readouterr().err.partition("error: ")[2]
    assert message in shown
    assert shown.startswith(message.split(": ")[0]) or message.startswith("nearest")


def test_help__every_default_is_shown_in_one_form() -> None:
    for verb, parser in build_parser().verbs.items():
        for action in parser._actions:
            text = action.help or ""
            assert text, (verb, action.dest)
            assert "default:" not in text.replace("(default:", ""), (verb, action.dest)
            if action.option_strings and action.default not in (None, False, argparse.SUPPRESS):
                assert "(default: %(default)s" in text, (verb, action.dest)
