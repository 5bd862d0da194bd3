"""Prompts that begin as a text: the tokenizer of the base cuts it, the base's own table gives the embeddings.

Everything that can fail is done before an adapter is added: a text needs a base with a table of tokens, known by the
name or folder from which its tokenizer can be loaded.
"""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from graftwork.compose.parts import Parts
from graftwork.core.adapter import MethodConfig
from graftwork.core.backbone import Backbone, load_tokenizer
from graftwork.core.prompt import Prompt, PromptTuningConfig
from graftwork.errors import AdapterError, BackboneError


def rows_of_text(config: MethodConfig, backbone: Backbone) -> Tensor | None:
    """The embeddings (n, D) of the text that a configuration's prompt begins as, or None where it has none.

    Special tokens that the tokenizer puts around it are among them, as in AdapterHub. Raises AdapterError for a base
    without a tokenizer, without a table of tokens, or with one of another width than its prompts.
    """
    text = next((one.prompt_init_text for one in _prompts(config) if one.prompt_init == "from_string"), None)
    site = next((site for site in backbone.sites if site.place == "prompt"), None)
    if text is None or site is None:
        return None
    name, table = str(backbone.config.name_or_path or ""), backbone.model.get_input_embeddings()
    if not isinstance(table, nn.Embedding) or table.embedding_dim != site.width:
        raise AdapterError(
            f"prompt_init 'from_string': {backbone.config.model_type} has no table of tokens of width {site.width} to "
            "take a text's embeddings from; use prompt_init='random_uniform'"
        )
    try:
        if not name:
            raise BackboneError("the base was made without a name or folder")
        ids = load_tokenizer(name)(text)["input_ids"]
    except BackboneError as error:
        raise AdapterError(
            f"prompt_init 'from_string' needs the tokenizer of the base for {text!r}: {error}; load the base by a name "
            "or folder that has its tokenizer, or use prompt_init='random_uniform'"
        ) from error
    with torch.no_grad():
        return cast(Tensor, table(torch.tensor(ids, dtype=torch.long, device=table.weight.device)))


def begin_as_text(parts: Parts, name: str, rows: Tensor) -> None:
    """Let the prompt of an adapter begin as the embeddings of a text (n, D)."""
    for module in parts.modules_of("adapters", name).values():
        for prompt in module.modules():
            if isinstance(prompt, Prompt):
                prompt.begin_as(rows)


def _prompts(config: MethodConfig) -> Iterator[PromptTuningConfig]:
    for member in getattr(config, "members", (config,)):
        if isinstance(member, PromptTuningConfig):
            yield member
        elif member is not config:
            yield from _prompts(member)
