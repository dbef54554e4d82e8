"""Text of the reference pages, generated from the code: API, fields of configs, commands and their flags."""

import ast
import dataclasses
import importlib
import pathlib
import pkgutil
import re

import docstrings

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG_FLAGS = [
    ("config", "file", "", "Config file, as `configs/gpt/tiny.py:variant`; `--config.x.y=` changes a field."),
    ("config_json", "string", "", "Resolved config to run again, as a run's `config.json`."),
]
ROOMS = ("models", "nn", "data", "objectives", "evals", "metrics", "peft", "sharding", "training")


def generate(kind: str, name: str | None) -> str:
    """MyST text for `<!-- generate: kind name -->`."""
    if kind == "api":
        assert name is not None
        return api(name)
    if kind == "public-names":
        assert name is not None
        return public_names(name)
    return {"config-fields": config_fields, "commands": commands}[kind]()


def api(name: str) -> str:
    """Every module of a package, or a single module, by autodoc."""
    module = importlib.import_module(name)
    names = [name]
    if hasattr(module, "__path__"):
        modules = pkgutil.walk_packages(module.__path__, f"{name}.")
        names = [info.name for info in modules if not info.ispkg]
    sections = []
    for each in names:
        title = each if each == name else each.removeprefix(f"{name}.")
        sections += [f"## {title}", "", "```{eval-rst}", f".. automodule:: {each}", "```", ""]
    return "\n".join(sections)


def public_names(name: str) -> str:
    """A package's public names, as its docstring lists them ("  name(arguments)  description"), with their modules."""
    package = importlib.import_module(name)
    doc = package.__doc__ or ""
    rows = [match.groups() for match in re.finditer(r"^  ((\w+)(?:\(.*?\))?) {2,}(.+)$", doc, re.M)]
    listed = {public: (call, text) for call, public, text in rows}
    summary = doc.partition("\n")[0].removeprefix(f"{name}: ")
    lines = [f"## {name}", "", markdown(summary[:1].upper() + summary[1:]), ""]
    lines += ["| name | module | |", "|---|---|---|"]
    for public, (call, text) in listed.items():
        lines.append(f"| `{call}` | `{getattr(package, public).__module__}` | {markdown(text)} |")
    if set(listed) != set(package.__all__):
        raise ValueError(f"{name}: its docstring lists other names than __all__: {set(listed) ^ set(package.__all__)}")
    return "\n".join([*lines, ""])


def configs() -> list[type]:
    """The dataclasses that a config file may build, by module."""
    classes = []
    for room in ROOMS:
        if not (ROOT / "jaxnlp" / room).exists():
            continue
        package = importlib.import_module(f"jaxnlp.{room}")
        for info in pkgutil.walk_packages(package.__path__, f"jaxnlp.{room}."):
            if not info.ispkg:
                classes += [c for c in own_classes(info.name) if is_config(c)]
    classes += [c for c in own_classes("jaxnlp.optim") if is_config(c)]
    return classes


def own_classes(name: str) -> list[type]:
    module = importlib.import_module(name)
    return [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == name]


def is_config(cls: type) -> bool:
    """A public keyword-only dataclass of the house; Flax modules and records of results are not."""
    if cls.__name__.startswith("_") or "__dataclass_fields__" not in vars(cls) or hasattr(cls, "init_with_output"):
        return False
    return any(field.kw_only for field in dataclasses.fields(cls))


def config_fields() -> str:
    """A section for each config class: its fields with types, defaults and descriptions from the docstring."""
    sections = []
    for cls in configs():
        summary, texts = described(cls.__doc__ or "")
        sections += [f"## {cls.__name__}", "", f"`{cls.__module__}.{cls.__qualname__}`. {summary}", ""]
        sections += ["| field | type | default | |", "|---|---|---|---|"]
        for field in dataclasses.fields(cls):
            if field.name.startswith("_") or not field.init:
                continue
            cells = (f"`{field.name}`", f"`{typed(field.type)}`", default(field), texts.get(field.name, ""))
            sections.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        sections.append("")
    return "\n".join(sections)


def described(doc: str) -> tuple[str, dict[str, str]]:
    """A class docstring's first paragraph, and the text of each "name: text" entry."""
    lines = [line.rstrip() for line in doc.expandtabs().splitlines()]
    margin = min((len(line) - len(line.lstrip()) for line in lines[1:] if line), default=0)
    lines = [line if i == 0 else line[margin:] for i, line in enumerate(lines)]
    blocks = docstrings._blocks(lines)
    texts = {}
    for kind, block in blocks:
        if kind == "entry":
            names, text = docstrings.ENTRY.match(" ".join(block)).groups()
            texts |= {name.strip("*"): markdown(text) for name in names.split(", ")}
    summary = next((markdown(" ".join(block)) for kind, block in blocks if kind == "text"), "")
    return summary, texts


def markdown(text: str) -> str:
    """Plain text as Markdown: only `code` is special."""
    parts = text.split("`")
    return "`".join(part if i % 2 else re.sub(r"([\\*_<\[\]$])", r"\\\1", part) for i, part in enumerate(parts))


def typed(annotation) -> str:
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    if "[" in str(annotation) or "|" in str(annotation):
        name = str(annotation)
    return re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", name)


def default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    if field.default_factory is dataclasses.MISSING:
        return "required"
    name = getattr(field.default_factory, "__name__", "")
    return f"`{field.default_factory()!r}`" if name == "<lambda>" else f"`{name}()`"


def commands() -> str:
    """A section for each entry point: its docstring, and its flags with types, defaults and help."""
    sections = []
    for path in sorted((ROOT / "experiments").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path.name == "__init__.py" or "cli.run(" not in text:
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__main__")
        tree = ast.parse(text)
        doc = (ast.get_docstring(tree) or "").replace("````", "")
        summary, _, rest = doc.partition("\n\n")
        sections += [f"## {name}", "", markdown(" ".join(summary.split())), ""]
        if rest.strip():
            sections += ["````", rest.strip("\n"), "````", ""]
        rows = [row for node in ast.walk(tree) if (row := flag(node))]
        if "define_config()" in text:
            rows.append(
                (
                    "config",
                    "file",
                    "",
                    "Config file, as `configs/gpt/tiny.py:variant`; `--config.x.y=` changes a field.",
                )
            )
            rows.append(("config_json", "string", "", "Resolved config to run again, as a run's `config.json`."))
        if rows:
            sections += ["| flag | type | default | |", "|---|---|---|---|"]
            sections += [f"| `--{n}` | {t} | {d} | {h} |" for n, t, d, h in rows]
            sections.append("")
    return "\n".join(sections)


def flag(node: ast.AST) -> tuple[str, str, str, str] | None:
    """A call of absl's `flags.DEFINE_x(name, default, ..., help)` as name, type, default and help."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return None
    if not node.func.attr.startswith("DEFINE_") or not node.args or not isinstance(node.args[0], ast.Constant):
        return None
    kind = node.func.attr.removeprefix("DEFINE_")
    kind = {"bool": "boolean", "multi_string": "string, repeated"}.get(kind, kind)
    place = 3 if kind == "enum" else 2
    keywords = {k.arg: k.value for k in node.keywords}
    text = node.args[place] if len(node.args) > place else keywords.get("help")
    value = ast.unparse(node.args[1]) if len(node.args) > 1 else ""
    value = "" if value in ("None", "''", "[]") else f"`{value}`"
    words = joined(text) if text is not None else ""
    return node.args[0].value, kind.replace("_", " "), value.replace("|", "\\|"), markdown(words).replace("|", "\\|")


def joined(node: ast.AST) -> str:
    """A help text written as a literal, an f-string or a sum of them; what is computed is shown as its expression."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(joined(value) for value in node.values)
    if isinstance(node, ast.FormattedValue):
        return f"`{ast.unparse(node.value)}`"
    if isinstance(node, ast.BinOp):
        return joined(node.left) + joined(node.right)
    return ast.unparse(node)
