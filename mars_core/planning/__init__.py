"""What a study will take on a machine that is not here, from configurations and the shapes of samples alone.

`devices` names machines, `architecture` counts a model's parts, `shapes` a sample's; `flops`, `memory` and `estimate`
put them together. `mars_core.packing.cost` measures instead, on the machine at hand.
"""
