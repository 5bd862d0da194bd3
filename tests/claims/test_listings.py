"""Listings that are often copied and do not run any more, with the installed transformers and with us."""

import inspect

import pytest
from transformers import Trainer, TrainingArguments

from graftwork import AdapterConfig, BnConfig
from graftwork.errors import AdapterError


def test_arguments_that_transformers_took_away() -> None:
    arguments, trainer = (inspect.signature(one).parameters for one in (TrainingArguments, Trainer))
    assert {"evaluation_strategy", "warmup_ratio"}.isdisjoint(arguments)
    assert {"eval_strategy", "warmup_steps"} <= {*arguments}
    assert "tokenizer" not in trainer
    assert "processing_class" in trainer


def test_the_abstract_class_of_the_first_listing_is_refused_with_the_class_that_is_meant() -> None:
    with pytest.raises(AdapterError, match=r"write BnConfig\(mh_adapter=True, reduction_factor=16\)"):
        AdapterConfig(mh_adapter=True, reduction_factor=16)
    assert BnConfig(mh_adapter=True, reduction_factor=16).output_adapter
