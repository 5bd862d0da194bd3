"""Two furnished worlds, made once: a tiny one, and one on MiniLM. Tests only read their registries."""

from pathlib import Path

import pytest

from tests.serve.world import World, furnish


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One of everything on a tiny BERT."""
    return furnish(World(tmp_path_factory.mktemp("tiny-world")))


@pytest.fixture(scope="session")
def minilm_world(tmp_path_factory: pytest.TempPathFactory, minilm_folder: Path) -> World:
    """One of everything on MiniLM."""
    return furnish(World(tmp_path_factory.mktemp("minilm-world"), "minilm"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    """An empty registry for a tiny BERT, for tests that change it."""
    return World(tmp_path)
