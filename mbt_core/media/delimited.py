"""Tables in text (.csv) as devices, apps and spreadsheets write them, into pyarrow tables.

What is expected is lines of as many cells each, parted by commas, semicolons, tabs or spaces. Before them there may be
comments (``#``, ``%``), lines of another form (``Serial Number: 12``), names, and units; at the end of each line a
separator too many. Empatica's first two lines are the time of the start and the rate. Nothing else is guessed: what
does not fit is an error that shows the line.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import takewhile
from typing import Any

from mbt_core.io.files import check_bytes
from mbt_core.media.channels import CLOCK, LARGEST, Stored, channels_of

SEPARATORS = ("\t", ";", ",")
"""The last one may be a decimal point, too."""
SAMPLES = (1 << 14, 1 << 20)
"""Bytes at the start of a file in which its form is found; more, if lines are long."""
LINES = 32
"""Lines of them that are looked at."""
TAIL = 3
"""Lines at the end of these that tell the form."""
COMMENTS = ("#", "%")
HEADER = 5
"""Most lines of names and units."""
MAX_RATE = 10_000
"""Samples a second that Empatica's second line may say."""
SHOWN = 60
"""Characters of a line that an error shows."""
NUMBER = r" *[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|inf|infinity|nan) *"
IS_NUMBER = re.compile(NUMBER, re.IGNORECASE)
WITH_POINT, WITH_COMMA = (re.compile(rf"[+-]?\d*\{mark}\d+([eE][+-]?\d+)?") for mark in ".,")


@dataclass(frozen=True)
class Form:
    """How a table is written.

    Args:
        separator: of the cells.
        width: number of columns.
        start: byte of the first line of samples.
        names: of the columns; empty: it has none.
        decimal: the decimal point.
        passed: lines before the samples that are no names, and what they are.
        rate: samples a second, if the file says it.
    """

    separator: str
    width: int
    start: int
    names: Sequence[str] = ()
    decimal: str = "."
    passed: Mapping[str, str] = field(default_factory=dict)
    rate: float | None = None


def load_csv(content: bytes) -> Stored:
    """The channels of a table; empty lines at its end do not count, empty cells are NaN.

    Raises:
        ValueError: for lines that do not fit together, and for a column of numbers with other text in it.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow

    content, form = form_of(content)
    if 8 * len(content) > LARGEST:
        check_bytes(8 * (content.count(form.separator.encode()) + content.count(b"\n") + 1), LARGEST)
    labels = [str(number) for number in range(form.width)]
    table = arrow.read_csv(
        pa.BufferReader(pa.py_buffer(memoryview(content)[form.start :])),
        arrow.ReadOptions(column_names=labels),
        arrow.ParseOptions(delimiter=form.separator, ignore_empty_lines=form.width > 1),
        arrow.ConvertOptions(strings_can_be_null=True, decimal_point=form.decimal),
    )
    names = list(form.names or labels)
    while pa.types.is_null(table.schema.types[-1]) and not (form.names and names[table.num_columns - 1]):
        table = table.remove_column(table.num_columns - 1)  # a separator too many
    columns = [_parsed(names[i], column, form.decimal) for i, column in enumerate(table.columns)]
    table = pa.table(columns, names[: len(columns)])
    stored = channels_of(table, named=bool(form.names))
    return replace(stored, left_out={**form.passed, **stored.left_out}, rate=form.rate)


def form_of(content: bytes) -> tuple[bytes, Form]:
    """The content without what says nothing (a mark of its encoding, separators at the ends of lines), and its form.

    Raises:
        ValueError: if it is in UTF-16, or its lines do not fit together.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("UTF-16 text: save it as UTF-8")
    content = content.removeprefix(b"\xef\xbb\xbf").rstrip(b" \r\n")
    lines = [_text(line) for line in _sample(content)]
    unclosed = next((number for number, line in enumerate(lines, start=1) if line.count('"') % 2), None)
    if unclosed is not None:
        raise ValueError(f"line {unclosed}: a quote is opened and not closed in it; write each cell in one line")
    for_excel = re.fullmatch(r"sep=(.)", lines[0]) if lines else None
    head = 1 if for_excel else sum(1 for _ in takewhile(_is_comment, lines))
    last = [line for line in lines[head:] if line.strip()][-TAIL:]
    separator = for_excel[1] if for_excel else _separator(last)
    if separator == " ":
        content = re.sub(rb"(?m)^ | (?=\r?$)", b"", re.sub(rb"[ \t]+", b" ", content))
    elif separator == "," and last and all(line.rstrip().endswith(";") for line in last):
        content = re.sub(rb";[ \t]*(?=[\r\n]|\Z)", b"", content)
    sample = _sample(content)
    rows = [_cells(_text(line), separator) for line in sample]
    if head:  # numpy writes names as a comment
        rows[head - 1] = [] if for_excel else _cells(_text(sample[head - 1]).lstrip("#% "), separator)
    return content, _form(rows, [len(line) for line in sample], head, separator)


def _form(rows: list[list[str]], lengths: Sequence[int], head: int, separator: str) -> Form:
    """What `form_of` finds in the cells of the first lines, of which `head` are comments."""
    filled = [number for number in range(head, len(rows)) if any(rows[number])]
    counts = Counter(len(rows[number]) for number in filled[-TAIL:])
    width = max(counts, key=lambda count: (counts[count], count), default=len(rows[0]) if rows else 1)
    commented = [head - 1] if head and width > 1 and not any(map(_is_number, rows[head - 1])) else []
    begin = next((number for number in [*commented, *filled] if _fits(rows, number, width)), head)
    decimal = _decimal(rows[begin:], separator)
    header = _header_lines(rows[begin:], decimal)
    names = next((row for row in rows[begin : begin + header] if len(set(row)) == len(row)), [*rows, []][begin])
    if separator == "," and width == 2 and not header and begin == head + 1 and len(rows[head]) == 1:
        raise ValueError(f"one name, {rows[head][0]!r}, and two cells: write decimal points, not commas, or name both")
    passed = _passed(rows, head, begin, header)
    after, rate = begin + header, None
    if not header and len(rows) > after + 2 and (rate := _empatica_rate(*rows[after : after + 2])):
        passed[f"lines {after + 1} and {after + 2}"] = "start and rate"
        after += 2
    if width == 1 and not header and not passed:
        after = head  # empty lines are gaps, at the start, too
    if header and len(names) != width:  # a separator too many, in all lines but this or in this alone; or R's row names
        names = names[:width] if len(names) > width else [*names, ""] if not rows[after][-1] else ["", *names]
    return Form(separator, width, sum(lengths[:after]), names if header else (), decimal, passed, rate)


def _fits(rows: list[list[str]], number: int, width: int) -> bool:
    """Whether the table may begin with this line: it has as many cells, or one more or less as a line of names."""
    row = rows[number]
    if len(row) == width:
        return True
    following = next((other for other in rows[number + 1 :] if any(other)), [])
    if len(following) != width or any(map(_is_number, row)):
        return False
    return (len(row) == width + 1 and not row[-1]) or (len(row) == width - 1 and (len(row) > 1 or not following[-1]))


def _passed(rows: list[list[str]], head: int, begin: int, header: int) -> dict[str, str]:
    """Lines before the samples that are no names, and what they are. Raises `ValueError` for numbers among them."""
    passed = {}
    for number in range(head, begin):
        if any(rows[number]) and all(not cell or _is_number(cell) for cell in rows[number]):
            shown, count = repr(",".join(rows[number]))[:SHOWN], len(rows[number])
            raise ValueError(
                f"line {number + 1}, {shown}, has {count} cells, the table has {len(rows[begin])}: remove or mend it"
            )
    if any(any(row) for row in rows[head:begin]):
        passed[f"lines 1 to {begin}" if begin > 1 else "line 1"] = "before the table"
    for number in range(begin + 1, begin + header):
        passed[f"line {number + 1}"] = "units"
    return passed


def _header_lines(rows: list[list[str]], decimal: str) -> int:
    """Lines of names and units: text where numbers follow. Among names there may be numbers; 0,1,2 .. without a gap are
    names, too."""
    if not rows:
        return 0
    later = rows[len(rows) // 2 :]
    numeric = set()
    for number in range(len(rows[-1])):
        cells = [row[number] for row in later if number < len(row) and not _is_null(row[number])]
        if cells and 2 * sum(_is_number(cell, decimal) for cell in cells) >= len(cells):
            numeric.add(number)

    def kinds(row: list[str]) -> tuple[bool, bool, bool]:
        """Whether it has text, numbers, and text where numbers follow."""
        numbers = {number for number, cell in enumerate(row) if _is_number(cell, decimal)}
        texts = {number for number, cell in enumerate(row) if not _is_null(cell)} - numbers
        return bool(texts), bool(numbers), bool(texts & numeric)

    has_text, has_numbers, is_over_numbers = kinds(rows[0])
    numbered = rows[0][1:] if not rows[0][0] else rows[0]  # before it the rows' numbers, without a name
    is_numbered = len(numbered) > 1 and numbered == [str(number) for number in range(len(numbered))]
    if not is_numbered and not is_over_numbers and (has_numbers or not has_text):
        return 0
    units = takewhile(lambda row: kinds(row)[1:] == (False, True), rows[1 : min(HEADER, len(rows) - 1)])
    return 1 + sum(1 for _ in units)


def _empatica_rate(first: Sequence[str], second: Sequence[str]) -> float | None:
    """The rate, if an Empatica E4's file begins so: with the start in all columns, and then the rate in all."""
    if not all(map(_is_number, [*first, *second])):
        return None
    starts, rates = {float(cell) for cell in first}, {float(cell) for cell in second}
    if len(starts) != 1 or len(rates) != 1 or not min(starts) >= CLOCK or not 0 < min(rates) <= MAX_RATE:
        return None
    return rates.pop()


def _separator(lines: Sequence[str]) -> str:
    """What parts a line into the largest share of numbers, and then into most; spaces only where nothing else does."""

    def score(separator: str, line: str) -> tuple[float, int]:
        row = _cells(line.rstrip(" ").removesuffix(";") if separator == "," else line, separator)
        cells = [cell for cell in row if not _is_null(cell)]
        numbers = sum(_is_number(cell) or (separator != "," and _is_number(cell, ",")) for cell in cells)
        return numbers / max(1, len(cells)), numbers

    scores = {s: max((score(s, line) for line in lines if s in line), default=(0.0, 0)) for s in SEPARATORS}
    best = max(SEPARATORS, key=lambda separator: scores[separator])
    if scores[best][1]:
        return best
    is_spaced = any(len(line.split()) > 1 and any(map(_is_number, line.split())) for line in lines)
    return " " if is_spaced else ","


def _decimal(rows: list[list[str]], separator: str) -> str:
    """The decimal point. Raises `ValueError` if there are two."""
    cells = [cell for row in rows for cell in row]
    commas = [cell for cell in cells if WITH_COMMA.fullmatch(cell)] if separator != "," else []
    points = [cell for cell in cells if WITH_POINT.fullmatch(cell)]
    if commas and points:
        raise ValueError(f"decimal commas ({commas[0]}) and decimal points ({points[0]}): write all alike")
    return "," if commas else "."


def _parsed(name: str, column: Any, decimal: str) -> Any:
    """A column of text as numbers if all cells are some (+1), as it is if none is; raises `ValueError` for a mix."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_string(column.type):  # what is not UTF-8 is no number
        return column
    column = pc.replace_substring(column, ",", ".") if decimal == "," else column
    numbers = pc.match_substring_regex(column, f"^({NUMBER})$", ignore_case=True)
    if not pc.any(numbers).as_py():
        return column
    if not pc.all(numbers).as_py():
        sample = pc.index(numbers, False).as_py()
        raise ValueError(
            f"column {name!r} holds numbers, but {column[sample].as_py()!r} at sample {sample}: empty the cell if it "
            "is a gap, or remove the column"
        )
    return pc.cast(pc.replace_substring_regex(column, r" |\+", ""), pa.float64())


def _sample(content: bytes) -> list[bytes]:
    """The first lines with their ends; one that is cut off does not count."""
    lines: list[bytes] = []
    for size in SAMPLES:
        lines = content[:size].splitlines(keepends=True)
        if size < len(content) and len(lines) > 1:
            lines.pop()
        if len(lines) >= LINES or size >= len(content):
            break
    return lines[:LINES]


def _text(line: bytes) -> str:
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        return line.decode("latin-1").rstrip("\r\n")  # the degrees of many a header


def _cells(line: str, separator: str) -> list[str]:
    return [cell.strip(" ") for cell in next(csv.reader([line], delimiter=separator), [])]


def _is_comment(line: str) -> bool:
    return line.startswith(COMMENTS) and line[1:2] not in SEPARATORS


def _is_number(cell: str, decimal: str = ".") -> bool:
    return IS_NUMBER.fullmatch(cell.replace(",", ".") if decimal == "," else cell) is not None


@cache
def _nulls() -> frozenset[str]:
    from pyarrow import csv as arrow

    return frozenset(arrow.ConvertOptions().null_values)


def _is_null(cell: str) -> bool:
    return cell in _nulls()
