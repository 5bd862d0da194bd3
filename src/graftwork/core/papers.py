"""Where each named configuration was published: facts for people, nothing that computes."""

_HOULSBY = "Houlsby et al. 2019"
_PFEIFFER = "Pfeiffer et al. 2021"
_HE = "He et al. 2022"
_COMPACTER = "Mahabadi et al. 2021"
_LLM = "Hu et al. 2023"
_REFT = "Wu et al. 2024"

# named configuration -> its paper
PAPERS: dict[str, str] = {
    "seq_bn": _PFEIFFER,
    "double_seq_bn": _HOULSBY,
    "par_bn": _HE,
    "scaled_par_bn": _HE,
    "seq_bn_inv": "Pfeiffer et al. 2020 (MAD-X)",
    "double_seq_bn_inv": "Pfeiffer et al. 2020 (MAD-X)",
    "seq_bn_glow": "Kingma & Dhariwal 2018, in place of MAD-X's NICE",
    "double_seq_bn_glow": "Kingma & Dhariwal 2018, in place of MAD-X's NICE",
    "compacter": _COMPACTER,
    "compacter++": _COMPACTER,
    "adapter_plus": "Steitz & Roth 2024",
    "bapna_firat": "Bapna & Firat 2019",
    "adapter_bert": f"{_HOULSBY}, its code",
    "llm_series": _LLM,
    "llm_series_down": _LLM,
    "llm_parallel": _LLM,
    "lora": "Hu et al. 2021",
    "dora": "Liu et al. 2024",
    "vera": "Kopiczko et al. 2024",
    "ia3": "Liu et al. 2022",
    "bitfit": "Ben Zaken et al. 2022",
    "prefix_tuning": "Li & Liang 2021",
    "prefix_tuning_flat": "Li & Liang 2021",
    "prompt_tuning": "Lester et al. 2021",
    "loreft": _REFT,
    "noreft": _REFT,
    "direft": _REFT,
    "mam": _HE,
    "unipelt": "Mao et al. 2022",
}
