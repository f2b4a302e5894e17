"""The prose of code and pages is plain English: short direct sentences, and none of the phrases below.

Covers docstrings, comments, messages, help texts and pages; not config keys, names and recorded output.

    python tests/test_english.py                 print every hit, by file
    python tests/test_english.py --sample 50     print 50 docstrings and 20 paragraphs at random, to be read aloud
"""

from __future__ import annotations

import argparse
import ast
import io
import random
import re
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
CODE = ("jaxvit/**/*.py", "configs/*.py", "benchmarks/**/*.py")
PAGES = ("*.md", "docs/*.md", "benchmarks/*.md", "results/*.md")
COMMENTED = ("launch.sh", "launch/*.sh", "benchmarks/*.sh", "results/*.toml")

# A sentence that contains one of these is hard to read. Each pattern has an example. "^" is the start of a sentence;
# questions may start with any word.
BANNED = {
    # Sentences that start with a riddle, or with the wrong end.
    r"^What\b": "What a step needs is there.",
    r"^(Those|These|The ones?|That) (that|which|of|who)\b": "Those that are judged and tested.",
    r"^Of (the|a|an|all|each|both|several|this|these|those|which|what|it|such)\b": "Of several the last.",
    r"^of (?!course\b)": "of the run that is measured",
    r"^Where (the|a|an|it|there|this|no|one|that|they|two|several)\b": "Where there is none, the run's.",
    r"^(Within|Else|Besides?),? (no|the|a|it|as|on)\b": "Within, no other process writes.",
    r"^([Ss]uch|[Aa]s) (of|as|there|it)\b": "As there.",
    r"^Whoever\b": "Whoever reads it does so within a lock.",
    r"^To be \w+ed\b": "To be called before a run begins.",
    r"^(Judged|Given|Drawn|Counted|Asked|Checked|Told|Measured|Compared|Kept) (is|are)\b": "Judged are the runs named.",
    r"^(But|Save) for\b": "But for hub's they know nothing.",
    # Pronouns and clauses in place of nouns.
    r"\bthe ones? (of|which|whose)\b": "the one of the last step",
    r"\bthose (taken|which|whose|in which|of which)\b": "those which are kept",
    r"\bwhat (is|was|are|were) (asked|wanted|told|said|there|kept|known|measured|found|meant|drawn)\b": (
        "what is asked of it"
    ),
    r"\b(is|are|was|were) what (is|was|are|it|the|one|a)\b": "this is what the test asks for",
    r"\bof which (it|they|he|we)\b": "of which it says no more",
    r"\bwhat of (it|this|them|a|the)\b": "what of this kind a module defines",
    r"\bthe very\b": "the very same batch",
    r"\bis another (one|matter)\b": "programs whose erf is another one",
    r"\b[Ii]t is .{3,40} that counts\b": "It is the first call that counts.",
    r"\bof (its|their|his|her|one's) own\b": "Training takes ways of its own.",
    r"\bone's own\b": "a model of one's own",
    r"\b(somebody|anybody|everybody|nobody)('s| else's)": "Its error is everybody's.",
    r"\b(it|they|he|she|this|that|which|them) (is|are|was|were) (no|none)\b(?! longer| more)": "it is no file",
    r"\bnone (such|of that)\b": "words that are none such",
    r"\b(is|are|was|were) (not )?there( already| twice| within| alone)?([.,;:)]|$)": "The data is not there.",
    r"\bas (it|they) (came|come|is written|are written|is set|was written)\b": "the map as it came",
    # Programs that talk, ask, look and know.
    r"\btold to\b": "told to all",
    r"\b(is|are|was|were|be|been) (told|said|asked)\b": "which is said once",
    r"\bsa(ys|id|y) of\b": "what a file says of batches",
    r"\b(is|are|was|were|be) looked (at|into|for|after)\b": "the folder is looked into last",
    r"\b(nothing|not|is|never) believed\b": "Nothing is believed.",
    r"(?<!have )(?<!has )\bwaited for\b": "each batch waited for",
    r"\b(is|are|be|was) taken for\b": "a folder is taken for a class",
    r"\bholds? (it|them|us) to\b": "tests hold it to that",
    # Archaic or private words for standard terms.
    r"\bmade (anew|out of|when missing)\b": "the page is made anew",
    r"\banew\b": "started anew",
    r"\b(thrown|taken|takes|gives?|given|puts?) away\b": "it was thrown away",
    r"\b(is|are|was|were) to (be|have|get|come|go)\b": "the name that it is to get",
    r", to be (traced|timed|put|given|read|used)\b": "a function, to be traced",
    r"\bin (the )?place of\b": "a text in place of the table",
    r"\bgo(es|ing)? on (with|from|by|where|in|as|on)\b": "the run goes on from step 3",
    r"\bby hand\b": "keys set by hand",
    r"\bbut for\b": "nothing but for the last",
    r"\bturn by turn\b": "timed turn by turn",
    r"\b(see|as) above\b": "see above",
    r"\b(as|like) everywhere\b": "as everywhere",
    r"\bso (many|much|long) (of|a|an|as|images|steps|calls|epochs|times|classes|waits|seconds)\b": "so many steps",
    r"\bthrough (that|those|its|theirs) (of|time)\b": "our time through that of theirs",
    r"\b(lies?|lay|stands?|standing|stood) (there|beside|behind|still|aside|on the device|where)\b": "what lies there",
    r"\b(is|are|was) at (work|rest)\b": "another queue is at work",
    r"\bcounts? (nothing|nowhere)\b": "padding counts nowhere",
    r"\bone (a|each|for all) (line|row|seed|step|run|file|format|image)\b": "one a seed",
    r"\b(an|one) \w+ a (file|line|row|step|verb)\b": "an experiment a file",
    r"\bto the letter\b": "the same program to the letter",
    r"\bdo(es|ne)? away with\b": "another has done away with the others",
    r"\bcomes? of (it|that|this)\b": "the line that comes of it",
    r"\b(hands?|handed|handing) (on|out|over)\b": "handed on from step to step",
    r"\bhouse rules?\b": "the house rules",
    r"\b(are|is|been|and) booked\b": "the time is booked",
    r"\bwithout (a word|more ado)\b": "its thread ends without a word",
    r"\bdrown\b": "they drown in the noise",
    r"\bas good as\b": "as good as endless",
    r"\bas far as\b": "as far as its signature tells",
    r"\bwork(s|ed|ing)? off\b": "works off a list of rows",
    r"\bkept programs?\b": "a start with kept programs",
    r"\bno matter\b": "the difference is no matter here",
    r"\beverything timed\b": "two seconds for everything timed",
    r"\bdone again\b": "a finished run is not done again",
}
_BANNED = [(pattern, re.compile(pattern)) for pattern in BANNED]


class Prose(NamedTuple):
    """A piece of prose.

    Attributes:
      line: its first line in the file.
      kind: 'docstring', 'comment', 'message' or 'paragraph'.
      text: with single spaces; what a program fills in is an ellipsis.
    """

    line: int
    kind: str
    text: str


def prose_of(file: Path) -> list[Prose]:
    """The prose of a Python file, a page, or the comments and notes of another file."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        tests = file.is_relative_to(ROOT / "tests")
        return [*_docstrings(text), *([] if tests else [*_comments(text), *_messages(text)])]
    return [*_paragraphs(text)] if file.suffix == ".md" else [*_notes(text)]


def _tidy(text: str) -> str:
    return " ".join(text.split())


def _docstrings(text: str) -> Iterator[Prose]:
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if (docstring := ast.get_docstring(node, clean=True)) is None:
            continue
        start = node.body[0].lineno
        lines = docstring.splitlines()
        part: list[str] = []
        first = 0
        for i, line in enumerate([*lines, ""]):
            # A paragraph ends at an empty line, an entry of a list of arguments, and an example.
            if part and (not line.strip() or re.match(r"\s*(\w[\w, ]*:|- |>>>|\.\.\.|\|)", line)):
                yield Prose(start + first, "docstring", _tidy(" ".join(part)))
                part = []
            if line.strip() and not re.match(r"\s*(>>>|\.\.\.|\|)", line) and not line.startswith("    "):
                first = first if part else i
                part.append(line)
    return


def _comments(text: str) -> Iterator[Prose]:
    part: list[str] = []
    start = last = -2
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        words = token.string.lstrip("#! ").strip()
        if re.match(r"(noqa|type:|fmt:|pragma)", words):
            continue
        own_line = token.line.strip().startswith("#")
        if not (own_line and token.start[0] == last + 1) and part:
            yield Prose(start, "comment", _tidy(" ".join(part)))
            part = []
        start = start if part else token.start[0]
        part.append(words)
        last = token.start[0] if own_line else -2
    if part:
        yield Prose(start, "comment", _tidy(" ".join(part)))


def _messages(text: str) -> Iterator[Prose]:
    """Strings of three words or more that are no docstrings; an f-string counts as a whole."""
    tree = ast.parse(text)
    docstrings = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            said = "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | inside:
            said = node.value
        else:
            continue
        said = f"…{said}" if said.startswith(" ") else said  # the end of another sentence
        for part in re.split(r"\n\s*\n", said):
            if len(re.findall(r"[a-z]{2,}", part)) >= 3:
                yield Prose(node.lineno, "message", _tidy(part))


def _paragraphs(text: str) -> Iterator[Prose]:
    """Paragraphs, items and table cells of Markdown, without blocks of code and headings."""
    text = re.sub(r"^```.*?^```", lambda found: "\n" * found[0].count("\n"), text, flags=re.S | re.M)
    part: list[str] = []
    start = 0
    for number, line in enumerate([*text.splitlines(), ""], 1):
        item = re.match(r"\s*(- |\d+\. |#|\||!\[)", line)
        if part and (not line.strip() or item):
            yield Prose(start, "paragraph", _tidy(" ".join(part)))
            part = []
        if line.startswith("|"):
            for cell in re.split(r"\||<br>", line):
                if len(re.findall(r"[a-z]{2,}", cell)) >= 3:
                    yield Prose(number, "paragraph", _tidy(cell))
        elif line.strip() and not line.startswith(("#", "![")):
            start = start if part else number
            part.append(re.sub(r"^\s*(- |\d+\. )", "", line))


def _notes(text: str) -> Iterator[Prose]:
    """Comments of a script or TOML file, and the notes of rows."""
    part: list[str] = []
    start = 0
    for number, line in enumerate([*text.splitlines(), ""], 1):
        found = re.match(r"#(?!!|SBATCH)\s?(.*)", line)
        if part and not (found and found[1].strip()):
            yield Prose(start, "comment", _tidy(" ".join(part)))
            part = []
        if found and found[1].strip():
            start = start if part else number
            part.append(found[1])
        if note := re.match(r'note = "(.*)"', line):
            yield Prose(number, "message", note[1])


def sentences(text: str) -> list[str]:
    """The sentences of a text, without code spans; an entry such as 'name: text' is split at its colon."""
    text = re.sub(r"``?[^`]+``?", "`x`", text)
    text = re.sub(r"^([a-z_]\w*(?:, [a-z_]\w*)*): ", "", text)
    return re.split(r"(?<=[.!?:])\s+(?=[A-Z`'(*…])", text)


def hits(file: Path) -> list[tuple[int, str, str]]:
    """(line, pattern, sentence) of each banned phrase in a file."""
    found = []
    for piece in prose_of(file):
        for sentence in sentences(piece.text):
            if sentence.rstrip(")*").endswith("?"):
                continue
            found += [(piece.line, name, sentence) for name, pattern in _BANNED if pattern.search(sentence)]
    return found


def whole_docstrings(file: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of each docstring in a Python file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text


def files() -> list[Path]:
    found = [*CODE, *PAGES, *COMMENTED, "tests/**/*.py"]
    every = {file for pattern in found for file in ROOT.glob(pattern) if file.is_file()}
    return sorted(every - {ROOT / "tests" / "test_english.py"})


@pytest.mark.parametrize(("pattern", "example"), BANNED.items())
def test_a_banned_phrase_is_found(tmp_path, pattern, example):
    """In a docstring, a comment, a message and a page, each with its line."""
    page, code = tmp_path / "page.md", tmp_path / "code.py"
    page.write_text(f"# What\n\n- Fine.\n- {example}\n")
    code.write_text(f'"""{example}"""\n\nx = 1  # {example}\nraise ValueError(f"{example} of {{x}} or three")\n')
    assert (4, pattern) in [(line, name) for line, name, _ in hits(page)]
    assert {1, 3, 4} <= {line for line, name, _ in hits(code) if name == pattern}


def test_what_is_not_prose_is_left_alone(tmp_path):
    page, code = tmp_path / "page.md", tmp_path / "code.py"
    page.write_text(
        "# What a heading may say\n\n```text\ngoing on from step 3, as above\n```\n\nWhat is `the one of`?\n"
    )
    code.write_text('"""Fine.\n\n    >>> load("as above")\n"""\n\nx = "in_place_of"\n')
    assert hits(page) == hits(code) == []


def test_there_are_forty_patterns_and_enough_to_read():
    assert len(BANNED) >= 40
    assert sum(len(prose_of(file)) for file in files()) > 4000


def test_prose_is_plain_english():
    found = [
        f"{file.relative_to(ROOT)}:{line}: {name}: {sentence[:160]}"
        for file in files()
        for line, name, sentence in hits(file)
    ]
    assert not found, "\n".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="print N docstrings and 0.4 N paragraphs")
    parser.add_argument("--seed", type=int, default=None, help="of the sample (default: another one each time)")
    parser.add_argument("--only", default="", metavar="REGEX", help="only files whose path matches")
    options = parser.parse_args()
    chosen = [file for file in files() if re.search(options.only, file.relative_to(ROOT).as_posix())]
    if options.sample:
        draw = random.Random(options.seed)
        code = [(file, *whole) for file in chosen if file.suffix == ".py" for whole in whole_docstrings(file)]
        pages = [(file, p.line, p.text) for file in chosen if file.suffix == ".md" for p in prose_of(file)]
        pages = [piece for piece in pages if len(piece[2].split()) > 9]
        for kind, pieces, count in (
            ("docstring", code, options.sample),
            ("paragraph", pages, round(0.4 * options.sample)),
        ):
            drawn = draw.sample(pieces, min(count, len(pieces)))
            print(f"\n==== {len(drawn)} of {len(pieces)} {kind}s\n")
            for file, line, text in drawn:
                print(f"{file.relative_to(ROOT)}:{line}\n{textwrap.indent(text, '    ')}\n")
        return
    total = 0
    for file in chosen:
        found = hits(file)
        total += len(found)
        if found:
            print(f"\n{file.relative_to(ROOT)}: {len(found)}")
        for line, name, sentence in found:
            print(f"  {line}: {name}\n      {sentence[:200]}")
    print(f"\n{total} hits")


if __name__ == "__main__":
    main()
