"""The chosen pair as configuration of other fine-tuning tools: one module per tool."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mars_core.delivery.exports import axolotl, llama_factory, ms_swift
from mars_core.delivery.tool import Tool

TOOLS: Mapping[str, Tool] = MappingProxyType(
    {tool.name: tool for tool in (llama_factory.TOOL, ms_swift.TOOL, axolotl.TOOL)}
)
