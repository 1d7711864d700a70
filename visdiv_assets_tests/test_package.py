"""The package as someone who imports it sees it."""

import ast
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import visdiv_assets

PACKAGE = Path(visdiv_assets.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def test_the_python_api_is_that_of_the_published_implementation():
    assert set(visdiv_assets.__all__) == {
        "CorrectedScore",
        "corrected_score",
        "DiversityCalculator",
        "SSCDEmbedder",
        "VisdivError",
        "evaluate_diversity",
        "find_near_duplicates",
        "get_diversity_components",
        "select_diverse_samples",
    }


@pytest.mark.parametrize("name", visdiv_assets.__all__)
def test_every_public_name_can_be_imported_and_says_what_it_is(name):
    member = getattr(visdiv_assets, name)
    assert member.__doc__
    assert name in dir(visdiv_assets)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'visdiv_assets' has no attribute 'nonsense'"):
        visdiv_assets.nonsense  # noqa: B018


def imported_by(statement: str) -> set[str]:
    """The top-level modules in memory after a statement in a fresh interpreter."""
    code = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


HEAVY = {
    *("torch", "torchvision", "onnxruntime", "pandas", "dagster", "duckdb", "matplotlib", "faiss")
}


def test_importing_the_package_imports_nothing_heavy():
    assert not imported_by("import visdiv_assets") & (HEAVY | {"numpy", "PIL", "pyarrow"})


def test_importing_the_command_imports_nothing_heavy():
    assert not imported_by("import visdiv_assets.cli.main") & (HEAVY | {"numpy", "PIL", "pyarrow"})


def test_scoring_needs_neither_torch_nor_dagster_in_memory():
    modules = ["workflows.evaluate", "warehouse.warehouse", "embedding.embedder"]
    statement = "; ".join(f"import visdiv_assets.{module}" for module in modules)
    assert not imported_by(statement) & (HEAVY - {"duckdb"})


def test_the_version_is_the_installed_one():
    assert version("visdiv_assets") == visdiv_assets.__version__


def test_type_checkers_are_told_that_the_package_is_typed():
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_and_everything_public_in_it_is_documented(path):
    module = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(module), "the module has no docstring"
    undocumented = [
        node.name
        for parent in ast.walk(module)
        if isinstance(parent, ast.Module | ast.ClassDef)
        for node in parent.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not (isinstance(parent, ast.ClassDef) and parent.name.startswith("_"))
        and not ast.get_docstring(node)
    ]
    assert not undocumented


def test_the_root_has_14_rooms_at_most_and_three_modules():
    assert sorted(path.name for path in PACKAGE.glob("*.py")) == [
        "__init__.py",
        "definitions.py",
        "errors.py",
    ]
    assert len(list(PACKAGE.glob("*/__init__.py"))) <= 14


def questions():
    """Folder, module and names of each row of `Where is …?` in docs/architecture.md."""
    text = (PACKAGE.parent / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+\?) \| `(\w+)/` \| (.+) \|$", text, re.MULTILINE)
    return [
        (question, module if "/" in module else f"{folder}/{module}", name)
        for question, folder, answer in rows
        for module, name in re.findall(r"`([\w/]+\.py)`: `(\w+)`", answer)
    ]


def test_there_are_answers_to_more_than_ten_questions():
    assert len({question for question, _, _ in questions()}) > 10


@pytest.mark.parametrize(("question", "module", "name"), questions())
def test_what_a_newcomer_asks_is_where_the_architecture_says(question, module, name):
    body = ast.parse((PACKAGE / module).read_text(encoding="utf-8")).body
    assert name in {getattr(node, "name", None) for node in body}
