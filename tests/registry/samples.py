"""Small packages for the tests of the registry: fixed ones, and strategies that draw any."""

import string

import torch
from hypothesis import strategies as st

from graftwork.manifest import BaseRef, FusionSpec, HeadSpec, Manifest, Member, TaskSpec
from graftwork.registry.package import Package

BASE = BaseRef(fingerprint="ab" * 32, model_type="bert", name="bert-base-uncased", hidden_size=8)
HEAD = HeadSpec(kind="classification", labels=("no", "yes"), num_outputs=2, layers=2, dropout=0.1)
TASK = TaskSpec(kind="classification", max_length=128, labels=("no", "yes"))
METHOD = {"kind": "bottleneck", "reduction_factor": 4, "non_linearity": "relu", "scaling": 1.0}
SITES = ("layer.0/ffn", "layer.1/ffn")


def task_manifest(name: str = "mood", sites: tuple[str, ...] = SITES) -> Manifest:
    """A bottleneck adapter with a classification head; informative fields filled too."""
    return Manifest(
        role="task",
        name=name,
        method=dict(METHOD),
        sites=sites,
        base=BASE,
        vocabulary="cd" * 32,
        head=HEAD,
        task=TASK,
        composition="mood",
        description="Whether a customer is happy.",
        scores={"accuracy": 0.91254, "dev": {"f1": 0.5}},
        data={"train": "train.jsonl", "rows": 300},
        training={"epochs": 3, "learning_rate": 1e-4},
        licence="apache-2.0",
        created_with={"torch": "2.13"},
    )


def fusion_manifest() -> Manifest:
    """A fusion of two members, without a head."""
    members = (Member(name="a", digest="1" * 64), Member(name="b", digest="2" * 64))
    fusion = FusionSpec(composition="Fuse(a, b)", members=members, config={"kind": "dynamic"})
    return Manifest(role="fusion", name="ab", fusion=fusion, sites=("layer.0/ffn",), base=BASE, members=members)


def task_tensors(sites: tuple[str, ...] = SITES, seed: int = 0) -> dict[str, torch.Tensor]:
    """Tensors of every site (width 8, bottleneck 2) and of a head, float32."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for site in sites:
        tensors[f"adapter/{site}/down.weight"] = torch.randn(2, 8, generator=draw)
        tensors[f"adapter/{site}/up.bias"] = torch.randn(8, generator=draw)
    return tensors | {"head/out.weight": torch.randn(2, 8, generator=draw)}


def task_package(name: str = "mood", seed: int = 0) -> Package:
    """The manifest and tensors above; another seed is another package."""
    return Package(task_manifest(name), task_tensors(seed=seed))


WORDS = st.text(string.ascii_lowercase + string.digits + "_", min_size=1, max_size=6)
DOTTED = st.lists(WORDS, min_size=1, max_size=3).map(".".join)
SITE_NAMES = st.lists(DOTTED, min_size=1, max_size=3).map("/".join)
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text('aé|"\\\n', max_size=5)
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=8
)


@st.composite
def tensor(draw: st.DrawFn) -> torch.Tensor:
    """Any shape, dtype and memory layout, finite values."""
    made = torch.randn(draw(SHAPES), generator=torch.Generator().manual_seed(draw(st.integers(0, 9)))).to(draw(DTYPES))
    if made.ndim > 1 and draw(st.booleans()):
        made = made.transpose(0, 1)
    return made


@st.composite
def packages(draw: st.DrawFn) -> Package:
    """Any package that can be written: random names, tensors, settings and texts."""
    sites = tuple(draw(st.lists(SITE_NAMES, min_size=1, max_size=3, unique=True)))
    tensors = {
        f"adapter/{site}/{parameter}": draw(tensor())
        for site in sites
        for parameter in draw(st.lists(DOTTED, min_size=1, max_size=2, unique=True))
    }
    tensors |= {f"head/{name}": draw(tensor()) for name in draw(st.lists(DOTTED, max_size=2, unique=True))}
    manifest = Manifest(
        role=draw(st.sampled_from(["task", "language"])),
        name=draw(WORDS),
        method={"kind": draw(WORDS)} | draw(st.dictionaries(WORDS.filter(lambda key: key != "kind"), JSON, max_size=3)),
        sites=sites,
        base=BASE,
        head=HEAD,
        composition=draw(st.text(max_size=10).filter(_writable)),
        scores=draw(st.dictionaries(WORDS, JSON, max_size=3)),
        description=draw(st.text(max_size=10).filter(_writable)),
    )
    return Package(manifest, tensors)


def _writable(text: str) -> bool:
    return text.isprintable() or text == ""
