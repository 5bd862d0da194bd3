"""The commands as a person types them: the story on a tiny base, JSON for machines, exit codes, plain messages."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from graftwork.cli.main import COMMANDS, run
from tests.train.small import model_folder, texts, write

ROWS_OF_SHOP = texts(12)


class Said(NamedTuple):
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The output as the one JSON value it must be."""
        return json.loads(self.out)


Type = Callable[..., Said]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Type:
    """Type a command; no traceback may ever be printed."""

    def run_it(*words: object) -> Said:
        capsys.readouterr()
        code = run([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Said(code, out, err)

    return run_it


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base, rows, a recipe, and a registry that holds the trained package as mood@1."""
    folder = tmp_path_factory.mktemp("shop")
    model_folder(folder / "base")
    write(folder / "rows.jsonl", ROWS_OF_SHOP)
    recipe = (
        "model: {name: ./base}\n"
        "adapter: {variant: 'seq_bn[reduction_factor=4]'}\n"
        "training: {epochs: 2, batch_size: 4, learning_rate: 1e-2, max_seq_length: 32}\n"
        "task: {kind: classification}\n"
        "data: {train: rows.jsonl, dev: rows.jsonl, test: rows.jsonl}\n"
    )
    (folder / "mood.yaml").write_text(recipe)
    output = f"output={folder / 'run'}"
    words = ["train", folder / "mood.yaml", "--set", output, "--push", "mood", "--registry", folder / "registry"]
    assert run([str(word) for word in words]) == 0
    return folder


def with_base(shop: Path) -> list[object]:
    return ["--model", shop / "base", "--registry", shop / "registry"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(typed: Type, command: str) -> None:
    said = typed(command, "--help")
    assert said.code == 0
    assert f"graftwork {command}" in said.out.split("Usage:")[1].split("\n", 1)[1], "an example of the command itself"


@pytest.mark.parametrize("verb", ["list", "show", "push", "pull", "alias", "verify"])
def test_every_registry_command_explains_itself_with_an_example(typed: Type, verb: str) -> None:
    assert f"Example: graftwork registry {verb}" in " ".join(typed("registry", verb, "--help").out.split())


def test_help_needs_no_torch() -> None:
    code = "import sys, graftwork.cli.main as m; m.run(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_train_writes_a_package_and_prints_scores(typed: Type, shop: Path, tmp_path: Path) -> None:
    words = ["train", shop / "mood.yaml", "--set", f"output={tmp_path / 'run'}", "--set", "training.epochs=1", "--json"]
    found = typed(*words).json()
    assert found["epochs"] == 1
    assert 0 <= found["scores"]["test"]["accuracy"] <= 1
    assert (tmp_path / "run" / "package" / "graft.json").is_file()
    again = typed(*words)
    assert again.code == 2
    assert "--overwrite" in again.err


def test_recipes_train_together_and_fail_alone(typed: Type, shop: Path, tmp_path: Path) -> None:
    words = ["train", shop / "mood.yaml", "--set", "training.epochs=1", "--set", f"output={tmp_path / 'run'}"]
    said = typed(
        *words, "--sweep", "training.max_grad_norm=0.0", "--sweep", "training.learning_rate=1e-2,1e30", "--json"
    )
    done, failed = said.json()
    assert said.code == 1
    assert done["name"] == "mood-max_grad_norm-0.0-learning_rate-0.01"
    assert Path(done["folder"]) == tmp_path / "run-max_grad_norm-0.0-learning_rate-0.01"
    assert failed["name"] == "mood-max_grad_norm-0.0-learning_rate-1e30"
    assert "training diverged" in failed["error"]
    assert "mood-max_grad_norm-0.0-learning_rate-1e30: training diverged" in said.err
    again = typed(*words, "--sweep", "training.max_grad_norm=0.0", "--sweep", "training.learning_rate=1e-2", "--resume")
    assert again.code == 0
    assert "run" in again.out
    assert "1,2" in again.out or "accuracy" in again.out


def test_several_recipes_are_asked_for_on_purpose(typed: Type, shop: Path) -> None:
    said = typed("train", shop / "mood.yaml", shop / "mood.yaml")
    assert (said.code, said.out) == (2, "")
    assert "2 recipes: say --together" in said.err
    said = typed("train", shop / "mood.yaml", "--push", "bad name!")
    assert (said.code, "'bad name!' cannot name a package" in said.err) == (2, True), "not after the training"
    said = typed("train", shop / "mood.yaml", "--sweep", "training.seed=0,1", "--push", "mood")
    assert said.code == 2
    assert "--push names one package" in said.err
    said = typed("train", shop / "mood.yaml", shop / "mood.yaml", "--together")
    assert said.code == 2
    assert "is the output of 'mood' and of 'mood'" in said.err or "holds a run already" in said.err


def test_evaluate_scores_what_was_trained(typed: Type, shop: Path, tmp_path: Path) -> None:
    words = ["evaluate", "mood@1", "--data", shop / "rows.jsonl", *with_base(shop)]
    written = json.loads((shop / "run" / "result.json").read_text())["scores"]["test"]
    found = typed(*words, "--answers", tmp_path / "answers.jsonl", "--json").json()
    (system,) = found["systems"]
    assert (system["composition"], system["head"], found["main"]) == ("mood@1", "mood@1", "accuracy")
    assert system["scores"] == pytest.approx(written)
    assert system["interval"]["low"] <= written["accuracy"] == system["interval"]["value"] <= system["interval"]["high"]
    assert system["difference"] is None
    assert set(system["details"]) == {"labels", "confusion", "calibration"}
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == found["rows"] == len(ROWS_OF_SHOP)
    plain, told = typed(*words).out, typed(*words, "--details").out
    assert "accuracy" in plain
    assert "by label" not in plain
    assert all(f"mood@1 {what}" in told for what in ("by label", "confusion", "calibration: ece"))


def test_evaluate_holds_systems_against_each_other(typed: Type, shop: Path, tmp_path: Path) -> None:
    words = ["evaluate", "mood", "Stack(mood, mood)", "--data", shop / "rows.jsonl", *with_base(shop)]
    out = tmp_path / "answers.jsonl"
    found = typed(*words, "--against", "Stack(mood, mood)", "--resamples", 200, "--answers", out, "--json").json()
    assert (found["rows"], found["against"], found["resamples"]) == (12, "Stack(mood@1, mood@1)", 200)
    first, second = found["systems"]
    assert second["difference"] is None
    gap = first["scores"]["accuracy"] - second["scores"]["accuracy"]
    assert first["difference"]["low"] <= first["difference"]["value"] == pytest.approx(gap)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(1, 13))
    assert all(set(row["answers"]) == {"mood@1", "Stack(mood@1, mood@1)"} for row in rows)
    said = typed(*words)
    assert "difference: accuracy less that of mood@1, on the same draws" in said.out
    assert "its interval" in said.out
    few = typed(*words, "--resamples", 5)
    assert (few.code, "greater than or equal to 100" in few.err, few.out) == (2, True, "")
    lost = typed(*words, "--answers", tmp_path / "nowhere" / "answers.jsonl")
    assert (lost.code, "no such folder; make it first" in lost.err) == (2, True)
    taken = typed(*words, "--answers", tmp_path)
    assert (taken.code, "is a folder; name a file for the answers" in taken.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["Parallel(mood, mood)"], "Parallel(mood, mood): Parallel answers every row once per branch"),
        (["Stack(mood, Parallel(mood, mood))", "--head", "mood"], "evaluate its branches one by one"),
        (["mood", "mood@1"], "mood@1 is given twice: as mood@1"),
        (["mood", "none", "--head", "mood", "--against", "x"], "x is none of the compositions that are evaluated"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_the_rows_are_read(
    typed: Type, shop: Path, words: list[str], says: str
) -> None:
    said = typed("evaluate", *words, "--data", shop / "no such file.jsonl", *with_base(shop))
    assert (said.code, said.out) == (2, "")
    assert says in said.err


def test_predict_answers_in_order_and_fails_row_by_row(typed: Type, shop: Path, tmp_path: Path) -> None:
    rows = [
        {"text": "good film"},
        {"text": "bad", "adapters": "nobody"},
        {"text": "so poor", "adapters": "Stack(mood, mood)"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "a great price\n")
    said = typed("predict", "mood", "--data", tmp_path / "rows.jsonl", *with_base(shop))
    answers = [json.loads(line) for line in said.out.splitlines()]
    assert said.code == 1
    assert [answer.get("adapters") for answer in answers] == ["mood@1", None, "Stack(mood@1, mood@1)", "mood@1"]
    assert answers[1]["error"]["code"] == "not_found"
    said = typed("predict", "mood", "--text", "fine", "--text", "awful", "--json", *with_base(shop))
    assert said.code == 0
    assert [answer["head"] for answer in said.json()] == ["mood@1", "mood@1"]


def test_registry_tells_the_life_of_a_package(typed: Type, shop: Path, tmp_path: Path) -> None:
    root = ["--registry", tmp_path / "registry"]
    assert typed("registry", "push", shop / "run" / "package", "desk/mood", *root).out.strip() == "desk/mood@1"
    assert typed("registry", "alias", "desk/mood", "prod", 1, *root).out.strip() == "desk/mood@prod -> desk/mood@1"
    (entry,) = typed("registry", "list", "--json", *root).json()
    assert (entry["name"], entry["version"], entry["aliases"]) == ("desk/mood", 1, ["prod"])
    shown = typed("registry", "show", "desk/mood@prod", "--json", *root).json()
    assert shown["task"]["kind"] == "classification"
    assert typed("registry", "pull", "desk/mood", tmp_path / "out", *root).code == 0
    assert (tmp_path / "out" / "graft.safetensors").is_file()
    assert typed("registry", "verify", *root).code == 0
    weights = tmp_path / "registry" / Path(shown["path"]).relative_to(tmp_path / "registry") / "graft.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    damaged = typed("registry", "verify", *root)
    assert damaged.code == 1
    assert "DAMAGED" in damaged.out


def test_show_counts_parameters_of_published_shapes(typed: Type) -> None:
    counts = {
        ("bert-base-uncased", "seq_bn"): 894_528,
        ("bert-base-uncased", "double_seq_bn"): 1_789_056,
        ("bert-base-uncased", "double_seq_bn[reduction_factor=12]"): 2_379_264,
        ("meta-llama/Meta-Llama-3-8B", "double_seq_bn[reduction_factor=32]"): 67_379_200,
        ("meta-llama/Meta-Llama-3-8B", "seq_bn[reduction_factor=32]"): 33_689_600,
    }
    for (model, method), parameters in counts.items():
        found = typed("show", model, "--method", method, "--json").json()
        assert found["methods"][0]["parameters"] == parameters
    fusions = {
        row["fusion"]: row["parameters"] for row in typed("show", "bert-base-uncased", "--json").json()["fusions"]
    }
    assert fusions["dynamic"] == 21_252_096


def test_show_says_what_a_method_a_package_and_a_composition_are(typed: Type, shop: Path) -> None:
    root = ["--registry", shop / "registry"]
    method = typed("show", "pfeiffer[non_linearity=gelu]", "--json", *root).json()
    assert (method["kind"], method["config"]["non_linearity"]) == ("method", "gelu")
    for what in ("mood@1", shop / "run" / "package"):
        package = typed("show", what, "--json", *root).json()
        assert (package["kind"], package["manifest"]["role"]) == ("package", "task")
    tree = typed("show", "Stack(mood, nobody)", "--json", *root).json()
    assert tree["adapters"][0]["reference"] == "mood@1"
    counted = package["parameters"]
    member = tree["adapters"][0]
    assert (member["parameters"], member["of its head"]) == (counted["adapter"], counted["head"])
    assert "no package 'nobody'" in tree["adapters"][1]["problem"]
    said = typed("show", "mood@1", *root)
    assert said.err == ""
    assert f"adapter  {counted['adapter']:,}\n" in said.out
    assert "\nhead            kind=classification, labels=['bad', 'good'], num_outputs=2" in said.out
    assert max(map(len, said.out.splitlines())) <= 120


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["show", "sec_bn"], "neither a package folder"),
        (["show", "Stack(a"], "cannot read 'Stack(a'"),
        (["evaluate", "mood", "--data", "nowhere.jsonl"], "no package 'mood'"),
        (["predict", "mood"], "nothing to answer"),
        (["predict", "mood", "--data", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["registry", "show", "nobody"], "no package 'nobody'"),
        (["registry", "push", "nowhere", "x"], "nowhere"),
        (["registry", "verify", "--everything"], "No such option"),
        (["serve", "--port", "99999"], "65535"),
        (["serve", "--model", "./nowhere", "--port", "0"], "cannot load './nowhere'"),
        (["demo", "--examples", "nowhere"], "the demo's recipes are missing"),
        (["trian"], "No such command 'trian'"),
    ],
)
def test_a_mistake_ends_in_one_message_and_code_2(typed: Type, tmp_path: Path, words: list[str], says: str) -> None:
    said = typed(*words)
    assert said.code == 2
    assert says in said.err
    assert said.out == "" or "Usage" in said.out or "listening" in said.out


def test_predict_reads_lines_as_they_are(
    typed: Type, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answers(name: str, content: bytes) -> list[dict[str, Any]]:
        (tmp_path / name).write_bytes(content)
        said = typed("predict", "mood", "--data", tmp_path / name, *with_base(shop))
        assert said.code == 0, said.err
        return [json.loads(line) for line in said.out.split("\n") if line]

    one, two = answers("plain.jsonl", b'{"text": "good film"}\n{"text": "bad film"}\n')
    assert answers("bom.jsonl", b'\xef\xbb\xbf{"text": "good film"}\r\n{"text": "bad film"}') == [one, two]
    assert answers("rows.CSV", b"\xef\xbb\xbftext,label\ngood film,good\nbad film,bad\n") == [one, two]
    assert len(answers("parted.jsonl", '{"text": "good\u2028film"}\n'.encode())) == 1
    assert len(answers("parted.txt", "good\u0085film\n\nbad film".encode())) == 2
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"good film\nbad film\n")))
    said = typed("predict", "mood", "--data", "-", *with_base(shop))
    assert [json.loads(line) for line in said.out.splitlines()] == [one, two]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("deep.jsonl", b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 1: not valid JSON"),
        ("list.jsonl", b'{"text": "a"}\n[{"text": "good"}]', "line 2: a row is an object such as"),
        ("latin.jsonl", b"good\xff film", "line 1: not UTF-8 text (byte 4 of the line)"),
        ("-", b"fine\ngood\xff film", "standard input, line 2: not UTF-8 text"),
        ("twice.csv", b"text,text\na,b\n", "the column 'text' stands there twice"),
        ("none.parquet", b"", "none.parquet: cannot be read"),
    ],
)
def test_lines_that_are_no_rows_are_said(
    typed: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, says: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    if name != "-":
        (tmp_path / name).write_bytes(content)
    said = typed("predict", "mood", "--data", "-" if name == "-" else tmp_path / name)
    assert (said.code, said.out) == (2, "")
    assert says in said.err


def test_a_picture_that_is_not_there_is_an_error_of_its_row(typed: Type, shop: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"image": "nope.png"}\n{"text": "good"}\n')
    said = typed("predict", "mood", "--data", tmp_path / "rows.jsonl", *with_base(shop))
    lost, found = [json.loads(line) for line in said.out.splitlines()]
    assert (said.code, "nope.png' cannot be read" in lost["error"]["message"]) == (1, True)
    assert found["adapters"] == "mood@1"


def test_what_every_process_sees_is_said_by_one(typed: Type, shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["train", shop / "mood.yaml", "--set", "training.epochs=-2"]
    for rank, says in (("0", True), ("1", False)):
        with monkeypatch.context() as one:
            one.setenv("RANK", rank)
            one.setenv("WORLD_SIZE", "2")
            said = typed(*words)
        assert (said.code, "training.epochs: -2" in said.err) == (2, says)


REFUSALS: dict[str, Callable[[], object]] = {
    "accelerator": lambda: raised(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")),
    "machine": lambda: torch.empty(2**50),  # what torch's allocator itself says
}


def raised(error: Exception) -> object:
    raise error


@pytest.mark.parametrize("place", REFUSALS)
@pytest.mark.parametrize("how", [[], ["--together"]])
def test_a_training_without_memory_says_what_takes_less_and_goes_on_later(
    typed: Type, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, how: list[str]
) -> None:
    output = tmp_path / "run"
    words = ["train", shop / "mood.yaml", "--set", f"output={output}", *how]
    with monkeypatch.context() as scarce:
        scarce.setattr(torch.nn.functional, "linear", lambda *given: REFUSALS[place]())
        said = typed(*words)
    assert said.code == 1
    first, advice = said.err.strip().splitlines()[-2:]
    assert first.startswith("error: ")
    assert "allocate" in first
    assert "training.batch_size with training.gradient_accumulation" in advice
    assert "--resume" in advice
    assert typed(*words, "--resume").code == 0
    assert (output / "result.json").is_file()
