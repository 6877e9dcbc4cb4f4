"""Menus: for every layer the labels it may get, each with ready-made weights, layer error and cost."""

from autocompress.menus.build import build_menus
from autocompress.menus.menus import Menus
from autocompress.menus.settings import CRITERIA, QUANTIZERS, MenuSettings

__all__ = ["CRITERIA", "QUANTIZERS", "MenuSettings", "Menus", "build_menus"]
