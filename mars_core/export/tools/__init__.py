"""The chosen pair as configuration of other fine-tuning tools: one module per tool."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mars_core.export.tool import Tool
from mars_core.export.tools import axolotl, llama_factory, ms_swift, trl

TOOLS: Mapping[str, Tool] = MappingProxyType(
    {tool.name: tool for tool in (trl.TRL, llama_factory.TOOL, ms_swift.TOOL, axolotl.TOOL, trl.UNSLOTH)}
)
