"""The human page of a package: a README.md that a model hub shows as a model card.

`card(manifest, contents)` is a pure function of what `graft.json` says; it is not part of a package's identity and is
never read back. YAML strings are written as JSON strings, which YAML reads.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping

from pydantic import JsonValue

from graftwork.manifest import PARTS, Contents, Manifest

# task kind -> the word a model hub uses
PIPELINES = {
    "classification": "text-classification",
    "pair": "text-classification",
    "regression": "text-classification",
    "tagging": "token-classification",
}
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


def card(manifest: Manifest, contents: Contents) -> str:
    """The page as Markdown with a YAML head: what it is, scores, data, training, size, how to load it, its limits."""
    sections = {
        "": _summary(manifest, contents),
        "How to load it": _loading(manifest),
        "Scores": _table(manifest.scores, "score") or "No scores were recorded.",
        "Data": _table(manifest.data, "value") or "No data was recorded.",
        "Training": _table(_training(manifest), "value") or "No training settings were recorded.",
        "Limits": _limits(manifest),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" if title else text for title, text in sections.items())
    return f"{_front_matter(manifest)}\n\n# {_plain(manifest.name)}\n\n{body}\n"


def _front_matter(manifest: Manifest) -> str:
    tags = ["graftwork", "adapter", manifest.role, manifest.base.model_type]
    lines = ["---", "library_name: graftwork", "tags:"]
    lines += [f"- {_quoted(tag)}" for tag in dict.fromkeys(tags)]
    if _HUB_ID.fullmatch(manifest.base.name):  # a hub refuses a page whose base is a local folder
        lines += [f"base_model: {_quoted(manifest.base.name)}", "base_model_relation: adapter"]
    if manifest.licence:
        lines.append(f"license: {_quoted(manifest.licence)}")
    if manifest.task and manifest.task.kind in PIPELINES:
        lines.append(f"pipeline_tag: {PIPELINES[manifest.task.kind]}")
    return "\n".join([*lines, "---"])


def _summary(manifest: Manifest, contents: Contents) -> str:
    base = manifest.base
    rows: dict[str, JsonValue] = {
        "role": manifest.role,
        "base model": f"{base.name or 'unnamed'} ({base.model_type}, {base.hidden_size} wide)",
        "base fingerprint": base.fingerprint,
        "sites": len(manifest.sites),
    }
    if manifest.method:
        rows["method"] = str(manifest.method["kind"])
    if manifest.fusion:
        rows["mixes"] = manifest.fusion.composition
    if manifest.task:
        rows["task"] = f"{manifest.task.kind}, up to {manifest.task.max_length} tokens"
    labels = manifest.head.labels if manifest.head else ()
    if labels:
        rows["labels"] = ", ".join(labels)
    for part in PARTS:
        if count := contents.parameters(part):
            rows[f"parameters ({part})"] = f"{count:,}"
    rows["weights"] = f"{contents.weights.bytes / 1e6:.2f} MB"
    rows["digest"] = contents.digest
    rows["licence"] = manifest.licence or "not stated"
    description = manifest.description or f"A graftwork {manifest.role} package for a frozen transformer."
    return f"{description}\n\n{_table(rows, 'value')}"


def _loading(manifest: Manifest) -> str:
    base = manifest.base.name or "path/to/the/base/model"
    name = _plain(manifest.name)
    folder = name.rpartition("/")[2] or "package"
    lines = [
        "```bash",
        f"graftwork registry pull {shlex.quote(name)} {shlex.quote(folder)}",
        "```",
        "",
        "```python",
        "from graftwork import AutoAdapterModel",
        "",
        f"model = AutoAdapterModel.from_pretrained({json.dumps(base)})",
        f"name = model.load_adapter({json.dumps(folder)})",
        "```",
        "",
        "`model.install(package)` does the same with a package that is already read.",
    ]
    if manifest.fusion:
        members = ", ".join(f"`{_plain(member.name)}` ({member.digest[:12]})" for member in manifest.fusion.members)
        lines += ["", f"Load its members first: {members}."]
    return "\n".join(lines)


def _training(manifest: Manifest) -> dict[str, JsonValue]:
    rows: dict[str, JsonValue] = {}
    if manifest.composition:
        rows["composition"] = manifest.composition
    for member in manifest.members:
        rows[f"trained with {member.name}"] = member.digest
    if manifest.method:
        rows["method"] = dict(manifest.method)
    if manifest.fusion:
        rows["fusion"] = dict(manifest.fusion.config)
    rows |= manifest.training
    return rows | {f"made with {library}": version for library, version in manifest.created_with.items()}


def _limits(manifest: Manifest) -> str:
    lines = [
        "- It works only on the base model with the fingerprint above; any other is refused.",
        "- The scores hold for the data named above and say nothing of other languages, domains or label sets.",
    ]
    if manifest.task:
        lines.append(f"- Texts of more than {manifest.task.max_length} tokens were not seen in training.")
    if isinstance(dropped := manifest.training.get("drop"), list):
        lines.append(
            f"- It was trained with the adapters of the lowest {dropped[0]} to {dropped[-1]} layers dropped at random "
            f"(AdapterDrop): any number of them up to {dropped[-1]} may be skipped, at the scores under Training."
        )
    if manifest.base.asserted:
        lines.append("- The base was asserted by whoever imported this package: shapes were checked, weights were not.")
    if manifest.semantics != "graftwork-1":
        lines.append(f"- It is read with the semantics `{manifest.semantics}` of the library that trained it.")
    return "\n".join(lines)


def _table(values: Mapping[str, JsonValue], heading: str) -> str:
    """Two columns, nested keys joined by dots; empty when there is nothing to say."""
    rows = [f"| {_cell(key)} | {_cell(_number(value))} |" for key, value in _flat(values, "")]
    return "\n".join(["| | " + heading + " |", "|---|---|", *rows]) if rows else ""


def _flat(values: Mapping[str, JsonValue], prefix: str) -> Iterator[tuple[str, JsonValue]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _number(value: JsonValue) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _plain(text).replace("\\", "\\\\").replace("|", "\\|")


def _quoted(text: str) -> str:
    return json.dumps(_plain(text))
