import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from submerge.errors import RequestError
from submerge.recipe._yaml import Document, parse_documents


def parsed(text: str) -> Document:
    document, *_ = parse_documents(text, "r.yaml")
    return document


def read(text):
    document = parsed(text)
    document.report.raise_if_any()
    return document.data


def refused(text):
    with pytest.raises(RequestError) as caught:
        read(text)
    return [str(problem) for problem in caught.value.problems]


def test_positions_are_those_of_keys_and_entries():
    positions = parsed("a: 1\nb:\n  - c: x\n    d: [1, 2]\n").report.positions
    assert positions["a",] == (1, 1)
    assert positions["b",] == (2, 1)
    assert positions["b", 0] == (3, 5)
    assert positions["b", 0, "c"] == (3, 5)
    assert positions["b", 0, "d"] == (4, 5)
    assert positions["b", 0, "d", 1] == (4, 12)


PLAIN = """
text: org/name
quoted: "a\\tb"
numbers: [1, -2, 0x1F, 0o7, 1.5, 1e-5, 1.0e-5, .5]
flags: [true, no, On]
none: [~, null, ]
base: &base {x: 1, y: 2}
again: *base
merged: {<<: *base, y: 3}
both: {<<: [{x: 9}, *base], z: 0}
folded: >
  one
  two
"""


def test_reads_what_safe_load_reads():
    assert read(PLAIN) == yaml.safe_load(PLAIN)


def test_dates_stay_text():
    assert read("a: 2024-01-01\nb: 2001-12-14 21:59:43.10\n") == {
        "a": "2024-01-01",
        "b": "2001-12-14 21:59:43.10",
    }


def test_merged_keys_keep_the_line_of_their_own_entry():
    positions = parsed("m: &m {x: 1, y: 2}\nn:\n  <<: *m\n  y: 3\n").report.positions
    assert positions["n", "y"] == (4, 3)
    assert positions["n", "x"] == (1, 8)


def test_every_duplicate_is_told_with_both_lines():
    assert refused("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n") == [
        "r.yaml:4: key 'c' is given twice, on lines 3 and 4",
        "r.yaml:5: key 'a' is given twice, on lines 1 and 5",
    ]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a:\n  b: [1\nc: 2\n", 3, "close each [ and {"),
        ("a:\n\tb: 1\n", 2, "indent with spaces"),
        ("a: *nobody\n", 1, "undefined alias"),
        ("a:\n  - filter: *\n", 2, "in quotes, such as '*'"),
        ("a:\n  - b: 1\n   c: 2\n", 3, "begin in one column"),
        ("a:\n  - b: 1\n  c: 2\n", 3, "begin in one column"),
        ("a: b: c\n", 1, "': ' in it in quotes"),
        ("a: 'b\n", 2, "close the quotes"),
        ("a: {weight: 0,5, density: 1}\n", 1, "written with a point"),
        ("a: 1\nb: &x\n  - *x\n", 2, "nested deeper"),
        ("a: &x {<<: *x}\n", 1, "nested deeper"),
        ("\n" + "[" * 10_000 + "\n", 2, "nested deeper"),
        ("- " * 10_000 + "\n", 1, "nested deeper"),
        ("a: 1\nb: \x07\n", 2, "U+0007"),
        ("a: 1\nb: \ud800\n", 2, "U+D800"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, "tag"),
        ("a: !!python/name:os.system\n", 1, "tag"),
        ("a: !mine 3\n", 1, "tag"),
        ("a: !!binary aGk=\n", 1, "tag"),
        ("a: !!set {x, y}\n", 1, "tag"),
        ("a: !!int x\n", 1, "cannot read"),
        ('a: !!float ""\n', 1, "cannot read"),
        ("a: !!bool maybe\n", 1, "cannot read"),
        ("a: 0b_\n", 1, "cannot read"),
        ("a: " + "9" * 5000 + "\n", 1, "cannot read"),
        ("a: 0x" + "f" * 5000 + "\n", 1, "too long"),
        ("1: x\n", 1, "keys are text"),
        ("yes: x\n", 1, "keys are text"),
        ("? [a]\n: x\n", 1, "keys are text"),
        ("a: {<<: 3}\n", 1, "'<<' takes mappings"),
        ('"\\UFFFFFFFF"\n', 1, "not YAML"),
        ("%YAML 2.0\n--- a\n", 1, "not YAML"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text, line, words):
    message = refused(text)[0]
    assert message.startswith(f"r.yaml:{line}: ")
    assert words in message


def test_aliases_cannot_stand_for_more_than_memory_holds():
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
    )
    assert "values" in refused(bomb)[0]


@given(st.text(max_size=200) | st.text(alphabet="ab:-[]{}&*!<>|?'\"#%@,\n \t01_.~=\\U", max_size=60))
def test_no_text_gives_a_traceback(text):
    found = ()
    try:
        parse_documents(text, "r.yaml")
    except RequestError as error:
        found = error.problems
    assert all(problem.where.startswith("r.yaml:") for problem in found)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats(allow_nan=False)
        | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=12,
    )
)
def test_whatever_yaml_writes_is_read_back(data):
    assert read(yaml.safe_dump(data, sort_keys=False)) == data
