"""The kinds of head, in one table: kind -> the module that answers. A new kind is a row here and one in `KINDS`."""

from collections.abc import Callable, Mapping

from graftwork.core.heads import Head, HeadConfig
from graftwork.core.heads_custom import Factory, made_custom
from graftwork.core.heads_embedding import EmbeddingHead
from graftwork.core.heads_language import Embeddings, LanguageHead
from graftwork.core.heads_linear import ChoiceHead, ClassHead, LabelsHead, NumberHead, SpanHead
from graftwork.core.heads_parsing import ParsingHead
from graftwork.errors import AdapterError


def _image(width: int, config: HeadConfig) -> Head:
    return LabelsHead(width, config) if config.multilabel else ClassHead(width, config)


HEADS: dict[str, Callable[[int, HeadConfig], Head] | type[LanguageHead] | None] = {
    "classification": ClassHead,
    "multilabel_classification": LabelsHead,
    "regression": NumberHead,
    "image_classification": _image,
    "multiple_choice": ChoiceHead,
    "tagging": ClassHead,
    "question_answering": SpanHead,
    "dependency_parsing": ParsingHead,
    "masked_lm": LanguageHead,
    "causal_lm": LanguageHead,
    "seq2seq_lm": LanguageHead,
    "sentence_embedding": EmbeddingHead,
    "custom": None,  # what its registered factory makes
}


def build_head(
    config: HeadConfig,
    width: int,
    embeddings: Embeddings | None = None,
    factories: Mapping[str, Factory] | None = None,
) -> Head:
    """A fresh head on hidden states of `width`. `embeddings`: the base's input embedding, for tied heads.

    Raises AdapterError for sizes that do not fit, or a custom head that `factories` does not hold.
    """
    maker = HEADS[config.kind]
    if maker is None:
        return made_custom(config, width, dict(factories or {}))
    if maker is LanguageHead:
        return LanguageHead(width, config, embeddings)
    if config.kind == "sentence_embedding" and not config.layers and config.num_outputs != width:
        raise AdapterError(
            f"sentence_embedding: without layers the embedding is as wide as the base, {width}, not "
            f"{config.num_outputs}; say layers=1 to project it"
        )
    return maker(width, config)
