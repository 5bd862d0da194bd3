"""benchmarks/fold_site.py: a run on one setup prints what a site costs and what folding it costs."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.scripts import script


def test_a_site_and_its_folding_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fold_site, file = script("fold_site"), tmp_path / "rows.json"
    monkeypatch.setattr(fold_site, "BUILDS", 1)
    monkeypatch.setattr(
        "sys.argv",
        ["fold_site.py", "--setups", "seq_bn,fuse3", "--shapes", "1x1", "--rounds", "2", "--json", str(file)],
    )
    fold_site.main()
    one, three = json.loads(file.read_text("utf8"))["rows"]
    assert 0 < one["built_ms"] < three["built_ms"]
    assert capsys.readouterr().out.splitlines()[0].endswith("built")
