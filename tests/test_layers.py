"""No import cycles between files (import-linter checks the layers in pyproject.toml), and unique class names."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

import justright


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = grimp.build_graph("justright", exclude_type_checking_imports=True)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > 200
    TopologicalSorter(imports).prepare()  # CycleError names the files


def test_a_class_name_means_one_thing() -> None:
    """Two classes with one name confuse readers. Only the server's schemas may repeat the engine's names."""
    found: dict[str, list[str]] = {}
    for file in Path(justright.__file__).parent.rglob("*.py"):
        if "data" in file.parts or file.name in ("responses.py", "protocol.py"):
            continue
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(file))
    assert len(found) > 150
    assert {name: files for name, files in found.items() if len(files) > 1} == {}
