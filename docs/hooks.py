"""Reference pages that follow from the code, made when the site is built."""

import importlib
import json
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import typer
from markdown.extensions.toc import slugify
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.testing import CliRunner

Titles = dict[str, str]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the command line, the settings and the changelog."""
    (script,) = entry_points(group="console_scripts", name="visdiv")
    app = importlib.import_module(script.module).app
    schema = json.loads(CliRunner().invoke(app, ["schema"]).stdout)
    changelog = Path(config.config_file_path).with_name("CHANGELOG.md")
    pages = {
        "reference/cli.md": command_line(app),
        "reference/settings.md": settings(schema),
        "changelog.md": changelog.read_text(encoding="utf-8"),
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def command_line(app: typer.Typer) -> str:
    """A section for each command, as `--help` has it."""
    command = typer.main.get_command(app)
    context = command.context_class(command, info_name="visdiv")
    intro = (
        "# Command line\n\nEvery command has `--help`. Settings come from the file named by "
        "`--config`, else from `$VISDIV_CONFIG`, else from `./visdiv.yaml`, else the defaults "
        "apply. `$VISDIV_STORE` overrides the store, `$VISDIV_RESULTS` where the results are.\n\n"
    )
    return intro + "\n".join(_sections(command, context, level=2))


def _sections(command: Any, context: Any, level: int) -> list[str]:
    name = context.command_path
    lines = [f"{'#' * level} `{name}`\n", f"{(command.help or '').strip()}\n"]
    lines += [f"```console\n$ {' '.join([name, *command.collect_usage_pieces(context)])}\n```\n"]
    records = [each.get_help_record(context) for each in command.get_params(context)]
    shown = [record for record in records if record and not record[0].startswith("--help")]
    if shown:
        lines += ["| argument or option | meaning |", "|---|---|"]
        lines += [f"| `{names}` | {_cell(text)} |" for names, text in shown]
        lines += [""]
    lines += _epilog(command.epilog or "")
    for child_name in command.list_commands(context) if hasattr(command, "commands") else ():
        child = command.get_command(context, child_name)
        child_context = child.context_class(child, info_name=child_name, parent=context)
        lines += _sections(child, child_context, level=level + 1 if level > 2 else 3)
    return lines


def _epilog(text: str) -> list[str]:
    """Headings in Rich's markup, and indented lines as they are."""
    lines: list[str] = []
    block: list[str] = []
    for line in [*text.replace("\b", "").splitlines(), "."]:
        if line.startswith("  "):
            block.append(line.removeprefix("  "))
            continue
        if block and line:
            lines += ["```text", *block, "```", ""]
            block = []
        if line.startswith("[bold]"):
            lines += [f"**{line.removeprefix('[bold]').removesuffix('[/]')}**", ""]
        elif line and line != ".":
            lines.append(line)
    return lines


def settings(schema: dict[str, Any]) -> str:
    """A table for each part of the JSON Schema of visdiv.yaml."""
    titles: dict[str, str] = {}
    _name_parts(schema, schema, "", titles)
    lines = [
        "# Settings: `visdiv.yaml`\n",
        "`visdiv init` writes a commented file. `visdiv schema` prints the JSON Schema from which "
        "this page is made; give it to your editor for completion and checks. Relative paths are "
        "relative to the file's own folder. `${NAME}` stands for an environment variable. "
        "`$VISDIV_STORE` overrides the store, `$VISDIV_RESULTS` where the results are. "
        "`$VISDIV_STATE_DIR` is the folder in which Dagster keeps the last good settings.\n",
        *_table("Top level", schema, titles),
    ]
    for name, title in titles.items():
        lines += _table(f"`{title}`", schema["$defs"][name], titles)
    return "\n".join(lines)


def _name_parts(node: dict[str, Any], schema: dict[str, Any], at: str, titles: Titles) -> None:
    """The key at which each part stands first, in the order of the file."""
    for key, value in node.get("properties", {}).items():
        is_map = any("additionalProperties" in each for each in [value, *value.get("anyOf", [])])
        title = f"{at}{key}" + (".NAME" if is_map else "")
        for name in _references(value):
            if name not in titles:
                titles[name] = title
                _name_parts(schema["$defs"][name], schema, f"{title}.", titles)


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"].rpartition("/")[2]] if "$ref" in node else []
        return own + [name for each in node.values() for name in _references(each)]
    if isinstance(node, list):
        return [name for each in node for name in _references(each)]
    return []


def _table(heading: str, part: dict[str, Any], titles: Titles) -> list[str]:
    lines = [f"## {heading}\n", part.get("description", "").split("\n\n")[0] + "\n"]
    lines += ["| key | value | default | meaning |", "|---|---|---|---|"]
    required = part.get("required", [])
    for key, value in part.get("properties", {}).items():
        default = "*required*" if key in required else _default(value)
        meaning = _cell(value.get("description", ""))
        lines.append(f"| `{key}` | {_type(value, titles)} | {default} | {meaning} |")
    return [*lines, ""]


def _default(value: dict[str, Any]) -> str:
    default = value.get("default")
    if default is None or default in ({}, []):
        return ""
    return f"`{json.dumps(default, ensure_ascii=False)}`"


def _type(value: dict[str, Any], titles: Titles) -> str:
    """What may stand there, with links to other tables."""
    if "$ref" in value:
        title = titles[value["$ref"].rpartition("/")[2]]
        return f"[`{title}`](#{slugify(title, '-')})"
    if "anyOf" in value:
        return " or ".join(
            _type(each, titles) for each in value["anyOf"] if each.get("type") != "null"
        )
    if "enum" in value or "const" in value:
        return ", ".join(f"`{each}`" for each in value.get("enum", [value.get("const")]))
    if value.get("type") == "array":
        return f"list of {_type(value.get('items', {}), titles)}"
    if value.get("type") == "object":
        values = value.get("additionalProperties") or next(
            iter(value.get("patternProperties", {}).values()), {}
        )
        return f"name: {_type(values, titles)}" if values else "mapping"
    names = {
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "true or false",
    }
    text = names.get(value.get("type", ""), "any")
    least, most = value.get("minimum"), value.get("maximum")
    if least is not None and most is not None:
        return f"{text}, {least:g} to {most:g}"
    return text


def _cell(text: str) -> str:
    plain = " ".join(text.split()).replace("<", "&lt;")
    return re.sub(r"([|{}*_])", r"\\\1", plain)
