"""`registry import` and `registry export` as a person types them."""

from pathlib import Path

import pytest
from transformers import BertConfig, BertModel

from graftwork.cli.main import run
from tests.registry.foreign.hub_files import SEQ_BN, WIDTH, bert_bottleneck, meta, rand, write


def test_files_go_in_and_come_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, root = tmp_path / "bert-tiny", ["--registry", str(tmp_path / "registry")]
    sizes = {"hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 11}
    BertModel(BertConfig(num_hidden_layers=2, **sizes)).save_pretrained(base)
    folder = write(tmp_path / "a", meta(SEQ_BN), bert_bottleneck())
    assert run(["registry", "import", str(folder), "--model", str(base), *root]) == 0
    said = capsys.readouterr().out
    assert "a@1  (task" in said
    assert "encoder.layer.1.output.adapters.a.adapter_up.bias" in said
    assert "adapter/layer.1/ffn/up.bias" in said
    export = ["registry", "export", "a", str(tmp_path / "out"), "--to", "adapterhub", "--model", str(base), *root]
    assert run(export) == 0
    assert "pytorch_adapter.bin" in capsys.readouterr().out
    assert run(["registry", "export", "a", str(tmp_path / "p"), "--to", "peft", "--model", str(base), *root]) == 1
    assert "no method like 'bottleneck'" in capsys.readouterr().err
    bad = write(tmp_path / "b", meta(SEQ_BN, "b"), bert_bottleneck("b") | {"elsewhere": rand(2)})
    assert run(["registry", "import", str(bad), "--model", str(base), *root]) == 1
    assert "have no place: elsewhere" in capsys.readouterr().err
    assert run(["registry", "import", "no/such/thing", *root]) == 2
    assert run(["registry", "--help"]) == 0
    assert "import" in capsys.readouterr().out
