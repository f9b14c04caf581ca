"""The methods that a recipe can name, in the order in which they are run and shown."""

from __future__ import annotations

from routerretriever.methods.base import Method
from routerretriever.methods.baselines import Baselines
from routerretriever.methods.both_towers import BothTowers
from routerretriever.methods.ddr import Ddr
from routerretriever.methods.experts import Experts

METHODS: dict[str, type[Method]] = {method.name: method for method in (Experts, Baselines, Ddr, BothTowers)}
DEFAULT = Experts.name
"""What a recipe gets that names none."""
