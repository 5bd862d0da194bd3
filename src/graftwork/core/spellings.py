"""Other names of named configurations: those that AdapterHub had, before and after it gave them new ones.

Knows no configurations: `core/kinds.py` has them under the names that these stand for.
"""

ALIASES = {
    "pfeiffer": "seq_bn",
    "houlsby": "double_seq_bn",
    "parallel": "par_bn",
    "scaled_parallel": "scaled_par_bn",
    "pfeiffer+inv": "seq_bn_inv",
    "houlsby+inv": "double_seq_bn_inv",
}
