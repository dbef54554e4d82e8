"""Docstrings, which are plain text with `code`, as reStructuredText."""

import re

SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Examples?|Notes?|Attributes):\s*$")
ENTRY = re.compile(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*): +(\S.*)$")


def convert(lines: list[str]) -> None:
    """Converts a docstring in place.

    Paragraphs are escaped, "name: text" lines and "- text" lines become lists, indented blocks literal blocks, and
    sections such as "Args:" lists under a bold heading.
    """
    blocks, result = _blocks(lines), []
    for kind, block in blocks:
        if kind == "section":
            result.append(f"**{block[0].strip().rstrip(':')}**")
        elif kind == "entry":
            name, text = ENTRY.match(" ".join(block)).groups()
            names = ", ".join(f"``{part}``" for part in name.split(", "))
            result.append(f"- {names}: {inline(text)}")
        elif kind == "item":
            result.append(f"- {inline(' '.join(block)[2:])}")
        elif kind == "code":
            result += ["::", "", *(f"    {line}" for line in block)]
        else:
            result.append(inline(" ".join(block)))
        result.append("")
    lines[:] = result


def _blocks(lines: list[str]) -> list[tuple[str, list[str]]]:
    """The docstring in pieces: section headings, entries, list items, indented code and paragraphs."""
    blocks: list[tuple[str, list[str]]] = []
    inside_section, fresh = False, True  # fresh: the line before was blank, so that nothing continues
    for line in lines:
        if not line.strip():
            fresh = True
            continue
        if SECTION.match(line):
            blocks.append(("section", [line]))
            inside_section, fresh = True, True
            continue
        indent = len(line) - len(line.lstrip())
        if indent == 0:
            inside_section = False
        base = 4 if inside_section else 0
        text = line[min(indent, base) :]
        deeper = indent > base
        if not deeper and ENTRY.match(text) and (fresh or (blocks and blocks[-1][0] in ("entry", "section"))):
            blocks.append(("entry", [text]))
        elif not deeper and text.startswith("- "):
            blocks.append(("item", [text]))
        elif deeper and not fresh and blocks and blocks[-1][0] in ("entry", "item"):
            blocks[-1][1].append(text.strip())
        elif deeper:
            if fresh or not blocks or blocks[-1][0] != "code":
                blocks.append(("code", []))
            blocks[-1][1].append(text)
        elif not fresh and blocks and blocks[-1][0] in ("text", "item"):
            blocks[-1][1].append(text.strip())
        else:
            blocks.append(("text", [text.strip()]))
        fresh = False
    return blocks


def inline(text: str) -> str:
    """Text with `code` as literals, and everything else escaped."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # an odd backtick: no code
        return _escaped(text)
    pieces = []
    for i, part in enumerate(parts):
        if i % 2 == 0 or not part.strip():
            pieces.append(_escaped(part))
        else:
            pieces.append(f"\\ ``{part.strip()}``\\ ")
    return "".join(pieces).strip()


def _escaped(text: str) -> str:
    return re.sub(r"([\\*_|`])", r"\\\1", text)
