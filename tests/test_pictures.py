"""Images through the whole machine: a recipe is trained, its package evaluated and served."""

import base64
import json
import random
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from graftwork import workflow
from graftwork.errors import BackboneError, DataError, RecipeError
from graftwork.model import AdapterModel
from graftwork.recipe import Recipe, loads, override
from graftwork.registry.store import Registry
from graftwork.serve.engine import Engine
from graftwork.tasks.images import MOST_PIXELS, ImageEncoder, decoded_base64, image_of
from graftwork.train.data import load_data
from graftwork.train.outcome import TrainResult
from graftwork.train.run import train
from tests import tiny
from tests.train import small

PROCESSOR = ViTImageProcessorPil(size={"height": 16, "width": 16})


def picture(label: str, draw: random.Random, size: tuple[int, int] = (20, 24)) -> Image.Image:
    """Mostly red or mostly blue, with noise."""
    strong, weak = 160 + draw.randrange(90), draw.randrange(90)
    return Image.new("RGB", size, (strong, weak, weak) if label == "red" else (weak, weak, strong))


def rows(folder: Path, split: str, count: int) -> None:
    draw = random.Random(split)
    (folder / "pictures").mkdir(exist_ok=True)
    written = []
    for number in range(count):
        label = ("red", "blue")[number % 2]
        picture(label, draw).save(folder / "pictures" / f"{split}-{number}.png")
        written.append({"image": f"pictures/{split}-{number}.png", "label": label})
    small.write(folder / f"{split}.jsonl", written)


def recipe(folder: Path) -> Recipe:
    tiny.model("vit").save_pretrained(folder / "base")
    PROCESSOR.save_pretrained(folder / "base")
    for split, count in (("train", 32), ("dev", 8), ("test", 8)):
        rows(folder, split, count)
    text = """
        model: {name: ./base}
        training: {epochs: 3, batch_size: 8, learning_rate: 1e-2}
        task: {kind: image_classification}
        data: {train: train.jsonl, dev: dev.jsonl, test: test.jsonl}
    """
    return override(loads(text, folder=folder, name="hue"), {"output": str(folder / "run")})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult, Engine]:
    folder = tmp_path_factory.mktemp("pictures")
    registry, made = Registry(folder / "registry"), recipe(folder)
    result = train(made, registry=registry)
    workflow.push(result, registry)
    return folder, result, workflow.open_engine(made.model.name, registry)


def test_images_are_learned_and_scored(trained: tuple[Path, TrainResult, Engine]) -> None:
    folder, result, engine = trained
    assert result.scores["test"]["accuracy"] == 1.0
    assert result.package.manifest.head is not None
    assert result.package.manifest.head.kind == "image_classification"
    found = workflow.evaluate(engine, "hue", str(folder / "test.jsonl"))
    assert found.scores == pytest.approx(result.scores["test"])


@pytest.mark.parametrize(
    "method",
    [
        "full",
        pytest.param(
            "peft", marks=pytest.mark.skipif(find_spec("peft") is None, reason="pip install 'graftwork[baselines]'")
        ),
    ],
)
def test_baselines_learn_images_too(method: str, tmp_path: Path) -> None:
    named = {"target_modules": ["q_proj", "v_proj"]}  # which peft has no default for in a ViT
    adapter = {"adapter": {"variant": "lora", "options": named}} if method == "peft" else {}
    made = override(recipe(tmp_path), {"training.method": method, **adapter, "training.epochs": 1})
    if method == "peft":
        with pytest.raises(RecipeError, match=r"cannot adapt a ViTModel: .* name the layers: adapter\.options: "):
            train(override(made, {"adapter.options": {}}))
    result = train(made)
    assert result.parameters["trained"] > result.parameters["head"]
    assert set(result.scores) == {"dev", "test"}


def test_an_image_is_answered_the_same_by_file_by_bytes_and_in_base_64(
    trained: tuple[Path, TrainResult, Engine],
) -> None:
    folder, _, engine = trained
    file = folder / "pictures" / "test-1.png"
    whole = file.read_bytes()
    (by_file,) = workflow.predict(engine, [{"image": str(file)}], "hue")
    in_base_64 = {"image_base64": base64.b64encode(whole).decode(), "adapters": "hue"}
    by_bytes, by_text = engine.answer([{"image": whole, "adapters": "hue"}, in_base_64])
    assert by_file == by_bytes == by_text
    assert by_file["label"] == "blue"
    assert json.loads(json.dumps(by_text))["scores"].keys() == {"red", "blue"}
    model: Any = engine.model
    pixels = PROCESSOR(images=[Image.open(file).convert("RGB")], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model(pixel_values=pixels, adapters="hue@1", head="hue@1").logits[0]
    assert by_file["scores"]["blue"] == pytest.approx(float(logits.softmax(-1)[0]), abs=1e-5)


def test_no_file_is_opened_for_a_row_and_what_is_no_image_is_refused(
    trained: tuple[Path, TrainResult, Engine],
) -> None:
    folder, _, engine = trained
    file, good = folder / "pictures" / "test-1.png", base64.b64encode(b"x").decode()
    cases = {
        "no file is opened for a row": {"image": str(file)},
        "is no text in base 64": {"image_base64": "@@"},
        "of 1 bytes cannot be read": {"image_base64": good},
        "needs one of": {"image_base64": good, "text": "x"},
        "it must be an image": {"image_base64": 3},
        'has no "image"': {"text": "the film"},
    }
    for message, row in cases.items():
        (answer,) = engine.answer([{**row, "adapters": "hue"}])
        assert message in answer["error"]["message"], (row, answer)
    broken = file.read_bytes()[:60]
    assert "error" in engine.answer([{"image": broken, "adapters": "hue"}])[0]


def test_rows_without_their_files_are_named_before_anything_is_written(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    (tmp_path / "pictures" / "dev-3.png").unlink()
    (tmp_path / "pictures" / "train-5.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"dev\.jsonl:4: image: no such file .*dev-3.png"):
        train(made)
    rows(tmp_path, "dev", 8)
    with pytest.raises(DataError, match=r"row 6: the image .*train-5.png' cannot be read"):
        train(made)
    assert not (tmp_path / "run").exists()


def test_a_base_that_reads_no_images_is_refused(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    small.model_folder(tmp_path / "words")
    with pytest.raises(BackboneError, match="words"):
        train(override(made, {"model.name": str(tmp_path / "words")}))


def test_rows_are_the_same_data_wherever_they_lie(tmp_path: Path) -> None:
    one, other = (load_data(recipe(folder)) for folder in (tmp_path / "a", tmp_path / "b") if not folder.mkdir())
    assert one.digest == other.digest
    picture("red", random.Random(9)).save(tmp_path / "b" / "pictures" / "dev-1.png")
    assert load_data(recipe_of(tmp_path / "b")).digest != one.digest


def recipe_of(folder: Path) -> Recipe:
    text = """
        model: {name: ./base}
        task: {kind: image_classification}
        data: {train: train.jsonl, dev: dev.jsonl, test: test.jsonl}
    """
    return loads(text, folder=folder, name="hue")


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_every_kind_of_colour_becomes_three(mode: str) -> None:
    file = BytesIO()
    picture("red", random.Random(0)).convert(mode).save(file, "TIFF" if mode == "CMYK" else "PNG")
    batch = ImageEncoder(PROCESSOR).pad([image_of(file.getvalue())])
    assert batch["pixel_values"].shape == (1, 3, 16, 16)


def test_images_that_would_not_fit_are_never_decoded() -> None:
    file = BytesIO()
    Image.new("1", (MOST_PIXELS // 1000 + 1, 1000)).save(file, "PNG")
    with pytest.raises(DataError, match="x 1000 pixels; at most"):
        image_of(file.getvalue())
    with pytest.raises(DataError, match="letters; at most"):
        decoded_base64("A" * (50 * 2**20))


def test_labels_and_processors_travel() -> None:
    other = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.1] * 3)
    assert ImageEncoder(PROCESSOR).digest == ImageEncoder(ViTImageProcessorPil.from_dict(PROCESSOR.to_dict())).digest
    assert ImageEncoder(PROCESSOR).digest != ImageEncoder(other).digest
    assert AdapterModel(tiny.model("vit")).base.main_input_name == "pixel_values"
