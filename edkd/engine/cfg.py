"""CFG: the defaults of all configuration keys, under their published name.

A method in mdistiller's published style may have its node here, written by hand:

    CFG.MYKD = CfgNode()
    CFG.MYKD.KD_WEIGHT = 1.0

The preferred place is the attribute `defaults` of its class. The defaults of mdistiller are the
defaults here, so that its YAML files merge unchanged.
"""

from typing import Any

from edkd.engine.config.table import as_node, declared, defaults
from edkd.keys import Key, flatten

_DECLARED = as_node(defaults(declared()))

CFG = _DECLARED.clone()

# Nodes written by hand go below this line.


def written_by_hand() -> dict[str, Key]:
    """The keys of CFG that were added or changed after it was built from the declared keys."""
    built = _values(_DECLARED)
    found = dict(flatten(CFG))
    return {
        name: key for name, key in found.items() if name not in built or built[name] != key.default
    }


def _values(cfg: Any) -> dict[str, Any]:
    return {name: key.default for name, key in flatten(cfg)}
