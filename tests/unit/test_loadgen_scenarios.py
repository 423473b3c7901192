"""The scenarios in `loadtests/` fit together."""

import ast
from pathlib import Path

import pytest

from timesplit.lab.scenario import find_scenario, scenario_names

LOADTESTS = Path(__file__).parents[2] / "loadtests"


@pytest.mark.parametrize("name", scenario_names(LOADTESTS))
def test_a_scenario_has_a_title_and_a_question_and_names_its_own_classes(name: str) -> None:
    scenario = find_scenario(name, LOADTESTS)
    tree = ast.parse(scenario.locustfile.read_text())
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}

    assert scenario.title
    assert scenario.question.endswith("?")
    assert set(scenario.user_classes) == classes


@pytest.mark.parametrize("file", sorted(LOADTESTS.glob("*.py")), ids=lambda file: file.name)
def test_a_scenario_imports_locust_and_the_generator_only(file: Path) -> None:
    imports = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]

    assert {node.module for node in imports} <= {"typing", "locust", "timesplit", "timesplit.loadgen"}
