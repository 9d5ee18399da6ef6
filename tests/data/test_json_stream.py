"""The fast reader of pieces of JSON gives what `json.loads` gives, or refuses, and then that is asked."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from mask2former_dinov3.data.json_stream import parse_piece, stream_lists

READ_ALIKE = [
    b"[-0, -0.0, -0e1, 0, 0.0]",
    b"[1e-400, 5e-324, 2.2250738585072011e-308, 1.7976931348623158e308]",
    b"[1e400, -1e400, NaN, Infinity, -Infinity]",
    b"[9223372036854775807, 9223372036854775808, 18446744073709551615]",
    b"[18446744073709551616, -9223372036854775808, -9223372036854775809]",
    b"[100000000000000000000, 1" + b"0" * 400 + b", 1.5]",
    b"[0.30000000000000004, 9007199254740993.0, 9007199254740993, 0.00012345678901234567]",
    b"[123456789012345678901234567890.5, 1e5, 1E+5, 1.0e-5]",
    b'[{"a": 1, "b": 2, "a": 3}]',
    '["😀", "é", "\\u00e9", "\\ud83d\\ude00", "\\u0000", "\x7f", "a/b"]'.encode(),
    b'[true, false, null, [], {}, "", {"": [[]]}]',
    b" \t\r\n[ 1 ,\n2 ]\r\n",
    b"[" * 200 + b"]" * 200,
]
REFUSED_BY_BOTH = [
    *(b"", b"[1,]", b"[01]", b"[1.]", b"[.5]", b"[+1]", b"[1 2]", b"['a']", b"[nan]", b"[0x10]", b"[1e]", b"[1] 2"),
    *(b'["a\tb"]', b'["\x00"]', b'["\\x"]', b"/**/[1]", b"[1]\x0b", b'["caf\xe9"]', b'{"a" 1}', b'{"a": }', b"[tru]"),
    *(b"[" + b"9" * 5000 + b"]", b"[" * 10**5 + b"]" * 10**5, b"[1", b'["', b"[00]", b"[-]", b"[--1]", b"[- 1]"),
]
LEFT_TO_THE_OTHER = [
    *(b'["\\ud800"]', b'["\\udc00\\ud800"]', b'["\xed\xa0\x80"]', b"\xef\xbb\xbf[1]", '["é"]'.encode("utf-16")),
    b"[" * 300 + b"NaN" + b"]" * 300,
]


def outcome(read: Any, text: bytes) -> str:
    """The value with all types and signs, or that the text is refused."""
    try:
        return repr(read(text))
    except (ValueError, RecursionError):
        return "refused"


@pytest.mark.parametrize("text", [*READ_ALIKE, *REFUSED_BY_BOTH], ids=lambda text: repr(text)[:40])
def test_parse_piece__as_the_reader_of_whole_files(text: bytes) -> None:
    expected = outcome(json.loads, text)
    assert (expected == "refused") is (text in REFUSED_BY_BOTH)
    assert outcome(parse_piece, text) == expected


@pytest.mark.parametrize("text", LEFT_TO_THE_OTHER, ids=lambda text: repr(text)[:40])
def test_parse_piece__refuses_what_it_cannot_read_alike(text: bytes) -> None:
    assert outcome(json.loads, text) != "refused"
    assert outcome(parse_piece, text) == "refused"


def random_number(draw: random.Random) -> str:
    bits: float = struct.unpack("<d", draw.randbytes(8))[0]
    return draw.choice(
        [
            repr(bits).replace("nan", "NaN").replace("inf", "Infinity"),
            f"{draw.uniform(-700, 700):.{draw.randrange(20)}f}",
            f"{draw.randrange(10**6)}.{draw.randrange(10**18)}",
            str(draw.randrange(-(10 ** draw.randrange(1, 25)), 10 ** draw.randrange(1, 25))),
            f"{draw.randrange(10**17)}e{draw.randrange(-340, 320)}",
        ]
    )


def random_text(draw: random.Random, depth: int = 0) -> str:
    """A JSON text, sometimes with an error in it."""
    kind = draw.randrange(5 if depth < 4 else 3)
    if kind < 2:
        return random_number(draw)
    if kind == 2:
        letters = [draw.choice('a"\\}{[], é\ud7ff😀\n\x00\u2028') for _ in range(draw.randrange(6))]
        return json.dumps("".join(letters), ensure_ascii=draw.random() < 0.5)
    values = [random_text(draw, depth + 1) for _ in range(draw.randrange(4))]
    if kind == 3:
        return "[" + draw.choice([",", ", ", " ,\n"]).join(values) + "]"
    return "{" + ",".join(f'"{draw.choice("abc")}": {value}' for value in values) + "}"


def test_parse_piece__random_documents() -> None:
    """Random bits of floats, long fractions, keys given twice, and texts with a byte changed."""
    draw = random.Random(0)
    read = refused = 0
    for _ in range(4000):
        text = ("[" + random_text(draw) + "]").encode()
        if draw.random() < 0.2:
            place = draw.randrange(len(text))
            text = text[:place] + draw.choice(b'"\\,:[]{}0e.-+ \x80').to_bytes() + text[place + 1 :]
        expected, found = outcome(json.loads, text), outcome(parse_piece, text)
        assert found == expected, text
        read, refused = read + (found != "refused"), refused + (found == "refused")
    assert read > 2000
    assert refused > 200


def test_stream_lists__numbers_and_texts_of_all_kinds_in_their_order(tmp_path: Path) -> None:
    """Entries that the fast reader refuses stand between others; each piece is read by whichever can."""
    draw = random.Random(1)
    texts = [f'{{"v": {random_text(draw)}}}' for _ in range(300)]
    texts[20::50] = ['{"v": "\\ud800"}', '{"v": [NaN, 1e999]}', '{"v": 100000000000000000000}'] * 2
    text = '{"other": {"a": [' + ", ".join(texts) + ']}, "a": [' + ", ".join(texts) + "]}"
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    expected = repr(json.loads(text)["a"])
    for piece in (16, 200, 3000, 10**6):
        found = [one for _, some in stream_lists(tmp_path / "x.json", {"a"}, piece) for one in some]
        assert repr(found) == expected
