"""The kinds of task, in one table: a new task is a file, a row here, and its test."""

from graftwork.errors import DataError
from graftwork.manifest import TaskSpec
from graftwork.tasks.answering import Answering
from graftwork.tasks.choice import Choice
from graftwork.tasks.classify import Classification, OneLabel
from graftwork.tasks.language import CausalLanguage, MaskedLanguage
from graftwork.tasks.multilabel import Multilabel
from graftwork.tasks.pair import Pair
from graftwork.tasks.parse import Parsing
from graftwork.tasks.picture import ImageClassification
from graftwork.tasks.regression import Regression
from graftwork.tasks.seq2seq import SequenceToSequence
from graftwork.tasks.similarity import Similarity
from graftwork.tasks.tag import Tagging
from graftwork.tasks.task import Task, shown

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "pair": Pair,
    "regression": Regression,
    "tagging": Tagging,
    "multilabel": Multilabel,
    "multiple_choice": Choice,
    "question_answering": Answering,
    "dependency_parsing": Parsing,
    "masked_lm": MaskedLanguage,
    "causal_lm": CausalLanguage,
    "seq2seq_lm": SequenceToSequence,
    "image_classification": ImageClassification,
    "similarity": Similarity,
}


def task_class(kind: str) -> type[Task]:
    """The class of a kind of task. Raises DataError for a kind that is not in the table."""
    if kind not in TASKS:
        raise DataError(f'there is no task kind "{kind}"; the kinds are {shown(sorted(TASKS))}')
    return TASKS[kind]


def task_from_spec(spec: TaskSpec) -> Task:
    """The task that a package describes. Raises DataError for an unknown kind or labels that do not fit it."""
    return task_class(spec.kind)(labels=spec.labels, max_length=spec.max_length)


def numbers_classes(task: Task) -> bool:
    """Whether what the head should answer is class numbers, one a row or one a piece."""
    return isinstance(task, OneLabel | Tagging)
