"""The bundled demo: real pictures with questions about them, and a small backbone to fine-tune."""

from mars_core.demo.data import DemoData, build_demo_data
from mars_core.demo.shipped import demo_backbone_path

__all__ = ["DemoData", "build_demo_data", "demo_backbone_path"]
