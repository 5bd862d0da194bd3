from typing import get_args

import pytest

from graftwork.errors import DataError
from graftwork.manifest import TaskSpec
from graftwork.schema.values import TaskKind
from graftwork.tasks.classify import Classification
from graftwork.tasks.kinds import TASKS, task_class, task_from_spec


def test_every_row_is_listed_under_its_own_kind() -> None:
    assert {kind: task.kind for kind, task in TASKS.items()} == {kind: kind for kind in TASKS}


def test_a_recipe_may_name_every_kind_and_no_other() -> None:
    assert sorted(get_args(TaskKind)) == sorted(TASKS)


def test_a_task_is_built_from_a_package() -> None:
    spec = TaskSpec(kind="classification", max_length=48, labels=("no", "yes"))
    assert task_from_spec(spec) == Classification(("no", "yes"), 48)
    assert task_from_spec(spec).spec == spec


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    message = 'there is no task kind "span"; the kinds are "causal_lm", "classification", "dependency_parsing", "imag'
    with pytest.raises(DataError, match=message):
        task_class("span")
    with pytest.raises(DataError, match=message):
        task_from_spec(TaskSpec(kind="span", max_length=8, labels=()))
