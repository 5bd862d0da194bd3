"""What one value of a recipe may be: each type with its limits, and the same limits in words for error messages.

YAML gives numbers, flags and text; nothing is converted silently (`epochs: "5"` is refused), except that the words
yes, no, on and off count where a flag is expected, and a whole number counts as a label.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, Strict


@dataclass(frozen=True)
class Allowed:
    """What a type takes, in words, for `Annotated[...]`: "a whole number from 1 up"."""

    words: str


MOST = 2**31 - 1
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*"


def flag(value: object) -> object:
    """The words that YAML 1.1 takes for a flag, where a flag is expected."""
    words = {"yes": True, "on": True, "no": False, "off": False}
    return words.get(value.lower(), value) if isinstance(value, str) else value


def _whole_as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _encodable(value: str) -> str:
    """Raises ValueError (which pydantic reports) for half of a surrogate pair and for NUL, which no file can hold."""
    value.encode("utf-8")
    if "\0" in value:
        raise ValueError("holds a NUL character")
    return value


def _not_none(value: str) -> str:
    if value == "none":
        raise ValueError("'none' means no adapter in a composition")
    return value


Flag = Annotated[bool, Strict(), BeforeValidator(flag), Allowed("true or false")]
Whole = Annotated[int, Strict(), Field(ge=0, le=MOST), Allowed(f"a whole number from 0 to {MOST}")]
Count = Annotated[int, Strict(), Field(ge=1, le=MOST), Allowed(f"a whole number from 1 to {MOST}")]
Positive = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False), Allowed("a number above 0")]
NotNegative = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False), Allowed("a number from 0 up")]
Share = Annotated[float, Strict(), Field(ge=0, lt=1), Allowed("a number from 0 up to but not including 1")]
Text = Annotated[
    str, Field(pattern=r"\S"), AfterValidator(_encodable), Allowed("text, not empty (numbers and true/false in quotes)")
]
Label = Annotated[
    Text, BeforeValidator(_whole_as_text), Allowed("a label: text, in quotes where YAML reads something else")
]
Name = Annotated[
    str,
    Field(pattern=f"^{_NAME}$"),
    AfterValidator(_not_none),
    Allowed("a name of letters, digits and - _ . / that begins with a letter or digit and is not 'none'"),
]
_REFERENCE = rf"{_NAME}(@[A-Za-z0-9][A-Za-z0-9._-]*)?"
Reference = Annotated[
    str,
    Field(pattern=rf"^{_REFERENCE}$"),
    Allowed("a name in the registry, with a version or alias where it matters: ner@1"),
]
RECIPES = (".yaml", ".yml")  # what the path of a recipe ends with
Member = Annotated[
    str,
    Field(pattern=rf"^({_REFERENCE}|.*\S.*\.ya?ml)$"),
    AfterValidator(_encodable),
    Allowed("a name in the registry, with a version or alias where it matters (ner@1), or a recipe's path (ner.yaml)"),
]
Cycled = Annotated[
    tuple[Reference, ...],
    Field(min_length=2),
    Allowed("a list of two or more of them, one for each step: [en@1, de@1]"),
]
Layer = Annotated[Whole | Literal["last"], Allowed("the number of a layer, from 0, or last")]
_Whole = Annotated[int, Strict(), Field(ge=-MOST, le=MOST)]
_Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
_Layer = Annotated[str, BeforeValidator(_whole_as_text), Field(pattern=r"^([0-9]+|default)$")]
_Factor = Annotated[_Whole | _Number, Field(gt=0)]
ReductionFactor = Annotated[
    _Factor | Annotated[dict[_Layer, _Factor], Field(min_length=1)],
    Allowed("a number above 0, or one for each layer: {0: 8, 11: 4, default: 16}"),
]
Scaling = Annotated[_Whole | _Number | Literal["learned", "channel"], Allowed("a number, learned or channel")]

_SPELLINGS = {"head_only": "head"}  # of training.method: as comparisons call it


def spelled(method: object) -> object:
    """The one spelling of a method that has two."""
    return _SPELLINGS.get(method, method) if isinstance(method, str) else method


TrainingMethod = Annotated[Literal["adapter", "full", "head", "peft"], BeforeValidator(spelled)]
PrefixCache = Annotated[
    str,
    Field(pattern=r"^(off|auto|[1-9][0-9]{0,5}(MB|GB))$"),
    Allowed("off, auto, or the most bytes on disk: 500MB, 2GB"),
]


def _ascending(value: object) -> object:
    if isinstance(value, tuple) and value[0] >= value[1]:
        raise ValueError("a range begins below its end")
    return value


LayersDropped = Annotated[
    Literal["random"] | tuple[Whole, Whole],
    AfterValidator(_ascending),
    Allowed("random, or a range to draw from: [0, 5] (for the same layers always, adapter.leave_out: [0, 1, 2])"),
]
# Those of transformers' schedulers that need no settings of their own.
Scheduler = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
]
TaskKind = Literal[
    "classification", "pair", "regression", "tagging", "multilabel", "multiple_choice", "question_answering",
    "dependency_parsing", "masked_lm", "causal_lm", "seq2seq_lm", "similarity", "image_classification",
]  # fmt: skip
RowField = Literal[
    "text", "text_pair", "label", "tokens", "tags", "labels", "choices", "answers", "heads", "target", "image",
]  # fmt: skip
Columns = Annotated[
    dict[RowField, Text],
    Allowed(f"a mapping from {', '.join(get_args(RowField)[:-1])} or {get_args(RowField)[-1]} to a column"),
]
Changes = Annotated[
    dict[Text, dict[Text, JsonValue]],
    Allowed("a mapping from method to the keys that it changes: {lora: {training.learning_rate: 5e-4}}"),
]
