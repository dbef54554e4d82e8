"""What the site adds to Sphinx: generated reference pages, links to files of the repository, plain docstrings.

- A page under docs/reference holds `<!-- generate: api jaxnlp.nn -->`, `<!-- generate: public-names jaxnlp -->`,
  `<!-- generate: config-fields -->` or `<!-- generate: commands -->`; the comment is replaced by what `reference.py`
  generates from the code.
- A link to a file or folder outside docs leads to a page of the site that shows it.
- Docstrings are plain text with `code`, so autodoc's reStructuredText is made by `docstrings.py`.
"""

import html
import json
import os
import pathlib
import re

import docstrings
import reference
from docutils import nodes

DOCS = pathlib.Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)")
FILE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
</head><body style="font-family: sans-serif; margin: 2em">
<p><a href="{home}index.html">jaxnlp</a></p><h1>{title}</h1>{body}</body></html>
"""
GENERATE = re.compile(r"^<!-- generate: (\S+)(?: (\S+))? -->$", re.M)


def setup(app):
    app.add_config_value("generate_reference", True, "env")  # -D generate_reference=0: a quick look at the rest
    app.connect("source-read", read)
    app.connect("doctree-resolved", resolve)
    app.connect("build-finished", write_files)
    app.connect("autodoc-process-docstring", lambda app, what, name, obj, options, lines: docstrings.convert(lines))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def read(app, docname: str, source: list[str]) -> None:
    """Inserts generated text, and marks links that lead out of docs."""
    folder = (DOCS / docname).parent

    def link(match: re.Match) -> str:
        target = pathlib.Path(os.path.normpath(folder / match[1]))
        if target.is_relative_to(DOCS) or not target.is_relative_to(ROOT) or not target.exists():
            return match[0]  # MyST's affair; it warns of what does not exist
        return f"](repository:{target.relative_to(ROOT).as_posix()})"

    text = source[0]
    if app.config.generate_reference:
        text = GENERATE.sub(lambda match: reference.generate(match[1], match[2]), text)
    source[0] = LINK.sub(link, text)


def resolve(app, doctree, docname: str) -> None:
    """Points marked links at the pages that show files."""
    for node in doctree.findall(nodes.reference):
        path = node.get("refuri", "")
        if path.startswith("repository:"):
            target = "repository/" + path.removeprefix("repository:")
            node["refuri"] = app.builder.get_relative_uri(docname, target)


def write_files(app, exception: Exception | None) -> None:
    """Writes a page for each file and folder that a link leads to, and for the Python files of those folders."""
    if exception is not None:
        return
    todo, done = sorted(linked()), set()
    out = pathlib.Path(app.outdir) / "repository"
    while todo:
        path = todo.pop()
        if path in done:
            continue
        done.add(path)
        if (ROOT / path).is_dir():
            inside = [p for p in sorted((ROOT / path).iterdir()) if p.suffix in (".py", ".ipynb") or shown_folder(p)]
            names = [(p.relative_to(ROOT).as_posix(), p.name + "/" * p.is_dir()) for p in inside]
            todo += [name for name, _ in names]
            links = (f'<li><a href="{relative(path, name)}">{label}</a></li>' for name, label in names)
            body = f"<ul>{''.join(links)}</ul>"
        else:
            body = code(ROOT / path)
        page = out / f"{path}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        home = "../" * (path.count("/") + 1)
        page.write_text(FILE.format(title=path, body=body, home=home), encoding="utf-8")


def linked() -> set[str]:
    """All files and folders outside docs that pages link to."""
    paths = set()
    for page in DOCS.rglob("*.md"):
        for link, _ in LINK.findall(page.read_text(encoding="utf-8")):
            target = pathlib.Path(os.path.normpath(page.parent / link))
            if target.is_relative_to(ROOT) and not target.is_relative_to(DOCS) and target.exists():
                paths.add(target.relative_to(ROOT).as_posix())
    return paths


def shown_folder(path: pathlib.Path) -> bool:
    return path.is_dir() and not path.name.startswith(("_", "."))


def relative(path: str, target: str) -> str:
    return os.path.relpath(target + ".html", pathlib.PurePosixPath(path).parent.as_posix())


def code(path: pathlib.Path) -> str:
    """A file as HTML; a notebook as its cells. Without colours, which would take half of the build's time."""
    text = path.read_text(encoding="utf-8")
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"]] if path.suffix == ".ipynb" else [text]
    return "".join(f"<pre>{html.escape(cell)}</pre>" for cell in cells)
