"""Training methods, one file each: all of them train the linear layers of the partition, and only those.

`Lora` is the method of MARS itself; the others are what it is compared with (paper, section 3.1 and appendix B).
"""

from mars_core.training.methods.adalora import AdaLora
from mars_core.training.methods.dora import Dora
from mars_core.training.methods.full_rank import FullRank
from mars_core.training.methods.geolora import GeoLora
from mars_core.training.methods.layer_lora import LayerLora
from mars_core.training.methods.lora import Lora
from mars_core.training.methods.method import Method
from mars_core.training.methods.rslora import RsLora
from mars_core.training.methods.selective import Selective

__all__ = ["AdaLora", "Dora", "FullRank", "GeoLora", "LayerLora", "Lora", "Method", "RsLora", "Selective"]
