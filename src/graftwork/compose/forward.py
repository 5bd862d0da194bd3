"""One forward of a trunk under a plan's route, and the answers of the heads of its rows.

Knows a backbone, its parts and a plan; not how a call names adapters and heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from graftwork.compose.answer import AdapterOutput, answer
from graftwork.compose.inputs import ROWS, SENSED, ends_of, with_decoder_input
from graftwork.compose.parts import Parts
from graftwork.compose.places import moved
from graftwork.compose.plan import Plan
from graftwork.core.backbone import Backbone
from graftwork.core.heads import Beside


@dataclass(frozen=True)
class Asks:
    """What a call asks of its heads.

    labels: in `inputs` unless they are given by head. choices: rows a question. training: with regularisers.
    scored_only: a head with a vocabulary answers at the tokens with a label alone.
    """

    labels: Tensor | Mapping[str, Tensor] | None
    choices: int | None
    training: bool
    scored_only: bool = False


def headless(backbone: Backbone, plan: Plan, inputs: dict[str, Tensor], options: Mapping[str, Any]) -> Any:
    """The base's own output, (rows, ...), under a plan without heads."""
    ready = plan.lengthen(inputs)
    with backbone.runtime.running(plan.running, ready.get("attention_mask"), plan.words):
        return plan.lanes(backbone.model(**ready, **options))


@dataclass(frozen=True)
class Entered:
    """One batch on its way into a trunk: what the trunk takes, and what the heads of its rows want besides.

    heads: one name a row. inputs: (rows, ...). labels: (rows, ...), by head, or None. ends, starts: as in `Beside`.
    """

    heads: tuple[str, ...]
    inputs: dict[str, Tensor]
    labels: Tensor | Mapping[str, Tensor] | None
    ends: Tensor | None
    starts: Tensor | None


@dataclass(frozen=True)
class Ran:
    """What a trunk gave: its output, the last hidden state (rows, T', D) first; its tokens' mask, (rows, T') or None;
    and where the T tokens of a text are among them, (rows, T), or None where they are all."""

    output: Mapping[str, Any]
    mask: Tensor | None
    places: Tensor | None


def forward(
    backbone: Backbone,
    parts: Parts,
    plan: Plan,
    inputs: Mapping[str, Tensor],
    options: Mapping[str, Any],
    asks: Asks,
) -> AdapterOutput:
    """The heads' answers to a batch whose plan gives every row a head. inputs: (rows, ...), `labels` among them.

    Raises AdapterError for an input that the trunk does not take, or that a head lacks.
    """
    entered = enter(backbone, parts, plan, inputs, asks)
    ran = run(backbone, plan, entered.inputs, options)
    return leave(backbone, parts, plan, entered, ran, asks)


def enter(backbone: Backbone, parts: Parts, plan: Plan, inputs: Mapping[str, Tensor], asks: Asks) -> Entered:
    """A batch as the trunk takes it."""
    heads, ready = plan.heads or (), dict(inputs)
    labels = ready.pop("labels", None) if not isinstance(asks.labels, Mapping) else asks.labels
    configs = [parts.head(name).config for name in dict.fromkeys(heads)]
    if isinstance(labels, Tensor) and any(config.kind == "seq2seq_lm" for config in configs):
        ready = with_decoder_input(ready, labels, backbone.config)
    ends = ends_of(ready, backbone.config) if any(config.pooling == "eos" for config in configs) else None
    labels, ends, starts = map(plan.lanes, (labels, ends, ready.pop("word_starts", None)))
    return Entered(heads, ready, labels, ends, starts)


def run(backbone: Backbone, plan: Plan, inputs: dict[str, Tensor], options: Mapping[str, Any]) -> Ran:
    """The trunk under a plan's route."""
    backbone.check_inputs([*inputs, *options], trunk_only=True)
    # the heads of an encoder-decoder read the decoder, which prompts do not make longer
    lead = None if backbone.config.is_encoder_decoder else next(key for key in ROWS if key in inputs)
    places = None if lead is None or lead in SENSED else plan.places(inputs[lead])
    given, ready = inputs.get("attention_mask"), plan.lengthen(inputs)
    with backbone.runtime.running(plan.running, ready.get("attention_mask"), plan.words):
        output, mask = backbone.run_trunk(ready, options)
    output, mask = map(plan.lanes, (output, mask))
    if lead is None and mask is ready.get("attention_mask"):
        mask = given  # the decoder reads the encoder's text again, without the prompt
    return Ran(output, mask, places)


def leave(backbone: Backbone, parts: Parts, plan: Plan, entered: Entered, ran: Ran, asks: Asks) -> AdapterOutput:
    """The heads' answers to what the trunk gave."""
    hidden: Tensor = ran.output["last_hidden_state"]
    beside = Beside(ran.output.get("pooler_output"), entered.ends, entered.starts, asks.choices, ran.places)
    if ran.places is not None:
        beside = moved(beside, hidden.shape[1])
    inverse_of = None
    if plan.route is not None and backbone.embedded is not None:
        inverse_of = partial(plan.route.inverse_of, backbone.embedded)
    result = answer(entered.heads, parts.head, hidden, ran.mask, entered.labels, beside, inverse_of, asks.scored_only)
    for key in ("hidden_states", "attentions", "encoder_last_hidden_state"):
        if ran.output.get(key) is not None:
            result[key] = ran.output[key]
    if result.loss is not None and asks.training:
        without = {site.name for site in backbone.sites if site.depth in plan.skip} if plan.skip else ()
        penalty = parts.fusion_penalty(plan.trees, without)
        if penalty is not None:
            result["loss"] = result.loss + penalty.to(result.loss)
    return result
