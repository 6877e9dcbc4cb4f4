"""Menus: for every layer the labels it may get, each with ready-made weights, expected loss and cost."""

from autocompress.menus.build import build_menus
from autocompress.menus.criteria import CRITERIA, Criterion
from autocompress.menus.menus import Menus
from autocompress.menus.quantizers import QUANTIZERS, Quantizer
from autocompress.menus.settings import MenuSettings

__all__ = ["CRITERIA", "QUANTIZERS", "Criterion", "MenuSettings", "Menus", "Quantizer", "build_menus"]
