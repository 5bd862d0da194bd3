"""card.py: the page says what graft.json says, a hub can read its head, and no text of a user breaks it."""

import re
import shlex

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from graftwork.manifest import Contents, FileEntry, Manifest, TensorEntry
from graftwork.registry.card import card
from tests.registry.samples import BASE, fusion_manifest, task_manifest

CONTENTS = Contents(
    digest="9" * 64,
    tensors={
        "adapter/layer.0/ffn/down.weight": TensorEntry(dtype="float32", shape=(48, 768), sha256="0" * 64),
        "head/out.weight": TensorEntry(dtype="float32", shape=(2, 768), sha256="0" * 64),
    },
    weights=FileEntry(bytes=3_582_712, sha256="0" * 64),
)


def head(page: str) -> dict[str, object]:
    start, text, _ = page.split("---\n", 2)
    assert start == ""
    found = yaml.safe_load(text)
    assert isinstance(found, dict)
    return found


def test_the_head_is_what_a_hub_reads() -> None:
    assert head(card(task_manifest(), CONTENTS)) == {
        "library_name": "graftwork",
        "tags": ["graftwork", "adapter", "task", "bert"],
        "base_model": "bert-base-uncased",
        "base_model_relation": "adapter",
        "license": "apache-2.0",
        "pipeline_tag": "text-classification",
    }


def test_a_base_without_a_hub_id_is_not_named_in_the_head() -> None:
    for name in ("", "/models/bert", "../bert"):
        manifest = task_manifest().model_copy(update={"base": BASE.model_copy(update={"name": name}), "licence": None})
        assert "base_model" not in head(card(manifest, CONTENTS))
        assert "license" not in head(card(manifest, CONTENTS))


@pytest.mark.parametrize(
    "line",
    [
        "# mood",
        "Whether a customer is happy.",
        "| parameters (adapter) | 36,864 |",
        "| parameters (head) | 1,536 |",
        "| weights | 3.58 MB |",
        "| labels | no, yes |",
        "| method | bottleneck |",
        "| licence | apache-2.0 |",
        f"| digest | {'9' * 64} |",
        f"| base fingerprint | {'ab' * 32} |",
        "| accuracy | 0.9125 |",
        "| dev.f1 | 0.5 |",
        "| rows | 300 |",
        "| learning_rate | 0.0001 |",
        "| method.reduction_factor | 4 |",
        "| made with torch | 2.13 |",
        "graftwork registry pull mood mood",
        'model = AutoAdapterModel.from_pretrained("bert-base-uncased")',
        'name = model.load_adapter("mood")',
        "- Texts of more than 128 tokens were not seen in training.",
    ],
)
def test_the_page_says(line: str) -> None:
    assert line in card(task_manifest(), CONTENTS).splitlines()


def test_a_fusion_names_its_members() -> None:
    page = card(fusion_manifest(), CONTENTS)
    assert "| mixes | Fuse(a, b) |" in page
    assert "Load its members first: `a` (111111111111), `b` (222222222222)." in page
    assert "No scores were recorded." in page
    assert "No data was recorded." in page
    assert "pipeline_tag" not in page


def test_what_was_taken_on_trust_is_said() -> None:
    base = BASE.model_copy(update={"asserted": True})
    page = card(task_manifest().model_copy(update={"base": base, "semantics": "adapters-1"}), CONTENTS)
    assert "- The base was asserted by whoever imported this package" in page
    assert "`adapters-1`" in page
    assert "asserted" not in card(task_manifest(), CONTENTS)


def test_a_name_with_an_owner_is_pulled_into_its_last_part() -> None:
    page = card(task_manifest("shop/mood"), CONTENTS)
    assert "graftwork registry pull shop/mood mood" in page
    assert 'load_adapter("mood")' in page


@given(
    st.text(min_size=1),
    st.text(),
    st.dictionaries(st.text(), st.text() | st.floats(allow_nan=False, allow_infinity=False), max_size=3),
)
def test_no_text_breaks_the_page(name: str, licence: str, scores: dict[str, str | float]) -> None:
    manifest = task_manifest().model_copy(update={"name": name, "licence": licence, "scores": scores})
    page = card(manifest, CONTENTS)
    assert head(page)["tags"] == ["graftwork", "adapter", "task", "bert"]
    assert page.count("\n```") == 4
    rows = page.split("## Scores\n\n")[1].split("\n\n## Data")[0].split("\n")
    if scores:
        assert len(rows) == 2 + len(scores)
        assert all(len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 3 for row in rows)
    command = next(line for line in page.splitlines() if line.startswith("graftwork registry pull"))
    assert len(shlex.split(command)) == 5


def test_the_card_is_a_pure_function() -> None:
    manifest = Manifest.model_validate(task_manifest().model_dump())
    assert card(manifest, CONTENTS) == card(task_manifest(), CONTENTS)
